"""Names that lead outside, labels stored as floats, and the form of version 1: what `split` does with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from unlabeled_images import contents, save_image

from nnunet_collab.cli import main
from nnunet_collab.core.files import write_json

NAME = "Dataset027_Tiny"
CASES = ["a", "b", "c"]
DATASET_JSON = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "x": 1, "y": 2, "z": 3},
    "numTraining": len(CASES),
    "file_ending": ".nii.gz",
}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    raw = tmp_path / "nnUNet_raw" / NAME
    for case in CASES:
        save_image(raw / "imagesTr" / f"{case}_0000.nii.gz", np.ones((2, 3, 4), np.float32))
        save_image(raw / "labelsTr" / f"{case}.nii.gz", np.zeros((2, 3, 4), np.uint8))
    write_json(raw / "dataset.json", DATASET_JSON)
    return raw


def command(*words):
    return main(["split", "-d", "27", *words])


def refusal(capsys, raw, *words):
    before = contents(raw.parents[2])
    assert command(*words) == 2
    assert contents(raw.parents[2]) == before
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../../x", "..", "/tmp_x", "a/b", "a\\b", ".x", "", "a\n"])
@pytest.mark.parametrize(
    "words", [("--labeled", "1", "--to", "28"), ("--labeled", "1"), ("--audit",)], ids=["to", "labeled", "audit"]
)
def test_a_case_of_dataset_json_cannot_lead_outside(raw, capsys, name, words):
    files = {
        case: {"images": [f"imagesTr/{source}_0000.nii.gz"], "label": f"labelsTr/{source}.nii.gz"}
        for case, source in {name: "a", "b": "b"}.items()
    }
    write_json(raw / "dataset.json", {**DATASET_JSON, "dataset": files})
    assert "cannot be a case name, because it becomes a path" in refusal(capsys, raw, *words)


def stored(tmp_path, name, value):
    path = tmp_path / name
    voxels = np.zeros((4, 3, 2), np.float32)
    voxels[1, 1, 1], voxels[0, 0, 0] = value, 1
    save_image(path, voxels)
    return path


@pytest.mark.parametrize("value", [3.0000002, 2.9999998, 2.9995])
def test_labels_that_are_nearly_whole_are_rounded(raw, value):
    stored(raw / "labelsTr", "a.nii.gz", value)
    assert command("--labeled", "a", "--to", "28", "--name", "New") == 0
    label = sitk.ReadImage(str(raw.parent / "Dataset028_New" / "labelsTr" / "a.nii.gz"))
    voxels = sitk.GetArrayFromImage(label)
    assert voxels.dtype == np.int16
    assert voxels.sum() == 4
    assert voxels[1, 1, 1] == 3


def test_labels_that_are_whole_are_linked_as_they_are(raw):
    stored(raw / "labelsTr", "a.nii.gz", 3.0)
    assert command("--labeled", "a", "--to", "28", "--name", "New") == 0
    new = raw.parent / "Dataset028_New" / "labelsTr" / "a.nii.gz"
    assert new.read_bytes() == (raw / "labelsTr" / "a.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(2.5, "2.5", id="label-half"),
        pytest.param(3.0100002, "3.010000229", id="label-with-all-its-digits"),
        pytest.param(1000.002, "1000.002014", id="label-large-and-broken"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_refused_with_their_real_value(raw, capsys, value, shown):
    stored(raw / "labelsTr", "a.nii.gz", value)
    message = refusal(capsys, raw, "--labeled", "a", "--to", "28")
    assert f"case a: {raw / 'labelsTr' / 'a.nii.gz'}: label values must be whole numbers; found {shown}" in message


def test_a_label_that_is_cut_off_is_refused(raw, capsys):
    path = raw / "labelsTr" / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert f"case a: {path}: cannot be read completely (" in refusal(capsys, raw, "--labeled", "a", "--to", "28")


def test_the_form_of_version_1_is_read_and_the_new_dataset_has_that_of_version_2(raw):
    old = {
        "modality": {"0": "T1"},
        "labels": {"0": "background", "1": "x"},
        "numTraining": 3,
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in CASES],
        "test": [],
    }
    write_json(raw / "dataset.json", old)
    assert command("--labeled", "1") == 0
    assert json.loads((raw / "dataset.json").read_text()) == old
    assert command("--labeled", "2", "--to", "28", "--name", "New") == 0
    new = json.loads((raw.parent / "Dataset028_New" / "dataset.json").read_text())
    assert new == {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "x": 1},
        "file_ending": ".nii.gz",
        "numTraining": 2,
        "name": "New",
        "labeled_subset_of": NAME,
    }


@pytest.mark.parametrize("missing", ["file_ending", "labels", "channel_names"])
@pytest.mark.parametrize("words", [("--labeled", "1"), ("--audit",)], ids=["labeled", "audit"])
def test_an_entry_of_dataset_json_that_is_missing(raw, capsys, missing, words):
    write_json(raw / "dataset.json", {key: value for key, value in DATASET_JSON.items() if key != missing})
    assert f"it must say {missing}; it does not. Add " in refusal(capsys, raw, *words)
