"""`nnunet_collab doctor`: whether a dataset is planned and preprocessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_collab.doctor import dataset
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.folders import PREPROCESSED, RAW, RESULTS

DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "x": 1},
    "file_ending": ".nii.gz",
    "numTraining": 3,
}
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
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["case0"], "val": ["case1"]}]))
    (folder / "dataset_fingerprint.json").write_text("[1]")
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
    assert finding.fix == "nnUNetv2_preprocess -d 27 -plans_name nnUNetPlans -c 2d"


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
    assert finding.fix == "nnUNetv2_preprocess -d 27 -plans_name nnUNetPlans -c 3d_fullres"


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
    assert (finding.status, finding.text) == ("FAIL", "dataset 27 can be Dataset027_ACDC or Dataset027_Other")
    assert len(list(dataset.check_dataset("Dataset027_ACDC"))) == 1


def test_a_configuration_s_own_data_win_over_what_it_inherits(tmp_path):
    preprocess(tmp_path, "planned", 3)
    preprocess(tmp_path, "own", 1)
    configurations = {"2d": {"data_identifier": "planned"}, "mine": {"inherits_from": "2d", "data_identifier": "own"}}
    assert dataset.preprocessed_cases(tmp_path, {"configurations": configurations}) == {"2d": 3, "mine": 1}


def test_inheritance_that_runs_in_a_circle_ends():
    plans = {"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a", "data_identifier": "x"}}}
    assert dataset.preprocessed_cases(Path("nowhere"), plans) == {"a": 0, "b": 0}


# ---------------------------------------------------------------- files that nobody can read, and imagesUn


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        pytest.param("dataset.json", "{", "it ends too early", id="doctor-dataset-json-truncated"),
        pytest.param(
            "dataset.json", "[]", "must be a JSON object with entries; it is []", id="doctor-dataset-json-list"
        ),
        pytest.param(
            "dataset.json", '{"numTraining": 3}', "it must say channel_names", id="doctor-dataset-json-entries"
        ),
        pytest.param("splits_final.json", "[]", "must be a list of at least one fold", id="doctor-split-without-folds"),
        pytest.param("splits_final.json", "{}", "must be a list of at least one fold", id="doctor-split-is-an-object"),
        pytest.param("nnUNetPlans.json", "{}", "must be a JSON object with entries", id="doctor-plans-empty"),
        pytest.param(
            "nnUNetPlans.json",
            '{"configurations": {"2d": 1}}',
            "`configurations` must be an object",
            id="doctor-plans-form",
        ),
        pytest.param("otherPlans.json", "[}", "it must be JSON", id="doctor-plans-broken"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_failure(preprocessed, file, content, found):
    (preprocessed / file).write_text(content)
    failures = [finding for finding in dataset.check_dataset("27") if finding.status == "FAIL"]
    assert [finding for finding in failures if str(preprocessed / file) in finding.text and found in finding.text]


def test_a_raw_dataset_without_dataset_json_is_a_failure(preprocessed, tmp_path):
    (tmp_path / "nnUNet_raw" / preprocessed.name).mkdir()
    texts = [finding.text for finding in dataset.check_dataset("27") if finding.status == "FAIL"]
    assert any("nnUNet_raw" in text and "dataset.json: the file must exist; it does not" in text for text in texts)


def test_unlabeled_cases_are_counted_and_what_is_not_used_is_named(preprocessed, tmp_path):
    preprocess(preprocessed, "nnUNetPlans_2d", 3)
    images = tmp_path / "nnUNet_raw" / preprocessed.name / "imagesUn"
    images.mkdir(parents=True)
    (images.parent / "dataset.json").write_text(json.dumps(DATASET_JSON))
    for name in ("u_0000.nii.gz", "v_0000.nii.gz", ".DS_Store"):
        (images / name).touch()
    found = next(dataset.check_dataset("27"))
    assert (found.status, found.fix) == ("warn", "nnunet_collab preprocess_unlabeled -d 27 -c CONFIGURATION")
    assert found.text == "Dataset027_ACDC: imagesUn holds 2 cases; preprocessed for no configuration"
    preprocess(preprocessed, "nnUNetPlans_3d_fullres_imagesUn", 2)
    found = next(dataset.check_dataset("27"))
    assert found.status == "ok"
    assert found.text.endswith("imagesUn holds 2 cases; preprocessed for 3d_fullres of nnUNetPlans (2)")
    (images / "w_0000.NII.GZ").touch()
    (images / "series").mkdir()
    found = next(dataset.check_dataset("27"))
    assert found.status == "warn"
    assert found.text.endswith("; 2 other entries are not used: series/, w_0000.NII.GZ")
