"""`nnunet_collab doctor`: whether a dataset is planned and preprocessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_collab.doctor import dataset
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.folders import PREPROCESSED, RAW, RESULTS

VARIABLES = (RAW, PREPROCESSED, RESULTS)


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """Dataset027_ACDC with three cases, planned in 2D and 3D, nothing preprocessed."""
    for name in VARIABLES:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset027_ACDC"
    folder.mkdir()
    configurations = {
        "2d": {"data_identifier": "nnUNetPlans_2d"},
        "2d_small": {"inherits_from": "2d", "patch_size": [64, 64]},
        "3d_lowres": {"data_identifier": "nnUNetPlans_3d_lowres"},
        "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": configurations}))
    (folder / "dataset.json").write_text(json.dumps({"numTraining": 3}))
    (folder / "splits_final.json").write_text("[]")
    (folder / "broken.json").write_text("{")
    return folder


def preprocess(folder, identifier, cases):
    (folder / identifier).mkdir(exist_ok=True)
    for case in range(cases):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / identifier / f"case{case}{ending}").touch()


@pytest.mark.parametrize("name", ["27", "027", "Dataset027_ACDC"])
def test_a_dataset_that_is_preprocessed(name, preprocessed):
    preprocess(preprocessed, "nnUNetPlans_2d", 3)
    assert list(dataset.check_dataset(name)) == [
        Finding(
            "ok",
            "Dataset027_ACDC, nnUNetPlans: preprocessed 2d (3 cases), 2d_small (3 cases); "
            "planned only 3d_lowres, 3d_fullres",
        )
    ]


def test_a_dataset_that_is_planned_only(preprocessed):
    (finding,) = dataset.check_dataset("27")
    assert finding.status == "FAIL"
    assert "preprocessed nothing; planned only 2d, 2d_small, 3d_lowres, 3d_fullres" in finding.text
    assert finding.mend == "nnUNetv2_preprocess -d 27 -plans_name nnUNetPlans -c 2d"


def test_other_plans_that_are_not_preprocessed_are_no_failure(preprocessed):
    preprocess(preprocessed, "nnUNetPlans_2d", 3)
    other = {"configurations": {"2d": {"data_identifier": "others_2d"}}}
    (preprocessed / "aPlans.json").write_text(json.dumps(other))
    assert [finding.status for finding in dataset.check_dataset("27")] == ["warn", "ok"]


def test_a_dataset_of_which_cases_are_missing(preprocessed):
    preprocess(preprocessed, "nnUNetPlans_3d_fullres", 2)
    (finding,) = dataset.check_dataset("27")
    assert finding.status == "warn"
    assert finding.text.endswith("3d_fullres (2 cases); planned only 2d, 2d_small, 3d_lowres; the dataset has 3 cases")
    assert finding.mend == "nnUNetv2_preprocess -d 27 -plans_name nnUNetPlans -c 3d_fullres"


def test_a_dataset_that_is_not_planned(preprocessed):
    (preprocessed / "nnUNetPlans.json").unlink()
    (finding,) = dataset.check_dataset("27")
    assert finding == Finding(
        "FAIL",
        f"Dataset027_ACDC is not planned: there are no plans in {preprocessed}",
        "nnUNetv2_plan_and_preprocess -d 27 -c 2d --verify_dataset_integrity",
    )


@pytest.mark.parametrize("name", ["28", "2", "Dataset027", "ACDC"])
def test_a_dataset_that_does_not_exist(name, preprocessed):
    (finding,) = dataset.check_dataset(name)
    assert (finding.status, finding.text.split(":")[0]) == ("FAIL", f"dataset {name}")


def test_an_id_that_two_datasets_have(preprocessed, tmp_path):
    (tmp_path / "nnUNet_raw" / "Dataset027_Other").mkdir()
    (finding,) = dataset.check_dataset("27")
    assert (finding.status, finding.text) == ("FAIL", "dataset 27 may be Dataset027_ACDC or Dataset027_Other")
    assert len(list(dataset.check_dataset("Dataset027_ACDC"))) == 1


def test_a_configuration_s_own_data_win_over_what_it_inherits(tmp_path):
    preprocess(tmp_path, "planned", 3)
    preprocess(tmp_path, "own", 1)
    configurations = {"2d": {"data_identifier": "planned"}, "mine": {"inherits_from": "2d", "data_identifier": "own"}}
    assert dataset.preprocessed_cases(tmp_path, {"configurations": configurations}) == {"2d": 3, "mine": 1}


def test_inheritance_that_runs_in_a_circle_ends():
    plans = {"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a", "data_identifier": "x"}}}
    assert dataset.preprocessed_cases(Path("nowhere"), plans) == {"a": 0, "b": 0}
