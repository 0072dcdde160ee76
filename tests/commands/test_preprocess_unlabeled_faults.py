"""Images in imagesUn that cannot be used, or would not be, and preprocessed files that are not whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from unlabeled_images import DATASET_JSON, SHAPE, contents, make_dataset, make_plans, save_image

from nnunet_collab.cli import main
from nnunet_collab.core.files import write_json
from nnunet_collab.data.unlabeled_preprocessing import broken_cases, complete_cases


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return make_dataset(tmp_path, cases=("a", "b"))


def command(*words):
    return main(["preprocess_unlabeled", "-d", "7", "-c", "2d", "-np", "1", *words])


def refusal(capsys, tmp_path, *words, status=2):
    """The message of a refusal, after which the disk is as it was."""
    before = contents(tmp_path)
    assert command(*words) == status
    assert contents(tmp_path) == before
    return capsys.readouterr().err


# ---------------------------------------------------------------- what is not used


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("x_0000.NII.GZ", id="ending-in-capitals"),
        pytest.param("x_0000.nii", id="nii-beside-nii-gz"),
        pytest.param("IM0001.dcm", id="dicom-file"),
        pytest.param("IM0001", id="dicom-file-without-ending"),
        pytest.param("x_0000.PNG", id="png-in-capitals"),
        pytest.param("x.jpg", id="jpg"),
        pytest.param("x_0000.nrrd", id="nrrd-beside-nii-gz"),
        pytest.param("series/", id="folder"),
        pytest.param("x_0000.nii.gz/", id="folder-named-like-an-image"),
        pytest.param("notes.txt", id="notes"),
    ],
)
def test_what_is_not_used_is_named_and_stops_the_command_unless_ignored(dataset, tmp_path, capsys, name):
    place = dataset[0] / "imagesUn" / name
    if name.endswith("/"):
        place.mkdir()
        (place / "1.dcm").touch()
    else:
        place.touch()
    message = refusal(capsys, tmp_path, status=1)
    assert f"all images must be named CASE_0000.nii.gz; 1 entry is not, and not used: {name}." in message
    assert "Nothing was written. To go on without them, add --ignore-others." in message
    assert command("--ignore-others") == 0
    assert f"not used: {name}." in capsys.readouterr().err
    assert complete_cases(dataset[1] / "nnUNetPlans_2d_imagesUn") == ["a", "b"]


def test_hidden_files_and_notes_of_scanners_do_not_count(dataset):
    for name in (".DS_Store", "._a_0000.nii.gz", "a.json", "a_0000.json"):
        (dataset[0] / "imagesUn" / name).touch()
    assert command() == 0


def test_what_is_not_used_is_counted_and_told_beside_other_faults(dataset, tmp_path, capsys):
    for number in range(30):
        (dataset[0] / "imagesUn" / f"s{number:02d}.dcm").touch()
    (dataset[0] / "imagesUn" / "b_0001.nii.gz").unlink()
    message = refusal(capsys, tmp_path)
    assert "2 faults; nothing was written" in message
    assert "all images must be named CASE_0000.nii.gz; 30 entries are not, and not used: s00.dcm, s01.dcm" in message
    assert "s19.dcm and 10 more." in message


# ---------------------------------------------------------------- voxels


def in_format(dataset, ending, reader="SimpleITKIO"):
    """The same images in another format; returns a function that writes voxels as the first channel of a case."""
    raw, preprocessed = dataset
    for path in list((raw / "imagesUn").iterdir()):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ending + "x")[:-1])
        if ending != ".nii.gz":
            path.unlink()
    write_json(preprocessed / "dataset.json", DATASET_JSON | {"file_ending": ending})
    write_json(preprocessed / "nnUNetPlans.json", make_plans() | {"image_reader_writer": reader})
    return lambda case, voxels: save_image(raw / "imagesUn" / f"{case}_0000{ending}", voxels)


@pytest.mark.parametrize(
    ("ending", "reader"), [(".nrrd", "SimpleITKIO"), (".mha", "SimpleITKIO"), (".nii.gz", "NibabelIO")]
)
def test_voxels_that_are_not_finite_are_refused_by_name_all_at_once(dataset, tmp_path, capsys, ending, reader):
    """ITK makes 0 of NaN in NIfTI, so that format is read with nibabel here."""
    write = in_format(dataset, ending, reader)
    for case, bad in {"a": [np.nan], "b": [np.inf, -np.inf]}.items():
        voxels = np.ones(SHAPE, np.float32)
        voxels.flat[: len(bad)] = bad
        if ending == ".nii.gz":
            import nibabel

            path = dataset[0] / "imagesUn" / f"{case}_0000.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), np.eye(4)), path)
        else:
            write(case, voxels)
    message = refusal(capsys, tmp_path)
    assert "2 faults" in message
    for case, count in (("a", 1), ("b", 2)):
        assert (
            f"case {case}: {dataset[0] / 'imagesUn' / f'{case}_0000{ending}'}: intensities must be finite; {count} of "
            in message
        )


@pytest.mark.parametrize(("ending", "components"), [(".nii.gz", 3), (".nrrd", 3), (".mha", 4), (".nrrd", 2)])
def test_colors_are_refused_where_nnunet_reads_gray_images(dataset, tmp_path, capsys, ending, components):
    in_format(dataset, ending)
    image = sitk.GetImageFromArray(np.ones((*SHAPE, components), np.uint8), isVector=True)
    path = dataset[0] / "imagesUn" / f"a_0000{ending}"
    sitk.WriteImage(image, str(path))
    assert f"case a: {path}: every voxel must have one value; it has {components}" in refusal(capsys, tmp_path)


# ---------------------------------------------------------------- plans and dataset.json


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param({}, "it must be a JSON object with entries; it is {}", id="plans-empty-object"),
        pytest.param([], "it must be a JSON object with entries; it is []", id="plans-empty-list"),
        pytest.param(None, "it is null", id="plans-null"),
        pytest.param({"configurations": {}}, "`configurations` must be an object", id="plans-nothing-planned"),
        pytest.param({"configurations": []}, "`configurations` must be an object", id="plans-list-planned"),
        pytest.param({"plans_name": "nnUNetPlans"}, "it is null", id="plans-without-configurations"),
        pytest.param({"configurations": {"2d": {}}}, "its configuration 2d must be as nnU-Net", id="plans-incomplete"),
        pytest.param(
            {"configurations": {"2d": {"data_identifier": "../x"}}}, "it has a path separator", id="plans-lead-outside"
        ),
        pytest.param(
            {"configurations": {"2d": {"inherits_from": "x"}}}, "inherits_from of 2d must be", id="plans-unknown-parent"
        ),
    ],
)  # fmt: skip
def test_plans_that_cannot_be_used(dataset, tmp_path, capsys, content, found):
    write_json(dataset[1] / "nnUNetPlans.json", content)
    assert found in refusal(capsys, tmp_path)


def test_a_dataset_json_of_version_1_without_its_list(dataset, tmp_path, capsys):
    old = {**DATASET_JSON, "modality": DATASET_JSON["channel_names"]}
    del old["channel_names"], old["file_ending"]
    write_json(dataset[1] / "dataset.json", old)
    message = refusal(capsys, tmp_path)
    assert 'it must say file_ending; it does not. Add "file_ending": ".nii.gz".' in message
    assert "nnUNetv2_convert_old_nnUNet_dataset" in message


@pytest.mark.parametrize("name", ["../x", "/x", "..", "a/b", ""])
def test_the_name_of_the_plans_cannot_be_a_path(dataset, tmp_path, capsys, name):
    assert "-p: the name must be a valid file name" in refusal(capsys, tmp_path, "-p", name)


# ---------------------------------------------------------------- preprocessed files


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut off by a byte", "half"])
def test_a_preprocessed_file_that_is_not_whole_is_named_and_done_again(dataset, capsys, ending, damage):
    folder = dataset[1] / "nnUNetPlans_2d_imagesUn"
    assert command() == 0
    path = folder / f"b{ending}"
    whole = path.read_bytes()
    kept = {"missing": None, "empty": b"", "cut off by a byte": whole[:-1], "half": whole[: len(whole) // 2]}[damage]
    path.unlink() if kept is None else path.write_bytes(kept)
    assert complete_cases(folder) == ["a"]
    assert broken_cases(folder) == ([] if (ending, damage) == (".pkl", "missing") else ["b"])
    capsys.readouterr()
    assert command() == 0
    out = capsys.readouterr().out
    assert ("are missing, empty or truncated: b" in out) == bool((ending, damage) != (".pkl", "missing"))
    assert complete_cases(folder) == ["a", "b"]
    assert json.loads((folder / "unlabeled.json").read_text())["plans"]
