"""Everything that asks which cases belong to one patient reads patients.csv: split, audit, training, evaluation, "
"report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from unlabeled_images import save_image

from nnunet_collab.cli import main
from nnunet_collab.core.files import write_json
from nnunet_collab.core.patients import read_patients
from nnunet_collab.evaluation.folders import evaluate_folders
from nnunet_collab.report.collect import collect
from nnunet_collab.report.sources import find_sources
from nnunet_collab.training.case_roles import check_patients, deal_by_patient

NAME = "Dataset027_Own"
PATIENTS = {f"case_{i:04d}": f"patient_{i // 2:04d}" for i in range(8)}
CONTENT = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "x": 1},
    "numTraining": len(PATIENTS),
    "file_ending": ".nii.gz",
    "patients": f"{NAME}/patients.csv",
}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    raw = tmp_path / "nnUNet_raw" / NAME
    for seed, case in enumerate(PATIENTS):
        rng = np.random.default_rng(seed)
        save_image(raw / "imagesTr" / f"{case}_0000.nii.gz", rng.random((2, 3, 4), np.float32))
        save_image(raw / "labelsTr" / f"{case}.nii.gz", rng.integers(0, 2, (2, 3, 4), np.uint8))
    write_json(raw / "dataset.json", CONTENT)
    rows = "".join(f"{case},{patient}\n" for case, patient in PATIENTS.items())
    (raw / "patients.csv").write_text(f"case,patient\n{rows}")
    return raw


def of_one_role(fold):
    roles = [{PATIENTS[case] for case in names} for names in fold.values()]
    return sum(map(len, roles)) == len(set().union(*roles))


def test_split_and_audit_go_by_its_patients(raw, capsys):
    assert main(["split", "-d", "27", "--labeled", "2", "--audit"]) == 0
    printed = capsys.readouterr().out
    assert "Every case is treated as a separate patient" not in printed
    assert "2/4" in printed  # two labeled patients with four cases
    folds = json.loads((raw / "splits_final.json").read_text())
    assert all(map(of_one_role, folds))
    folds[0]["train"].append(folds[0]["val"].pop())
    write_json(raw / "splits_final.json", folds)
    assert main(["split", "-d", "27", "--audit"]) == 2
    assert "a patient must have one role; patient patient_000" in capsys.readouterr().err


def test_a_labeled_subset_takes_the_table_along(raw):
    assert main(["split", "-d", "27", "--labeled", "2", "--to", "28"]) == 0
    subset = raw.with_name("Dataset028_OwnLabeled2")
    assert read_patients(subset / "patients.csv") == PATIENTS
    assert json.loads((subset / "dataset.json").read_text())["patients"] == "Dataset028_OwnLabeled2/patients.csv"
    assert all(map(of_one_role, json.loads((subset / "splits_final.json").read_text())))


def test_a_training_deals_and_checks_by_its_patients(raw):
    preprocessed = raw.parents[1] / "nnUNet_preprocessed" / NAME
    (preprocessed / "2d").mkdir(parents=True)
    for case in PATIENTS:
        (preprocessed / "2d" / f"{case}.pkl").touch()
    splits = preprocessed / "splits_final.json"
    assert deal_by_patient(splits, preprocessed / "2d", CONTENT)
    assert all(map(of_one_role, json.loads(splits.read_text())))
    with pytest.raises(Exception, match="patient patient_0000 is in train and in val"):
        check_patients("here", {"train": ["case_0000"], "val": ["case_0001"]}, CONTENT, preprocessed)
    (raw / "patients.csv").unlink()
    splits.unlink()
    with pytest.raises(
        Exception, match=r"patients.csv: dataset.json says that this table names the patient of each case"
    ):
        deal_by_patient(splits, preprocessed / "2d", CONTENT)  # never silently by case


def test_evaluation_and_report_count_its_patients(raw, tmp_path):
    """The predictions are elsewhere, with a copy of dataset.json as nnU-Net makes it."""
    predictions = tmp_path / "out"
    predictions.mkdir()
    for path in (raw / "labelsTr").iterdir():
        (predictions / path.name).write_bytes(path.read_bytes())
    write_json(predictions / "dataset.json", CONTENT)
    frame = evaluate_folders(predictions, raw / "labelsTr", processes=1, progress=False)
    assert dict(zip(frame["case"], frame["patient"], strict=True)) == PATIENTS
    sources, _ = find_sources([predictions], labels=raw / "labelsTr")
    (comparison,) = collect(sources, processes=1)
    assert comparison.units == list(PATIENTS.values())
    assert comparison.by_patient
