"""The page: every number is the CSV's, nothing comes from elsewhere, and a browser has nothing to complain about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from reporting import Page, World, evaluation, report, write_json

from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.metrics import ALL_CLASSES

COLUMNS = {
    "Dice": ("dice", 3), "Jaccard": ("jaccard", 3), "HD95 mm": ("hd95_mm", 2), "HD95 voxels": ("hd95_voxel", 2),
    "ASD mm": ("asd_mm", 2), "ASD voxels": ("asd_voxel", 2), "HD95 pixels": ("hd95_voxel", 2),
    "ASD pixels": ("asd_voxel", 2), "MAE": ("mae", 4), "missed": ("missed", 0), "false positive": ("false_positive", 0),
    "in neither mask": ("both_empty", 0), "cases with a Dice": ("dice_cases", 0), "seed": ("seed", 0),
    "cases with a distance": ("hd95_mm_cases", 0), "labeled cases": ("labeled_cases", 0), "epochs": ("epochs", 0),
    "unlabeled cases": ("unlabeled_cases", 0), "iterations per epoch": ("iterations_per_epoch", 0),
    "hours": ("hours", 2),
    "seconds per iteration": ("seconds_per_iteration", 3), "GPU hours": ("gpu_hours", 2),
    "fold": ("fold", 0),
    "peak GPU memory, GB": ("peak_memory_gb", 2), "Dice %": ("dice", 2), "Jaccard %": ("jaccard", 2),
    "MAE %": ("mae", 2), "NSD": ("nsd", 3), "RVE": ("rve", 3), "lesion F1": ("lesion_f1", 3),
    "lesion sensitivity": ("lesion_sensitivity", 3), "lesion precision": ("lesion_precision", 3),
    "lesion Dice": ("lesion_dice", 3), "cases with an HD95": ("hd95_mm_cases", 0),
    "cases with a lesion": ("lesion_f1_cases", 0),
}  # fmt: skip


def rounded(value, digits, sign=""):
    return "–" if pd.isna(value) else f"{value:{sign}.{digits}f}"


def p_of(value):
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def selected(table, folder):
    frame = pd.read_csv(folder / f"{table['csv']}.csv")
    for column, value in table["selects"].items():
        frame = frame[frame[column] == value]
    return frame


def check_scores(table, frame):
    """Rows of scores.csv and training.csv: one line of the page per line of the CSV, in the same order."""
    if "class" in table["head"]:
        frame = frame[frame["class"] != ALL_CLASSES]
    numbers = 0
    for line, (_, row) in zip(table["rows"], frame.iterrows(), strict=True):
        assert line[0][0] == row["method"]
        for title, (text, *below) in zip(table["head"], line, strict=True):
            if title not in COLUMNS:
                continue
            column, digits = COLUMNS[title]
            assert text == rounded(row[column], digits), (title, row["method"])
            numbers += 1
            want = []
            if f"{column}_low" in row and not np.isnan(row[f"{column}_low"]):
                want.append(f"[{rounded(row[f'{column}_low'], digits)}, {rounded(row[f'{column}_high'], digits)}]")
            if f"{column}_std_seeds" in row and not np.isnan(row[f"{column}_std_seeds"]):
                want.append(f"± {rounded(row[f'{column}_std_seeds'], digits)} over {row['seeds']} seeds")
            assert below == want
    return numbers


def check_tests(table, frame):
    numbers = 0
    for line in table["rows"]:
        of_method = frame[frame["method"] == line[0][0]].set_index("metric")
        for title, (text, *below) in list(zip(table["head"], line, strict=True))[1:-1]:
            column, digits = COLUMNS[title]
            row = of_method.loc[column]
            assert text == rounded(row["difference"], digits, "+")
            assert below == [
                f"[{rounded(row['difference_low'], digits, '+')}, {rounded(row['difference_high'], digits, '+')}]",
                f"p {p_of(row['p'])}",
                f"corrected {p_of(row['p_holm'])}",
                f"false {p_of(row['false_claim'])}",
            ]
            assert line[-1] == [str(row["units"])]
            numbers += 1
    return numbers


def check_by_class(table, frame):
    """Tables with a line per class: every cell is that of scores.csv or tests.csv."""
    metric, numbers = table["selects"]["by class"], 0
    digits = next(digits for column, digits in COLUMNS.values() if column == metric)
    for line in table["rows"]:
        for label, (text, *below) in list(zip(table["head"], line, strict=True))[1:]:
            row = frame[(frame["class"] == line[0][0]) & (frame["method"] == label)]
            if table["csv"] == "tests":
                row = row[row["metric"] == metric].iloc[0]
                assert text == rounded(row["difference"], digits, "+")
                assert below[0].startswith(f"[{rounded(row['difference_low'], digits, '+')}, ")
            else:
                assert text == rounded(row[metric].item(), digits)
                assert below[0].startswith(f"[{rounded(row[f'{metric}_low'].item(), digits)}, ")
            numbers += 1
    return numbers


def check_ranks(table, frame):
    numbers = 0
    for line in table["rows"]:
        of_method = frame[frame["method"] == line[0][0]].set_index("metric")
        for title, cell in list(zip(table["head"], line, strict=True))[1:]:
            row = of_method.loc[COLUMNS[title][0]]
            assert cell == [f"{row['rank']:.0f}", f"first in {100 * row['share_first']:.0f} %"]
            numbers += 1
    return numbers


def test_every_number_on_the_page_is_the_csvs(finished):
    page = Page(finished / "report.html")
    checked = {"scores": 0, "tests": 0, "training": 0, "ranks": 0}
    for table in page.tables:
        if table["csv"] in ("scores", "training"):
            checked[table["csv"]] += check_scores(table, selected(table, finished))
        elif table["csv"] == "tests":
            checked["tests"] += check_tests(table, selected(table, finished))
        elif table["csv"] == "ranks":
            checked["ranks"] += check_ranks(table, selected(table, finished))
    assert checked == {"scores": 3 * 3 * 9, "tests": 3 * 2 * 5, "training": 5 * 10, "ranks": 3 * 5}
    scores = pd.read_csv(finished / "scores.csv")
    tests = pd.read_csv(finished / "tests.csv").set_index(["metric", "class", "method"])
    for row in scores[scores["class"] == ALL_CLASSES].to_dict("records"):
        line = f"{row['method']}: {row['dice']:.3f}"
        if ("dice", ALL_CLASSES, row["method"]) in tests.index:
            test = tests.loc[("dice", ALL_CLASSES, row["method"])]
            line += f", difference {test['difference']:+.3f} [{test['difference_low']:+.3f}, "
            line += f"{test['difference_high']:+.3f}], p {p_of(test['p_holm'])}"
            line += f", chance of a false claim {p_of(test['false_claim'])}"
        assert line in page.text


def test_the_csv_is_the_mean_of_its_cases_and_of_the_seeds(finished):
    cases, scores = pd.read_csv(finished / "cases.csv"), pd.read_csv(finished / "scores.csv")
    assert sorted(cases["result"].unique()) == [
        "CrossTeachingTrainer_s0_CNN__nnUNetPlans__2d", "CrossTeachingTrainer_s0_Transformer__nnUNetPlans__2d",
        "CrossTeachingTrainer_s1_CNN__nnUNetPlans__2d", "CrossTeachingTrainer_s1_Transformer__nnUNetPlans__2d",
        "SupervisedTrainer_CNN__nnUNetPlans__2d",
    ]  # fmt: skip
    for metric in ("dice", "jaccard", "rve", "hd95_mm", "hd95_voxel", "asd_mm", "asd_voxel"):
        per_seed = cases.groupby(["method", "class", "seed"])[metric].mean()
        of_class, spread = per_seed.groupby(["method", "class"]).mean(), per_seed.groupby(["method", "class"]).std()
        mean_of_classes = of_class.groupby("method").mean()
        for row in scores.to_dict("records"):
            everything = row["class"] == ALL_CLASSES
            want = mean_of_classes[row["method"]] if everything else of_class[row["method"], row["class"]]
            assert row[metric] == pytest.approx(want, rel=1e-9)
            assert row["seeds"] == (1 if row["method"] == "Supervised / CNN" else 2)
            if not everything:
                want = pytest.approx(spread[row["method"], row["class"]], nan_ok=True)
                assert row[f"{metric}_std_seeds"] == want
    assert scores["method"].unique().tolist() == [
        "Supervised / CNN", "CrossTeaching / CNN", "CrossTeaching / Transformer",
    ]  # fmt: skip


def test_markdown_and_latex_hold_the_same_tables(finished):
    page = Page(finished / "report.html")
    markdown, latex = ((finished / f"report.{kind}").read_text() for kind in ("md", "tex"))
    for table in page.tables:
        for line in table["rows"]:
            cells = [" ".join(cell) for cell in line]
            in_markdown = " | ".join(re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", cell) for cell in cells)
            assert f"| {in_markdown} |" in markdown
            plain = (
                " & ".join(cells)
                .replace("\\", r"\textbackslash{}")
                .replace("±", r"$\pm$")
                .replace("–", "--")
                .replace("_", r"\_")
            )
            plain = plain.replace("<", "$<$").replace("%", r"\%").replace("^", r"\textasciicircum{}")
            assert plain + r" \\" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == len(page.tables)
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (finished / name).is_file()
    assert len(list((finished / "figures").iterdir())) == markdown.count("](figures/")


def test_the_page_needs_nothing_else(finished):
    page = Page(finished / "report.html")
    text = (finished / "report.html").read_text()
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "script" not in page.tags
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    for word in ("http", "url(", "@import", "<iframe"):
        assert word not in without_pictures
    assert {link for link in page.links if link.startswith("#")} <= {
        f"#{i}" for i in re.findall(r' id="([^"]+)"', text)
    }


def test_all_chapters_are_there(finished):
    page = Page(finished / "report.html")
    for sentence in (
        "8 cases of 4 patients (validation cases of fold 0), 2 classes: liver, cyst. 3 methods from 5 sets",
        "MeanTeacherTrainer__nnUNetPlans__2d: left out, because no fold has a finished validation",
        "Supervised / CNN: a single seed: how much another seed",
        "Baseline: Supervised / CNN.",
        "Differences are to Supervised / CNN, with 95",
        "With 4 patients no p can be below 0.125, before correction.",
        "There are none: every class is in every label and every prediction.",
        "No published numbers are on file for this dataset.",
        "All settings of CrossTeaching / Transformer",
        "p is corrected by Holm's method",
    ):
        assert sentence in page.text
    names = {path.name for path in (finished / "figures").iterdir()}
    assert names == {
        *(f"box_{metric}_{c}.svg" for metric in ("dice", "hd95_mm") for c in ("mean", "liver", "cyst")),
        *(f"overlay_{i}.png" for i in (1, 2, 3)),
        *(f"curve_{name}.svg" for name in ("pseudo_dice", "supervised", "agreement")),
        *(f"pseudo_{name}.svg" for name in ("share_used", "entropy", "dice_of_those_used")),
    }
    training = pd.read_csv(finished / "training.csv")
    assert training["labeled_cases"].unique().tolist() == [6]
    assert training["unlabeled_cases"].unique().tolist() == [11]
    assert training["seconds_per_iteration"].unique() == pytest.approx([9.0 / 4])
    assert training["gpu_hours"].unique() == pytest.approx([2 * 18 / 3600])
    assert training["peak_memory_gb"].unique() == pytest.approx([2.5])


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
def test_a_browser_shows_it_without_complaint(finished, tmp_path):
    page = finished / "report.html"
    tables = len(Page(page).tables)  # fails on a page that is not well formed, with or without a browser
    if CHROMIUM is None:
        return
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [CHROMIUM, *flags, "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<table") == tables


NASTY = '<script>alert("1")</script> | 50 % & $x_1$ # {~^} \\'


def test_names_are_text_and_never_markup(tmp_path):
    table = evaluation(tmp_path / "a&b<i>.csv", [NASTY])
    folder = report(table, evaluation(tmp_path / "b.csv", [NASTY]), "-o", tmp_path / "report")
    page = Page(folder / "report.html")
    assert NASTY in page.text
    assert "a&b<i>" in page.text
    assert {"script", "i"}.isdisjoint(page.tags)
    assert {table["selects"].get("class") for table in page.tables} == {ALL_CLASSES, NASTY, None}
    latex = (folder / "report.tex").read_text()
    assert r"$<$script$>$alert(\"1\")".replace(r"\"", '"') in latex
    assert r"50 \% \& \$x\_1\$ \# \{\textasciitilde{}\textasciicircum{}\} \textbackslash{}" in latex
    assert r"\<script\>alert(" in (folder / "report.md").read_text()


def test_what_is_missing_is_said_where_it_would_be(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_results", raising=False)
    folder = report(evaluation(tmp_path / "one.csv"), "-o", tmp_path / "report")
    text = Page(folder / "report.html").text
    for sentence in (
        "There is only one method, so there is no test.",
        "one: not drawn, because its folder of predictions, with dataset.json, was not given or found.",
        "no curves.json of their training was found: one.",
        "No method used pseudo labels, or the trainings did not record their curves.",
        "The results folder of the training was not found for: one. Set nnUNet_results.",
        "None of the methods recorded its settings.",
        "No published numbers are on file for this dataset.",
        "Every case counts as a separate patient",
    ):
        assert sentence in text
    assert "Differences are to" not in text
    assert sorted(path.name for path in folder.iterdir()) == [
        "cases.csv", "figures", "paper_table.tex", "report.html", "report.md", "report.tex", "report_files.json",
        "scores.csv",
    ]  # fmt: skip


def with_columns(path, **columns):
    """A CSV of `evaluation` with more columns, such as an older one lacks."""
    table = pd.read_csv(path)
    for name, value in columns.items():
        table[name] = value(table) if callable(value) else value
    table.to_csv(path, index=False)
    return path


MORE = {"nsd": 0.75, "nsd_tolerance": 2.0, "rve": -0.125, "lesion_f1": 0.5, "lesion_sensitivity": 0.25}
MORE |= {"lesion_precision": 1.0, "lesion_dice": 0.375}


def test_more_metrics_than_fit_beside_each_other_have_tables_of_their_own(tmp_path):
    paths = [with_columns(evaluation(tmp_path / f"{n}.csv", ["a", "b"], seed=i), **MORE) for i, n in enumerate("xy")]
    folder = report(*paths, "-o", tmp_path / "report", "--baseline", "x")
    page = Page(folder / "report.html")
    heads = [table["head"][1:] for table in page.tables if table["csv"] == "scores"]
    assert heads[:3] == [
        ["Dice", "Jaccard", "NSD", "RVE", "cases with a Dice"],
        ["HD95 mm", "HD95 voxels", "ASD mm", "ASD voxels", "cases with an HD95"],
        ["lesion F1", "lesion sensitivity", "lesion precision", "lesion Dice", "cases with a lesion"],
    ]
    for table in page.tables:
        if table["csv"] == "scores":
            assert check_scores(table, selected(table, folder)) > 0
        elif table["csv"] == "tests":
            assert check_tests(table, selected(table, folder)) > 0
    assert "NSD is the share of both surfaces within 2 mm of the other one" in page.text
    tests = pd.read_csv(folder / "tests.csv")
    assert (tests.loc[tests["metric"] == "rve", "difference"] == 0).all()


@pytest.mark.parametrize("methods", [2, 7])
def test_many_classes_have_a_line_each_in_tables_that_fit_a_page(tmp_path, methods, monkeypatch):
    monkeypatch.setattr("nnunet_collab.evaluation.bootstrap.RESAMPLES", 50)
    monkeypatch.setattr("nnunet_collab.report.tables._ROWS", 5)
    classes = [f"organ {i}" for i in range(7)]
    paths = [evaluation(tmp_path / f"m{i}.csv", classes, seed=i) for i in range(methods)]
    folder = report(*paths, "-o", tmp_path / "report", "--baseline", "m0")
    page = Page(folder / "report.html")
    by_class = [table for table in page.tables if "by class" in table["selects"]]
    blocks = {2: 1, 7: 2}[methods]  # of at most five methods
    assert [sum(t["csv"] == name for t in by_class) for name in ("scores", "tests")] == [2 * 2 * blocks] * 2
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["box_dice_mean.svg", "box_hd95_mm_mean.svg"]
    numbers = {"scores": 0, "tests": 0}
    for table in by_class:
        assert len(table["rows"]) <= 5
        assert len(table["head"]) <= 6
        frame = pd.read_csv(folder / f"{table['csv']}.csv")
        numbers[table["csv"]] += check_by_class(table, frame)
    assert numbers == {"scores": 2 * 7 * methods, "tests": 2 * 7 * (methods - 1)}
    assert len([t for t in page.tables if t["csv"] == "scores" and t["selects"].get("class") == ALL_CLASSES]) == 1


def test_every_table_is_defined_in_a_sentence(finished):
    text = (finished / "report.html").read_text()
    notes = re.findall(r'</table></div>\s*<p class="note">([^<]+)</p>', text)
    assert len(notes) == text.count("</table>")
    assert all(note.endswith(".") and note.count(". ") == 0 for note in notes), notes
    assert "Dice is 2 |P ∩ T| / (|P| + |T|) of the prediction P and the truth T" in notes[0]
    markdown = (finished / "report.md").read_text()
    for note in notes:
        plain = note.replace("&#39;", "'").replace("&lt;", "<")
        assert re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", plain) in markdown


def test_the_checklist_is_filled_with_what_is_known(finished):
    (table,) = [t for t in Page(finished / "report.html").tables if t["head"] == ["item", "answer", "found in"]]
    answers = {line[0][0]: line[1][0] for line in table["rows"]}
    assert answers["Data"].startswith("Dataset001_Toy")
    assert answers["Training cases per fold"] == "6 labeled, 11 unlabeled"
    assert answers["Test cases"] == "8 cases of 4 patients; validation cases of fold_0"
    assert answers["Split by patient"] == r"(p\d+)_t\d"
    assert answers["Seeds"] == "Supervised / CNN: 0; CrossTeaching / CNN: 0, 1; CrossTeaching / Transformer: 0, 1"
    assert answers["Baseline"] == "Supervised / CNN"
    assert answers["Length of training"] == "2 epochs of 4 iterations"
    assert answers["Hardware"] == "A GPU"
    assert answers["Time"] == f"{5 * 18 / 3600:.2f} hours for 5 trainings, {2 * 5 * 18 / 3600:.2f} GPU hours"
    assert answers["Code, weights, and data are available"] == "not known: add it"
    assert "over patients and seeds; Wilcoxon" in answers["Statistics"]


def test_the_table_for_a_paper_is_complete_and_its_numbers_are_the_csvs(finished):
    text = (finished / "paper_table.tex").read_text()
    assert text.count("{") == text.count("}")
    head, *rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in (head, *rows)} == {head.count(" & ")}
    assert rf"\begin{{tabular}}{{@{{}}l{'c' * head.count(' & ')}@{{}}}}" in text
    for word in (
        r"\begin{table}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{table}",
        r"\label{tab:dataset001toy}",
    ):
        assert text.count(word) == 1
    scores = pd.read_csv(finished / "scores.csv").query("`class` == @ALL_CLASSES").set_index("method")
    tests = (
        pd.read_csv(finished / "tests.csv").query("`class` == @ALL_CLASSES and metric == 'dice'").set_index("method")
    )
    best = {"dice": scores["dice"].max(), "hd95_mm": scores["hd95_mm"].min()}
    for row in rows:
        name, seeds, *cells = row.removesuffix(r" \\").split(" & ")
        score = scores.loc[name]
        assert seeds == str(score["seeds"])
        for cell, (metric, digits) in zip(cells, (("dice", 3), ("hd95_mm", 2)), strict=False):
            text = f"{score[metric]:.{digits}f}"
            text = rf"\textbf{{{text}}}" if score[metric] == best[metric] else text
            assert cell == f"{text} [{score[f'{metric}_low']:.{digits}f}, {score[f'{metric}_high']:.{digits}f}]"
        if name in tests.index:
            test = tests.loc[name]
            ends = [f"${test[f'difference_{end}']:+.3f}$" for end in ("low", "high")]
            p = [p_of(test[key]).replace("<", "$<$") for key in ("p_holm", "false_claim")]
            assert cells[2:] == [f"${test['difference']:+.3f}$ [{', '.join(ends)}]", *p]
        else:
            assert cells[2:] == ["baseline", "--", "--"]


def test_intervals_hold_only_values_that_can_be(tmp_path, world):
    """Three seeds of which one has failed: a normal distribution around their mean leaves the range of Dice."""
    for seed, quality in enumerate((0.98, 0.97, 0.1)):
        world.train("MeanTeacherTrainer", f"s{seed}", seed, quality=quality)
        world.train("SupervisedTrainer", f"s{seed}", seed, quality=0.9)
    folder = report(world.results, "-o", world.root / "report")
    scores, tests = (pd.read_csv(folder / f"{name}.csv") for name in ("scores", "tests"))
    for metric, (least, largest) in {"dice": (0, 1), "rve": (-1, np.inf), "hd95_mm": (0, np.inf)}.items():
        assert (scores[f"{metric}_low"] >= least).all()
        assert (scores[f"{metric}_high"] <= largest).all()
    failed = scores[scores["method"] == "MeanTeacher / CNN"]
    assert (failed["dice_high"] == 1).any()
    shares = tests[tests["metric"].isin(["dice", "jaccard"])]
    assert shares[["difference_low", "difference_high"]].abs().max().max() <= 1


def test_surface_dice_at_two_tolerances_is_not_in_one_table(tmp_path):
    paths = [evaluation(tmp_path / f"{n}.csv", ["a"]) for n in "xy"]
    for path, tolerance in zip(paths, (1.0, 2.0), strict=True):
        with_columns(path, nsd=0.5, nsd_tolerance=tolerance)
    with pytest.raises(CollabError, match=r"at the same tolerances; .*x: \{'a': 1\.0\}; y: \{'a': 2\.0\}"):
        report(*paths, "-o", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_rectified_pseudo_labels_are_drawn_as_they_are_after_it(world):
    """CRLN's curves have two of each quantity, of which "after" is what the student learns from."""
    figures = []
    for names in (("CNN",), ("CNN before", "CNN after")):
        run = world.train("CRLNTrainer")
        path = run / "fold_0" / "curves.json"
        curves = json.loads(path.read_text())
        curves["pseudo_labels"] = {f"{names[0]}/share used": [0.9, 0.1], f"{names[-1]}/share used": [0.2, 0.7]}
        write_json(path, curves)
        folder = report(world.results, "-o", world.root / f"report_{len(names)}")
        figures.append((folder / "figures" / "pseudo_share_used.svg").read_bytes())
    assert figures[0] == figures[1]


def test_tables_of_an_older_version_have_no_voxels(tmp_path):
    for name in "ab":
        table = pd.read_csv(evaluation(tmp_path / f"{name}.csv"))
        table[[c for c in table if not c.endswith("_voxel")]].to_csv(tmp_path / f"{name}.csv", index=False)
    folder = report(tmp_path / "a.csv", tmp_path / "b.csv", "-o", tmp_path / "report")
    page = Page(folder / "report.html")
    assert "Distances in voxels are left out: the tables do not have them." in page.text
    assert "HD95 voxels" not in page.text


def test_mae_is_for_images_without_spacing(tmp_path):
    folder = report(evaluation(tmp_path / "a.csv", unit="pixel"), "-o", tmp_path / "report")
    page = Page(folder / "report.html")
    assert page.tables[0]["head"] == [
        "method",
        "Dice",
        "Jaccard",
        "HD95 pixels",
        "ASD pixels",
        "MAE",
        "cases with a Dice",
    ]
    scores = [table for table in page.tables if table["csv"] == "scores"]
    assert sum(check_scores(table, selected(table, folder)) for table in scores) == 2 * 6
    assert "HD95 mm" not in page.text


def test_two_datasets_stand_apart_and_papers_in_their_own_table(tmp_path, monkeypatch):
    paths = []
    for name in ("Dataset001_Toy", "Dataset027_ACDC"):
        folder = tmp_path / name
        World(folder, name).environment(monkeypatch)
        paths.append(evaluation(folder / "pred.csv"))
        (folder / "pred").mkdir()
        (folder / "pred" / "dataset.json").write_text(json.dumps({"name": name.split("_")[1], "labels": {"liver": 1}}))
    page = Page(report(*paths, "-o", tmp_path / "report") / "report.html")
    tables = {(table["csv"], table["selects"]["dataset"]) for table in page.tables}
    assert tables == {("scores", "Toy"), ("scores", "ACDC"), ("published", "ACDC"), ("", "Toy"), ("", "ACDC")}
    published = next(table for table in page.tables if table["csv"] == "published")
    frame = selected(published, tmp_path / "report")
    numbers = 0
    for line, (_, row) in zip(published["rows"], frame.iterrows(), strict=True):
        assert line[0] == [row["method"], *([] if row["verified"] else ["not verified"])]
        assert line[-2] == [row["source"]]
        assert f"{line[-1][0]}: {row['caveat']}" in page.text
        for title, (text, *_) in zip(published["head"], line, strict=True):
            column, digits = {**COLUMNS, "HD95": ("hd95", 2), "ASD": ("asd", 2)}.get(title, ("", 0))
            if column:
                assert text == rounded(row[column], digits)
                numbers += 1
    assert numbers == 4 * len(frame) > 0
    assert (frame["verified"] == False).sum() == 2  # noqa: E712  (a column of pandas)
    assert "They were not measured here" in page.text
