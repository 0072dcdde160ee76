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
    "MAE %": ("mae", 2),
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
                f"p {p_of(row['p'])}, corrected {p_of(row['p_holm'])}",
            ]
            assert line[-1] == [str(row["units"])]
            numbers += 1
    return numbers


def test_every_number_on_the_page_is_the_csvs(finished):
    page = Page(finished / "report.html")
    checked = {"scores": 0, "tests": 0, "training": 0}
    for table in page.tables:
        if table["csv"] in ("scores", "training"):
            checked[table["csv"]] += check_scores(table, selected(table, finished))
        elif table["csv"] == "tests":
            checked["tests"] += check_tests(table, selected(table, finished))
    assert checked == {"scores": 3 * 3 * 7, "tests": 3 * 2 * 4, "training": 5 * 10}
    scores = pd.read_csv(finished / "scores.csv")
    tests = pd.read_csv(finished / "tests.csv").set_index(["metric", "class", "method"])
    for row in scores[scores["class"] == ALL_CLASSES].to_dict("records"):
        line = f"{row['method']}: {row['dice']:.3f}"
        if ("dice", ALL_CLASSES, row["method"]) in tests.index:
            test = tests.loc[("dice", ALL_CLASSES, row["method"])]
            line += f", difference {test['difference']:+.3f} [{test['difference_low']:+.3f}, "
            line += f"{test['difference_high']:+.3f}], p {p_of(test['p_holm'])}"
        assert line in page.text


def test_the_csv_is_the_mean_of_its_cases_and_of_the_seeds(finished):
    cases, scores = pd.read_csv(finished / "cases.csv"), pd.read_csv(finished / "scores.csv")
    assert sorted(cases["result"].unique()) == [
        "CrossTeachingTrainer_s0_CNN__nnUNetPlans__2d", "CrossTeachingTrainer_s0_Transformer__nnUNetPlans__2d",
        "CrossTeachingTrainer_s1_CNN__nnUNetPlans__2d", "CrossTeachingTrainer_s1_Transformer__nnUNetPlans__2d",
        "SupervisedTrainer_CNN__nnUNetPlans__2d",
    ]  # fmt: skip
    for metric in ("dice", "jaccard", "hd95_mm", "hd95_voxel", "asd_mm", "asd_voxel"):
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
            plain = " & ".join(cells).replace("±", r"$\pm$").replace("–", "--").replace("_", r"\_")
            assert plain.replace("<", "$<$").replace("%", r"\%") + r" \\" in latex
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
    assert {table["selects"].get("class") for table in page.tables} == {ALL_CLASSES, NASTY}
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
        "cases.csv", "figures", "report.html", "report.md", "report.tex", "report_files.json", "scores.csv",
    ]  # fmt: skip


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
    assert sum(check_scores(table, selected(table, folder)) for table in page.tables) == 2 * 6
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
    assert tables == {("scores", "Toy"), ("scores", "ACDC"), ("published", "ACDC")}
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
