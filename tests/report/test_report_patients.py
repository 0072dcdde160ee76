"""Which volumes are of one patient, when predictions hold no dataset.json; what stays damaged or stale is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from reporting import CASES, Page, evaluation, predicted, report, write_image, write_json

from nnunet_collab import cli
from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.statistics import paired_test, smallest_p
from nnunet_collab.report.collect import collect
from nnunet_collab.report.sources import find_sources


@pytest.fixture
def monai(world):
    """Two folders of predictions without dataset.json, and labels in a raw dataset: 8 volumes of 4 patients."""
    for kind in ("images", "labels"):
        shutil.copytree(world.raw / f"{kind}Tr", world.raw / f"{kind}Ts")
    for seed, name in enumerate(("net_a", "net_b")):
        for case in CASES:
            write_image(world.root / name / f"{case}.nii.gz", predicted(case, 0.8 + 0.1 * seed, seed))
    return world.root / "net_a", world.root / "net_b"


def evaluate(folder, labels, *more):
    arguments = ["evaluate", "-p", folder, "-l", labels, "-o", folder.with_suffix(".csv"), "-np", "1", *more]
    assert cli.main([*map(str, arguments)]) == 0


def comparison(*paths, **options):
    (only,) = collect(find_sources(paths, **options)[0], processes=1)
    return only


def test_patients_title_and_overlays_are_found_beside_the_labels(world, monai, tmp_path):
    labels = world.raw / "labelsTs"
    folder = report(*monai, "-l", labels, "--baseline", "net_a", "-o", tmp_path / "report")
    text = Page(folder / "report.html").text
    for sentence in (
        "Dataset001_Toy",
        "8 cases of 4 patients (cases predicted after training)",
        "With 4 patients no p can be below 0.125, before correction.",
    ):
        assert sentence in text
    assert "Every case counts as a separate patient" not in text
    assert {path.name for path in (folder / "figures").iterdir()} >= {"overlay_1.png", "overlay_2.png"}
    assert (pd.read_csv(folder / "tests.csv")["units"] == 4).all()


@pytest.mark.parametrize("labels_given", [True, False], ids=["labels given", "tables alone"])
def test_patients_are_known_from_the_tables_of_evaluate(world, monai, labels_given):
    for folder in monai:
        evaluate(folder, world.raw / "labelsTs", "--dataset-json", world.raw / "dataset.json")
    table = pd.read_csv(monai[0].with_suffix(".csv"))
    assert table["patient"].dropna().tolist() == [case[:2] for case in CASES for _ in range(2)]
    found = comparison(*monai, **({"labels": world.raw / "labelsTs"} if labels_given else {}))
    assert found.units == [case[:2] for case in CASES]
    assert found.by_patient


def test_predictions_of_nnunet_and_of_others_are_one_dataset(world, monai):
    world.train("SupervisedTrainer")
    predictions = world.root / "net_c"
    shutil.copytree(monai[0], predictions)
    write_json(predictions / "dataset.json", world.facts)
    write_json(predictions / "plans.json", world.plans("SupervisedTrainer"))
    found = comparison(*monai, predictions, labels=world.raw / "labelsTs")
    assert (found.dataset, len(found.methods)) == ("Dataset001_Toy", 3)
    # Beside the labels in a folder of another name, dataset.json calls it by its short name.
    shutil.copytree(world.raw, world.root / "elsewhere")
    found = comparison(*monai, predictions, labels=world.root / "elsewhere" / "labelsTs")
    assert (found.dataset, len(found.methods)) == ("Dataset001_Toy", 3)


def test_why_patients_are_not_known_is_told_truly(world, tmp_path):
    text = Page(report(evaluation(tmp_path / "a.csv"), "-o", tmp_path / "one") / "report.html").text
    assert "no dataset.json was found next to the predictions or their labels" in text
    assert "its patient_pattern says which cases belong to one patient." in text
    del world.facts["patient_pattern"]
    world.train("SupervisedTrainer")
    text = Page(report(world.results, "-o", tmp_path / "two") / "report.html").text
    assert "dataset.json does not say which cases belong to one patient (patient_pattern)." in text


def test_a_pattern_that_does_not_fit_the_test_cases_leaves_the_column_out(world, monai):
    facts = {**world.facts, "patient_pattern": r"(training\d+)_.*"}
    write_json(world.root / "other.json", facts)
    evaluate(monai[0], world.raw / "labelsTs", "--dataset-json", world.root / "other.json")
    assert "patient" not in pd.read_csv(monai[0].with_suffix(".csv"))


@pytest.mark.parametrize("patients", range(1, 9))
def test_smallest_p_is_that_of_differences_of_one_sign(patients):
    """From the definition: of the 2^n ways to give signs to n ranks, two are as extreme as all of one sign."""
    p = paired_test(np.arange(1.0, patients + 1), [f"{n}" for n in range(patients)]).p
    assert smallest_p(patients) == pytest.approx(p) == pytest.approx(2 / 2**patients)
    assert smallest_p(5) == 0.0625


def test_five_patients_cannot_give_a_p_of_two_thousandths(tmp_path):
    """Ten volumes of five patients, all better with one method."""
    for name, shift in (("a", 0.0), ("b", 0.4)):
        frame = pd.read_csv(evaluation(tmp_path / f"{name}.csv", cases=10, shift=shift))
        frame.insert(1, "patient", [f"p{n // 2}" for n in range(10)])
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    folder = report(tmp_path / "a.csv", tmp_path / "b.csv", "--baseline", "a", "-o", tmp_path / "report")
    assert "With 5 patients no p can be below 0.0625, before correction." in Page(folder / "report.html").text
    tests = pd.read_csv(folder / "tests.csv").set_index(["metric", "class"])
    assert tests.loc[("dice", "liver"), "p"] == pytest.approx(0.0625)
    assert (tests["p"] >= 0.0625).all()


# ---------------------------------------------------------------- damaged and stale files


@pytest.mark.parametrize("which", ["prediction", "label", "image"])
def test_truncated_file_is_refused_by_report(world, tmp_path, which):
    run = world.train("SupervisedTrainer", cases=CASES[:2])
    validation = run.with_name("SupervisedTrainer_CNN__nnUNetPlans__2d") / "fold_0" / "validation"
    case = CASES[0]
    file = {
        "prediction": validation / f"{case}.nii.gz",
        "label": world.raw / "labelsTr" / f"{case}.nii.gz",
        "image": world.raw / "imagesTr" / f"{case}_0000.nii.gz",
    }[which]
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6)])
    with pytest.raises(CollabError, match=rf"{file.name}: cannot be read completely"):
        report(world.results, "-o", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_validation_cases_of_an_earlier_training_are_refused(world):
    run = world.train("SupervisedTrainer", cases=CASES[:4])
    assert comparison(run).cases == CASES[:4]
    log = run / "fold_0" / "training_log_2026_1_2.txt"  # a second training, with another split
    log.write_text("This split has 6 training and 2 validation cases.\n")
    with pytest.raises(
        CollabError, match="2 according to its log; got 4 predictions, so some are from an earlier training"
    ):
        comparison(run)


@pytest.mark.parametrize("content", [{"metric_per_case": 3}, {"metric_per_case": [3]}, {"metric_per_case": "abc"},
                                     {"metric_per_case": [{"reference_file": 7}]}], ids=json.dumps)  # fmt: skip
def test_damaged_summary_is_refused(world, content):
    run = world.train("SupervisedTrainer", cases=CASES[:2])
    summary = run.with_name("SupervisedTrainer_CNN__nnUNetPlans__2d") / "fold_0" / "validation" / "summary.json"
    write_json(summary, content)
    with pytest.raises(CollabError, match=r"metric_per_case of .*summary\.json must be a list of cases"):
        find_sources([run])


def test_labels_of_a_scaled_nifti_are_drawn_as_what_they_are(world, tmp_path):
    """2.9999998 must not be drawn as class 2: it is rounded, not cut off."""
    from nnunet_collab.report import overlays

    world.train("SupervisedTrainer", cases=CASES[:2])
    file = world.raw / "labelsTr" / f"{CASES[0]}.nii.gz"
    labels = sitk.ReadImage(str(file))
    sitk.WriteImage(sitk.Cast(labels, sitk.sitkFloat32) * 0.9999999, str(file))
    found = comparison(world.results)
    drawn, _ = overlays._read(found.methods[0].results[0], CASES[0], "labels")
    assert np.array_equal(drawn, sitk.GetArrayFromImage(labels))
