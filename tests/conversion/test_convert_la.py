"""The conversion of the Left Atrium: values, geometry, the published lists by name, few labels, refusals."""

from __future__ import annotations

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
from mini_la import SCANS, affine, voxels, write_la
from public_lists import LA_TEST, LA_TRAIN
from raw_source import save


@pytest.fixture
def source(tmp_path) -> Path:
    return write_la(tmp_path / "LA")


def test_values_geometry_and_a_fifth_for_the_test(source, raw, monkeypatch, capsys):
    convert("la", source)
    folder = raw / "Dataset027_LeftAtrium"
    train, test = names(folder / "imagesTr"), names(folder / "imagesTs")
    assert sorted([*train, *test]) == SCANS
    assert len(test) == 2
    for role, cases in (("Tr", train), ("Ts", test)):
        for name in cases:
            image, label = voxels(SCANS.index(name))
            grid = affine(SCANS.index(name))
            assert_volume(folder / f"images{role}" / f"{name}_0000.nii.gz", image.T, grid)
            assert_volume(folder / f"labels{role}" / f"{name}.nii.gz", label.T, grid)
    about = facts(folder)
    assert about["labels"] == {"background": 0, "left_atrium": 1}
    assert about["split"].startswith("Drawn at random with a fixed seed, 80 to 20")
    assert_citable(about)
    assert len(splits(folder)) == 5
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)


def test_the_published_scans_by_name_when_all_hundred_are_there(tmp_path, raw):
    write_la(tmp_path / "LA", [*LA_TRAIN, *LA_TEST])
    convert("la", tmp_path / "LA", "--labeled", "8", "--seed", "3")
    folder = raw / "Dataset027_LeftAtrium"
    assert names(folder / "imagesTs") == sorted(LA_TEST)
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == LA_TRAIN[:8]
    assert names(folder / "imagesUn") == LA_TRAIN[8:]
    about = facts(folder)
    assert about["split"].startswith("The 80 and 20 scans of the public list of UA-MT")
    assert about["labeled_protocol"]["chosen"] == "the first 8 of the public list of UA-MT (alphabetical)"


def test_faults(source, raw):
    place = source / "Training Set"
    (place / SCANS[0] / "laendo.nrrd").unlink()
    (place / SCANS[1] / "lgemri.nrrd").unlink()
    shutil.rmtree(place / SCANS[2])
    (place / SCANS[2]).mkdir()
    save(place / SCANS[3] / "laendo.nrrd", np.full((3, 6, 5), 1, np.uint8))
    message = refusal(raw, "la", source)
    assert f"{place / SCANS[0] / 'lgemri.nrrd'}: the label of this image is missing" in message
    assert f"{place / SCANS[1] / 'laendo.nrrd'}: the image of this label is missing" in message
    assert f"{place / SCANS[2]}: there is neither lgemri.nrrd nor laendo.nrrd" in message
    assert "label values must be 0, 255; found 1" in message
    assert "the spacing must be that of lgemri.nrrd" in message


def test_wrong_folder(source, raw):
    message = refusal(raw, "la", source / "Training Set")
    assert "SOURCE must hold the folder Training Set, as in the official archive" in message
    shutil.rmtree(source / "Training Set")
    (source / "Training Set").mkdir()
    assert "it must hold one folder per scan with lgemri.nrrd and laendo.nrrd; none was found" in refusal(
        raw, "la", source
    )
