"""SSL4MIS-style .h5 files: volumes, slices and crops; geometry restored or said to be unknown; lists; refusals."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from converting import (
    assert_citable,
    assert_nnunet_finds_no_fault,
    assert_volume,
    convert,
    facts,
    names,
    refusal,
    splits,
)
from mini_acdc import affine as acdc_affine
from mini_la import affine as la_affine
from mini_ssl4mis import CROP, LA_SCANS, LISTS, PATIENTS, la_h5, write_acdc_pair, write_h5, write_la_pair, write_list
from raw_source import save

from nnunet_collab.conversion.h5_volumes import H5Volume, restored
from nnunet_collab.core.errors import CollabError

UNKNOWN = np.diag([-1.0, -1.0, 1.0, 1.0])  # SimpleITK's identity, in nibabel's axes


@pytest.fixture
def acdc(tmp_path) -> tuple[Path, Path]:
    return write_acdc_pair(tmp_path)


@pytest.fixture
def la(tmp_path) -> tuple[Path, Path]:
    return write_la_pair(tmp_path)


def frames(patients: list[str]) -> list[str]:
    return sorted(f"{patient}_frame0{i}" for patient in patients for i in (1, 2))


def original_label(folder: Path, name: str) -> np.ndarray:
    patient, frame = name.split("_")
    official = {"frame01": "frame01", "frame02": "frame12"}[frame]
    return np.asarray(nib.load(folder / "training" / patient / f"{patient}_{official}_gt.nii.gz").dataobj)


@pytest.mark.parametrize("kind", ["volumes", "slices"])
def test_acdc_with_originals(acdc, raw, monkeypatch, capsys, kind):
    source, originals = acdc
    if kind == "slices":
        for path in (source / "data").glob("*.h5"):
            path.unlink()
    convert("ssl4mis", source, "--originals", str(originals))
    folder = raw / "Dataset027_SSL4MIS"
    train_and_val = frames(LISTS["train"] + LISTS["val"])
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == train_and_val
    assert names(folder / "imagesTs") == names(folder / "labelsTs") == frames(LISTS["test"])
    for role, cases in (("Tr", train_and_val), ("Ts", frames(LISTS["test"]))):
        for name in cases:
            grid = acdc_affine(name.split("_")[0])
            assert_volume(folder / f"labels{role}" / f"{name}.nii.gz", original_label(originals, name), grid)
            image = nib.load(folder / f"images{role}" / f"{name}_0000.nii.gz")
            assert np.allclose(image.affine, grid, atol=1e-4)
            assert (image.dataobj[:].min(), image.dataobj[:].max()) == (0, 1)
    about = facts(folder)
    assert about["geometry"] == "restored from the original images"
    assert "spacing_unknown" not in about
    assert_citable(about)
    (fold,) = splits(folder)
    assert fold == {"train": frames(LISTS["train"]), "val": frames(LISTS["val"])}
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)


def test_acdc_without_originals_says_that_the_spacing_is_unknown(acdc, raw, capsys):
    source, originals = acdc
    convert("ssl4mis", source)
    assert "The spacing is unknown and written as 1" in capsys.readouterr().out
    folder = raw / "Dataset027_SSL4MIS"
    assert facts(folder)["spacing_unknown"] is True
    for name in names(folder / "labelsTr"):
        assert_volume(folder / "labelsTr" / f"{name}.nii.gz", original_label(originals, name), UNKNOWN)


def test_la_with_originals(la, raw):
    source, originals = la
    convert("ssl4mis", source, "--originals", str(originals))
    folder = raw / "Dataset027_SSL4MIS"
    assert (names(folder / "imagesTr"), names(folder / "imagesTs")) == (sorted(LA_SCANS[:3]), LA_SCANS[3:])
    for number, scan in enumerate(LA_SCANS):
        role = "Tr" if number < 3 else "Ts"
        grid = la_affine(number)
        grid[:3, 3] = (grid @ [CROP[1], CROP[0], 0, 1])[:3]
        image, label = la_h5(number)
        assert_volume(folder / f"images{role}" / f"{scan}_0000.nii.gz", image.T, grid)
        assert_volume(folder / f"labels{role}" / f"{scan}.nii.gz", label.T, grid)


def test_few_labels_are_the_first_of_the_list(acdc, raw):
    source, _ = acdc
    convert("ssl4mis", source, "--labeled", "2")
    folder = raw / "Dataset027_SSL4MIS"
    assert names(folder / "labelsTr") == frames(LISTS["train"][:2] + LISTS["val"])
    assert names(folder / "imagesUn") == frames(LISTS["train"][2:])
    chosen = facts(folder)["labeled_protocol"]["chosen"]
    assert chosen == "the first 2 of the list of training cases beside the .h5 files"


def test_without_lists_all_cases_train(la, raw):
    source, _ = la
    for path in source.glob("*.list"):
        path.unlink()
    convert("ssl4mis", source)
    folder = raw / "Dataset027_SSL4MIS"
    assert names(folder / "imagesTr") == sorted(LA_SCANS)
    assert facts(folder)["split"] == "There were no lists: all cases are training cases."
    for number, scan in enumerate(LA_SCANS):
        assert_volume(folder / "labelsTr" / f"{scan}.nii.gz", la_h5(number)[1].T, UNKNOWN)


def test_what_is_on_no_list_is_left_out_and_lists_may_lie_in_flods(la, raw, capsys):
    source, _ = la
    (source / "Flods").mkdir()
    write_list(source / "Flods" / "test.txt", [f"{LA_SCANS[3]}/mri_norm2.h5"])
    (source / "test.list").unlink()
    write_list(source / "train.list", LA_SCANS[:2])
    convert("ssl4mis", source)
    assert f"Leaving out 1 cases that are not in a list: {LA_SCANS[2]}" in capsys.readouterr().out
    folder = raw / "Dataset027_SSL4MIS"
    assert (names(folder / "imagesTr"), names(folder / "imagesTs")) == (sorted(LA_SCANS[:2]), LA_SCANS[3:])


def test_only_a_test_list_leaves_the_others_to_train(la, raw):
    source, _ = la
    (source / "train.list").unlink()
    convert("ssl4mis", source)
    assert names(raw / "Dataset027_SSL4MIS" / "imagesTr") == sorted(LA_SCANS[:3])


def test_faults_of_lists(acdc, raw):
    source, _ = acdc
    write_list(source / "train.list", ["patient999_frame01", *frames(PATIENTS[:6])])
    write_list(source / "val.list", frames(PATIENTS[5:7]))
    message = refusal(raw, "ssl4mis", source)
    assert f"{source / 'train.list'}: every line must name a case of the source; there is no patient999" in message
    assert "a patient must be in one list; in those of train and of val: patient006." in message


def test_faults_of_files(acdc, raw):
    source, _ = acdc
    data = source / "data"
    image, label = np.zeros((3, 7, 9), np.float32), np.zeros((3, 7, 9), np.uint8)
    (data / "patient001_frame01.h5").write_bytes(b"no hdf5")
    write_h5(data / "patient002_frame01.h5", image, label[:, :, 1:])
    write_h5(data / "patient003_frame01.h5", image, label + 4)
    write_h5(data / "copy" / "patient004_frame01.h5", image, label)
    for frame in ("frame01", "frame02"):
        (data / f"patient005_{frame}.h5").unlink()
    (data / "slices" / "patient005_frame01_slice_2.h5").unlink()
    write_h5(data / "slices" / "patient005_frame02_slice_2.h5", image[0, 1:], label[0, 1:])
    message = refusal(raw, "ssl4mis", source)
    assert f"{data / 'patient001_frame01.h5'}: cannot be read completely (image: " in message
    assert f"{data / 'patient002_frame01.h5'}: the size must be that of patient002_frame01.h5" in message
    assert f"{data / 'patient003_frame01.h5'}: label values must be 0, 1, 2, 3; found 4" in message
    assert "patient004_frame01.h5: there must be one file per case; found" in message
    assert "the slices of patient005_frame01 must be numbered without gaps from 0 or 1; found 1, 3" in message
    assert "all slices of a volume must have the same size; found (6, 9), (7, 9)" in message


def test_a_file_without_the_arrays(la, raw):
    import h5py

    source, _ = la
    with h5py.File(source / "2018LA_Seg_Training Set" / LA_SCANS[0] / "mri_norm2.h5", "w") as file:
        file.create_dataset("other", data=np.zeros(3))
    assert "cannot be read completely (image: " in refusal(raw, "ssl4mis", source)


def test_acdc_originals_that_do_not_fit(acdc, raw):
    source, originals = acdc
    training = originals / "training"
    shutil.rmtree(training / "patient001")
    for frame in ("frame01", "frame12"):
        other = nib.load(training / "patient003" / f"patient003_{frame}.nii.gz")
        nib.save(other, training / "patient002" / f"patient002_{frame}.nii.gz")
        nib.save(other.slicer[:, :, :2], training / "patient004" / f"patient004_{frame}.nii.gz")
    message = refusal(raw, "ssl4mis", source, "--originals", str(originals))
    assert f"its original patient001_frame02.nii.gz must be below {originals}; it is not" in message
    assert "patient002_frame01.h5: the intensities must be those of" in message
    assert "patient004_frame02.h5: the size must be that of its original" in message


def test_la_originals_that_do_not_fit(la, raw):
    source, originals = la
    place = originals / "Training Set"
    (place / LA_SCANS[0] / "laendo.nrrd").unlink()
    shutil.copy(place / LA_SCANS[3] / "lgemri.nrrd", place / LA_SCANS[1] / "lgemri.nrrd")
    save(place / LA_SCANS[2] / "laendo.nrrd", np.ones((5, 9, 8), np.uint8))
    image, label = la_h5(3)
    write_h5(source / "2018LA_Seg_Training Set" / LA_SCANS[3] / "mri_norm2.h5", image.T, 0 * label.T)
    message = refusal(raw, "ssl4mis", source, "--originals", str(originals))
    assert f"its originals {LA_SCANS[0]}/lgemri.nrrd and laendo.nrrd must be below {originals}" in message
    assert f"the intensities must be those of {place / LA_SCANS[1] / 'lgemri.nrrd'}" in message
    assert f"the label must be that of {place / LA_SCANS[2] / 'lgemri.nrrd'}; it differs" in message
    assert "is found from its label, so the label must not" in message


def test_a_frame_by_its_official_number(acdc, raw):
    source, originals = acdc
    for path in [*source.rglob("*_frame02*.h5")]:
        path.rename(path.with_name(path.name.replace("frame02", "frame12")))
    for path in source.glob("*.list"):
        path.write_text(path.read_text().replace("frame02", "frame12"))
    convert("ssl4mis", source, "--originals", str(originals))
    folder = raw / "Dataset027_SSL4MIS"
    want = original_label(originals, "patient001_frame02")
    assert_volume(folder / "labelsTr" / "patient001_frame12.nii.gz", want, acdc_affine("patient001"))


def test_refusals_before_reading(acdc, la, tmp_path, raw, monkeypatch):
    source, _ = acdc
    assert "SOURCE must hold either ACDC or LA; found both" in refusal(raw, "ssl4mis", source)  # one folder, both made
    (tmp_path / "empty").mkdir()
    assert "it must hold patient001_frame01.h5 and so on, or */mri_norm2.h5; none was found" in refusal(
        raw, "ssl4mis", tmp_path / "empty"
    )
    message = refusal(raw, "ssl4mis", source, "--originals", str(tmp_path / "nowhere"))
    assert f"--originals: must be the folder of the official data; {tmp_path / 'nowhere'} is not one" in message
    monkeypatch.setitem(sys.modules, "h5py", None)
    message = refusal(raw, "ssl4mis", source)
    assert "reading .h5 files needs the package h5py" in message
    assert "pip install 'nnunet-collab[h5]'" in message


def test_restored_is_for_volumes_with_an_original():
    with pytest.raises(ValueError, match="the volume has no original"):
        restored(H5Volume((Path("x.h5"),)), (1, 2, 3))


def test_a_constant_image_is_compared_too(tmp_path):
    save(tmp_path / "o.nrrd", np.full((2, 3, 4), 7, np.uint8))
    write_h5(tmp_path / "a.h5", np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.uint8))
    write_h5(tmp_path / "b.h5", np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.zeros((2, 3, 4), np.uint8))
    H5Volume((tmp_path / "a.h5",), original=tmp_path / "o.nrrd").read("image")
    with pytest.raises(CollabError, match="the intensities must be those of"):
        H5Volume((tmp_path / "b.h5",), original=tmp_path / "o.nrrd").read("image")
