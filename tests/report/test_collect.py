"""What is found in folders, which results are one method, which belong into one table, and every refusal."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from reporting import CASES, write_image, write_json
from scipy import stats

from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.folders import evaluate_folders
from nnunet_collab.evaluation.metrics import ALL_CLASSES
from nnunet_collab.evaluation.statistics import holm
from nnunet_collab.report.collect import collect
from nnunet_collab.report.overlays import ranked_cases
from nnunet_collab.report.runs import read_folds
from nnunet_collab.report.scores import comparisons_frame, published_frame
from nnunet_collab.report.settings import settings_table
from nnunet_collab.report.sources import find_sources


def evaluated(world, name, cases=CASES, *, seed=0, classes=("liver", "cyst"), plans=None, labels=True):
    """A folder of predictions, without the files, and its CSV beside it."""
    folder = world.root / name
    folder.mkdir()
    write_json(folder / "dataset.json", {**world.facts, "file_ending": ".none"})
    if plans:
        write_json(folder / "plans.json", plans)
    rng = np.random.default_rng(seed)
    rows = [
        {"case": case, "class": c, "statistic": "case", "dice": rng.random(), "jaccard": 0.5, "hd95_mm": 1.0,
         "asd_mm": 1.0, "missed": 0, "false_positive": 0, "both_empty": 0, "distance_unit": "mm"}
        for case in cases
        for c in classes
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(world.root / f"{name}.csv", index=False)
    return folder


def comparisons(*paths, **options):
    return collect(find_sources(paths)[0], processes=1, **options)


def labels_of(comparison):
    return [method.label for method in comparison.methods]


def complaint(*paths, **options):
    with pytest.raises(CollabError) as caught:
        comparisons(*paths, **options)
    return str(caught.value)


# ---------------------------------------------------------------- what is found


def test_a_training_stands_for_its_students_and_one_without_validation_is_named(world):
    run = world.train("CTRCLTrainer", students=("CNN", "Transformer"))
    lonely = world.train("MeanTeacherTrainer", cases=())
    names = ["CTRCLTrainer_CNN__nnUNetPlans__2d", "CTRCLTrainer_Transformer__nnUNetPlans__2d"]
    for paths in ([run], [world.results], [run.with_name(names[0]), run]):
        sources, left_out = find_sources(paths)
        assert [source.name for source in sources] == names
        assert [source.run for source in sources] == [run, run]
        assert [line.split(":")[0] for line in left_out] == ([lonely.name] if paths == [world.results] else [])
    source = find_sources([run])[0][0]
    assert (source.labels, source.images) == (world.raw / "labelsTr", world.raw / "imagesTr")
    assert (source.folds, source.dataset) == (("fold_0",), "Dataset001_Toy")
    with pytest.raises(CollabError, match="at least one of RESULTS must have predictions of validation cases; none"):
        find_sources([lonely])


def test_labels_are_those_the_validation_was_measured_against_or_named(world):
    run = world.train("SupervisedTrainer")
    (world.raw / "labelsTr").rename(world.root / "elsewhere")
    message = complaint(run)
    assert "those of SupervisedTrainer_CNN__nnUNetPlans__2d are neither in the folder of its validation" in message
    named, _ = find_sources([run], labels=world.root / "elsewhere")
    assert named[0].labels == world.root / "elsewhere"
    (world.root / "elsewhere").rename(world.root / "preprocessed")
    target = world.root / "preprocessed"
    target.rename(world.root / "labels")
    (world.root / "preprocessed" / world.dataset).mkdir(parents=True)
    (world.root / "labels").rename(world.root / "preprocessed" / world.dataset / "gt_segmentations")
    assert find_sources([run])[0][0].labels.name == "gt_segmentations"
    (world.root / "preprocessed" / world.dataset / "gt_segmentations" / "p0_t0.nii.gz").unlink()
    assert "every prediction must have a label in" in (message := complaint(run))
    assert "without one: 1 (p0_t0) of" in message


def test_folders_of_predictions_know_their_training_images_and_labels(world):
    run = world.train("CTRCLTrainer", "a0", students=("CNN", "Transformer"))
    plans = world.plans("CTRCLTrainer", "a0", 0, ("CNN", "Transformer"), "CNN")
    folder = evaluated(world, "pred", plans=plans)
    (world.raw / "imagesTs").mkdir()
    (world.raw / "labelsTs").mkdir()
    write_json(
        folder / "predict_from_raw_data_args.json", {"list_of_lists_or_source_folder": str(world.raw / "imagesTs")}
    )
    for path in (folder, folder.with_suffix(".csv")):
        source = find_sources([path])[0][0]
        assert (source.run, source.table) == (run, folder.with_suffix(".csv"))
        assert (source.images, source.labels) == (world.raw / "imagesTs", world.raw / "labelsTs")
    for kind in ("labels", "images"):
        (world.root / kind).mkdir()
    named = find_sources([folder], labels=world.root / "labels", images=world.root / "images")[0][0]
    assert (named.labels, named.images) == (world.root / "labels", world.root / "images")
    shutil.move(folder.with_suffix(".csv"), folder / "scores.csv")
    assert find_sources([folder])[0][0].table == folder / "scores.csv"
    shutil.copytree(folder, world.root / "many" / "first")
    shutil.copytree(folder, world.root / "many" / "second")
    assert [source.name for source in find_sources([world.root / "many"])[0]] == ["first", "second"]
    write_json(run / "plans.json", world.plans("CTRCLTrainer", "a0", 0, ("CNN", "Transformer"), beta=3))
    assert find_sources([folder])[0][0].run is None  # was trained again since


def test_predictions_without_a_table_are_measured(world):
    run = world.train("SupervisedTrainer")
    validation = run.with_name("SupervisedTrainer_CNN__nnUNetPlans__2d") / "fold_0" / "validation"
    (comparison,) = comparisons(run)
    want = evaluate_folders(validation, world.raw / "labelsTr", processes=1, progress=False)
    pd.testing.assert_frame_equal(comparison.methods[0].results[0].frame, want)
    folder = world.root / "copy"
    shutil.copytree(validation, folder)
    write_json(folder / "dataset.json", world.facts)
    source = find_sources([folder], labels=world.raw / "labelsTr")[0]
    pd.testing.assert_frame_equal(collect(source, processes=1)[0].methods[0].results[0].frame, want)


def test_what_is_no_result_is_refused(world):
    (world.root / "empty").mkdir()
    (world.root / "other.csv").write_text("a,b\n1,2\n")
    for path in (world.root / "empty", world.root / "other.csv", world.raw / "labelsTr"):
        message = complaint(path)
        assert f"{path} is none of them. Check the path, or run nnunet_collab evaluate -p" in message
    run = world.train("SupervisedTrainer")
    (run / "plans.json").write_text("{")
    assert f"{run / 'plans.json'} must be a readable JSON file" in complaint(run)
    (run / "plans.json").write_text("[]")
    assert f"{run / 'plans.json'} must hold a JSON object; got list" in complaint(run)


def test_a_broken_or_stale_table_is_refused(world):
    folder = evaluated(world, "pred")
    table = folder.with_suffix(".csv")
    write_json(folder / "dataset.json", world.facts)
    write_image(folder / "p9_t0.nii.gz", np.zeros((2, 2, 2), np.uint8))
    assert "of the predictions next to it; they differ in 9 (p0_t0, p0_t1" in complaint(folder)
    (folder / "p9_t0.nii.gz").unlink()
    text = table.read_text()
    table.write_text(text + text.splitlines()[1] + "\n")
    assert "with every case and class once; it is empty, or has some twice" in complaint(folder)
    table.write_text(text.splitlines()[0] + "\n")
    assert "it is empty, or has some twice" in complaint(folder)
    table.write_text(text.replace("0.5", "half"))
    assert "must be a number, or empty; it is half" in complaint(folder)


# ---------------------------------------------------------------- what belongs together


def test_seeds_are_one_method_and_anything_else_is_another(world):
    for run_name, settings in (("s0", {}), ("s3", {"seed": 3}), ("strong0", {"beta": 5}), ("0", {"beta": 7})):
        world.train("CTRCLTrainer", run_name, **{"seed": 0, **settings})
    (comparison,) = comparisons(world.results)
    seeds = {method.label: [result.seed for result in method.results] for method in comparison.methods}
    # The last one differs from the first in beta alone, so only the folders tell them apart.
    assert seeds == {
        "CTRCLTrainer_0_CNN__nnUNetPlans__2d": [0],
        "CTRCLTrainer_s0_CNN__nnUNetPlans__2d": [0, 3],
        "CTRCL strong / CNN": [0],
    }
    world.train("CTRCLTrainer", "s0", 0)
    (comparison,) = comparisons(
        world.results / "CTRCLTrainer_s0__nnUNetPlans__2d", world.results / "CTRCLTrainer_s3_CNN__nnUNetPlans__2d"
    )
    assert labels_of(comparison) == ["CTRCL / CNN"]


def test_the_same_model_predicted_twice_goes_by_its_folders(world):
    plans = world.plans("CTRCLTrainer", student="CNN")
    folders = [evaluated(world, name, plans=plans) for name in ("mirrored", "plain")]
    assert labels_of(comparisons(*folders)[0]) == ["mirrored", "plain"]


def test_folds_are_put_together_and_must_not_overlap(world):
    world.train("SupervisedTrainer", cases=CASES[:4])
    run = world.train("SupervisedTrainer", cases=CASES[4:], fold=1)
    (comparison,) = comparisons(run)
    assert comparison.cases == CASES
    assert [fold.name for fold in comparison.methods[0].results[0].folds] == ["fold_0", "fold_1"]
    world.train("SupervisedTrainer", cases=CASES[3:], fold=1)
    assert "must validate different cases; in several folds: 1 (p1_t1)" in complaint(run)


def test_other_cases_or_classes_do_not_go_into_one_table(world):
    a = evaluated(world, "a")
    message = complaint(a, evaluated(world, "b", ["p7_t0", *CASES[1:]]))
    assert "of Toy, only a has 1 (p0_t0), and only b has 1 (p7_t0). Predict the same cases with both" in message
    assert "on the same classes; of Toy, only a has 1 (cyst)" in complaint(a, evaluated(world, "c", classes=["liver"]))
    # A table without a dataset.json is checked against the only dataset there is.
    shutil.rmtree(evaluated(world, "d", CASES[:2]))
    assert "only a has 6 (" in complaint(a, world.root / "d.csv")


def test_a_labeled_subset_shares_the_table_of_its_dataset(world):
    a, b = evaluated(world, "a"), evaluated(world, "b", seed=1)
    facts = {**world.facts, "name": "Toy3", "labeled_subset_of": "Toy"}
    write_json(b / "dataset.json", {**facts, "file_ending": ".none"})
    assert [len(comparison.methods) for comparison in comparisons(a, b)] == [2]
    write_json(b / "dataset.json", {**facts, "file_ending": ".none", "labeled_subset_of": "Other"})
    assert [(comparison.dataset, len(comparison.methods)) for comparison in comparisons(a, b)] == [
        ("Toy", 1),
        ("Other", 1),
    ]


# ---------------------------------------------------------------- the baseline and the tests


def test_the_baseline_is_named_or_the_only_supervised_one(world):
    a, b = evaluated(world, "nnUNetTrainer"), evaluated(world, "b", seed=1)
    assert labels_of(comparisons(b, a)[0]) == ["nnUNetTrainer", "b"]
    assert comparisons(b, a, baseline="B")[0].baseline.label == "b"
    c = evaluated(world, "c", seed=2)
    assert comparisons(b, c)[0].no_baseline.startswith("No baseline was named")
    message = complaint(b, c, baseline="x")
    assert "--baseline must name one of the methods; got 'x'. There are: b, c." in message
    write_json(c / "dataset.json", {**world.facts, "name": "Other"})
    assert (
        comparisons(b, c, baseline="b")[1].no_baseline == "None of these methods has the name b, so nothing was tested."
    )


def test_tests_are_scipys_on_the_mean_differences_of_patients(world):
    (comparison,) = comparisons(*(evaluated(world, name, seed=i) for i, name in enumerate("abc")), baseline="b")
    tests = comparisons_frame(comparison).set_index(["metric", "class", "method"])
    cases = {m.label: m.results[0].frame.assign(patient=lambda f: f["case"].str[:2]) for m in comparison.methods}
    means = {
        label: {
            "liver": frame[frame["class"] == "liver"].groupby("patient")["dice"].mean(),
            "cyst": frame[frame["class"] == "cyst"].groupby("patient")["dice"].mean(),
            ALL_CLASSES: frame.groupby("patient")["dice"].mean(),
        }
        for label, frame in cases.items()
    }
    p = {}
    for name, label in [(n, m) for n in (ALL_CLASSES, "liver", "cyst") for m in "ac"]:
        differences = means[label][name] - means["b"][name]
        row, p[name, label] = tests.loc["dice", name, label], stats.wilcoxon(differences).pvalue
        assert (row["difference"], row["p"], row["units"]) == pytest.approx((differences.mean(), p[name, label], 4))
    for names in ([ALL_CLASSES], ["liver", "cyst"]):
        family = [key for key in p if key[0] in names]
        want = dict(zip(family, holm([p[key] for key in family]), strict=True))
        assert {key: tests.loc[("dice", *key), "p_holm"] for key in family} == pytest.approx(want)


def test_best_median_and_worst_by_the_mean_dice(world):
    (comparison,) = comparisons(evaluated(world, "a"))
    result = comparison.methods[0].results[0]
    order = result.frame.groupby("case")["dice"].mean().sort_values(ascending=False).index
    assert ranked_cases(comparison, result) == {"best": order[0], "median": order[4], "worst": order[-1]}
    (few,) = comparisons(evaluated(world, "two", CASES[:2]))
    assert list(ranked_cases(few, few.methods[0].results[0])) == ["best", "worst"]


# ---------------------------------------------------------------- what trainings left, settings, papers


def test_costs_are_read_from_the_log_where_the_curves_do_not_say(world):
    run = world.train("SupervisedTrainer")
    curves = json.loads((run / "fold_0" / "curves.json").read_text())
    del curves["seconds_per_epoch"], curves["peak_memory_bytes"], curves["processes"]
    write_json(run / "fold_0" / "curves.json", curves)
    log = run / "fold_0" / "training_log_2026_1_1.txt"
    log.write_text("This split has 6 training and 2 validation cases.\nepoch time: 3.25 s\nEpoch time: 4.5 s\n")
    (fold,) = read_folds(find_sources([run])[0][0])
    assert (fold.seconds, fold.labeled, fold.unlabeled) == ((3.25, 4.5), 6, 0)
    assert (fold.peak_memory_bytes, fold.processes, fold.device, fold.on_gpu) == (None, 1, "A GPU", True)
    log.unlink()
    (run / "fold_0" / "debug.json").write_text("broken")
    (fold,) = read_folds(find_sources([run])[0][0])
    assert (fold.seconds, fold.labeled, fold.unlabeled, fold.device) == ((), None, None, "")
    run = world.train("SupervisedTrainer", "everything", fold="all")
    (run / "fold_all" / "training_log_2026_1_1.txt").write_text("")
    (fold,) = read_folds(find_sources([run])[0][0])
    assert (fold.labeled, fold.unlabeled) == (8, 0)  # numTraining of dataset.json


def test_only_settings_that_differ_are_listed(world):
    world.train("CTRCLTrainer", "a", beta=2.0, batch_size=4, tau=0.5, students=("CNN", "Transformer"))
    world.train("SupervisedTrainer", "b", beta=2.0, batch_size=None, lr=0.1)
    table = settings_table(comparisons(world.results)[0])
    rows = {line[0].text: [cell.text for cell in line[1:]] for line in table.rows}
    assert table.head[1:] == ["Supervised b / CNN", "CTRCL a / CNN", "CTRCL a / Transformer"]
    assert rows == {
        "trainer": ["SupervisedTrainer", "CTRCLTrainer", "CTRCLTrainer"],
        "batch_size": ["default", "4", "4"],  # but not tau, which one method alone has
        "students.Transformer": ["–", "segformer", "segformer"],  # one line, not one per setting
        "students.CNN.lr": ["0.1", "0.01", "0.01"],
    }


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Dataset027_ACDC", "ACDC"), ("Dataset033_ACDC3", "ACDC"), ("Dataset004_LeftAtrium", "Left atrium"),
        ("LA", "Left atrium"), ("Lager", None), ("Dataset9_BraTS2019", "BraTS 2019"), ("", None),
        ("KvasirSEG", "Kvasir"),
    ],
)  # fmt: skip
def test_papers_are_found_by_the_name_of_the_dataset(name, known):
    frame = published_frame(name)
    assert set(frame["dataset"] if len(frame) else []) == ({known} if known else set())
    if known:
        assert frame[["source", "caveat", "protocol", "method"]].map(len).min().min() > 0
        assert ((frame["distance_unit"] != "") == frame.get("hd95", frame["dice"] * np.nan).notna()).all()
