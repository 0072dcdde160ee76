"""The conversion of BraTS 2019: label 4, sequences and regions, the published counts, balance of grades, refusals."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

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
from mini_brats import AFFINE, ALL, PATIENTS, SEQUENCES, voxels, write_brats
from mini_la import write_volume
from public_lists import BRATS_TEST, BRATS_TRAIN, BRATS_VALIDATION

from nnunet_collab.conversion.scripts import conversion_folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return write_brats(tmp_path_factory.mktemp("brats"))


def test_flair_and_whole_tumor(pristine, raw, monkeypatch, capsys):
    convert("brats", pristine)
    folder = raw / "Dataset027_BraTS2019"
    train, test = names(folder / "imagesTr"), names(folder / "imagesTs")
    assert sorted([*train, *test]) == ALL
    assert len(test) == 5  # 60 of 335, of 28
    for role, cases in (("Tr", train), ("Ts", test)):
        for name in cases:
            was = voxels(name)
            assert_volume(folder / f"images{role}" / f"{name}_0000.nii.gz", was["flair"], AFFINE)
            assert_volume(folder / f"labels{role}" / f"{name}.nii.gz", was["seg"] > 0, AFFINE)
    about = facts(folder)
    assert about["labels"] == {"background": 0, "whole_tumor": 1}
    assert about["channel_names"] == {"0": "FLAIR"}
    assert "regions_class_order" not in about
    assert "Drawn at random with a fixed seed, balanced over HGG and LGG" in about["split"]
    assert_citable(about)
    (fold,) = splits(folder)
    assert len(fold["val"]) == 2  # 25 of 335
    assert sorted(fold["train"] + fold["val"]) == train
    for cases in (test, fold["val"]):
        high = len(set(cases) & set(PATIENTS["HGG"]))
        assert abs(high - len(cases) / 2) <= 0.5
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)


def test_all_sequences_and_regions(pristine, raw, monkeypatch, capsys):
    convert("brats", pristine / "MICCAI_BraTS_2019_Data_Training", "--modalities", "all", "--task", "regions")
    folder = raw / "Dataset027_BraTS2019"
    about = facts(folder)
    assert about["channel_names"] == {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    assert about["regions_class_order"] == [1, 2, 3]
    for name in names(folder / "labelsTr"):
        was = voxels(name)
        for channel, sequence in enumerate(SEQUENCES):
            assert_volume(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", was[sequence], AFFINE)
        assert_volume(
            folder / "labelsTr" / f"{name}.nii.gz", np.select([was["seg"] == v for v in (1, 2, 4)], [2, 1, 3]), AFFINE
        )
    # The regions by their definition in the challenge, from the values nnU-Net is told.
    values = {name: [v] if isinstance(v, int) else v for name, v in about["labels"].items()}
    of_source = {2: 1, 1: 2, 4: 3}
    assert sorted(of_source[v] for v in (1, 2, 4)) == values["whole_tumor"]
    assert sorted(of_source[v] for v in (1, 4)) == values["tumor_core"]
    assert [of_source[4]] == values["enhancing_tumor"]
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)


def test_few_labels_leave_validation_and_test_as_they_are(pristine, raw):
    convert("brats", pristine)
    whole = raw / "Dataset027_BraTS2019"
    validation, test = splits(whole)[0]["val"], names(whole / "imagesTs")
    convert("brats", pristine, "--labeled", "25%", "--overwrite")
    (fold,) = splits(whole)
    assert fold["val"] == validation
    assert names(whole / "imagesTs") == test
    assert len(fold["train"]) == 5  # a quarter of 28 - 5 - 2
    assert names(whole / "labelsTr") == sorted(fold["train"] + fold["val"])
    assert len(names(whole / "imagesUn")) == 16


def test_faults(pristine, tmp_path, raw):
    source = shutil.copytree(pristine / "MICCAI_BraTS_2019_Data_Training", tmp_path / "copy")
    first, second, third = PATIENTS["LGG"][:3]
    (source / "LGG" / first / f"{first}_flair.nii.gz").unlink()
    (source / "LGG" / second / f"{second}_seg.nii.gz").unlink()
    write_volume(source / "LGG" / third / f"{third}_seg.nii.gz", np.full((5, 4, 3), 3, np.uint8), AFFINE)
    message = refusal(raw, "brats", source)
    assert f"{first}_flair.nii.gz: this file is missing. Copy it again, or remove the folder" in message
    assert f"{second}_seg.nii.gz: this file is missing" in message
    assert "label values must be 0, 1, 2, 4; found 3" in message
    assert "the source has 3 faults" in message


def test_wrong_folder(tmp_path, raw):
    assert "SOURCE must hold the folders HGG and LGG" in refusal(raw, "brats", tmp_path)
    for grade in PATIENTS:
        (tmp_path / grade).mkdir()
    assert "it must hold one folder per patient, BraTS19_2013_10_1 and so on; none was found" in refusal(
        raw, "brats", tmp_path
    )


PUBLISHED = {"TEST": BRATS_TEST, "VALIDATION": BRATS_VALIDATION, "FIRST": BRATS_TRAIN}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_lists_are_the_public_ones_in_their_order_which_says_who_is_labeled(name):
    brats = runpy.run_path(str(conversion_folder() / "brats.py"))
    assert brats[f"SSL4MIS_{name}"].split() == PUBLISHED[name]


@pytest.mark.slow
def test_all_335_patients_take_the_roles_of_the_public_lists(tmp_path, raw):
    lists = {name: [f"BraTS19_{word}" for word in patients] for name, patients in PUBLISHED.items()}
    named = [patient for patients in lists.values() for patient in patients]
    assert [len(patients) for patients in lists.values()] == [60, 25, 50]
    assert len(set(named)) == 135  # nobody has two roles
    everyone = named + [f"BraTS19_2099_{number}" for number in range(200)]
    for patient in everyone:
        folder = tmp_path / "all" / ("HGG" if hash_of(patient) % 4 else "LGG") / f"{patient}_1"
        for name in ("flair", "seg"):
            write_volume(folder / f"{folder.name}_{name}.nii.gz", np.array([[[0, 1]]], np.uint8), AFFINE)
    convert("brats", tmp_path / "all", "--labeled", "25")
    folder = raw / "Dataset027_BraTS2019"
    assert names(folder / "imagesTs") == sorted(f"{patient}_1" for patient in lists["TEST"])
    (fold,) = splits(folder)
    assert fold["val"] == sorted(f"{patient}_1" for patient in lists["VALIDATION"])
    assert fold["train"] == sorted(f"{patient}_1" for patient in lists["FIRST"][:25])
    assert len(names(folder / "imagesUn")) == 225
    assert facts(folder)["split"] == "The lists of SSL4MIS: 250, 25 and 60 patients, by name."
    assert "the first 25 of the list train of SSL4MIS" in str(facts(folder))


def hash_of(name: str) -> int:
    return sum(name.encode())
