"""The conversion of LiTS: names, inexact affines within the tolerance and beyond it, half of the labels, refusals."""

from __future__ import annotations

from pathlib import Path

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
from mini_la import write_volume
from mini_lits import NUMBERS, affine, inexact, voxels, write_lits


@pytest.fixture
def source(tmp_path) -> Path:
    return write_lits(tmp_path / "LiTS")


def test_labels_take_the_volumes_grid(source, raw, monkeypatch, capsys):
    convert("lits", source)
    folder = raw / "Dataset027_LiTS"
    train, test = names(folder / "imagesTr"), names(folder / "imagesTs")
    assert sorted([*train, *test]) == [f"lits_{number:03d}" for number in NUMBERS]
    assert len(test) == 2
    for role, cases in (("Tr", train), ("Ts", test)):
        for name in cases:
            number = int(name[-3:])
            image, label = voxels(number)
            assert_volume(folder / f"images{role}" / f"{name}_0000.nii.gz", image, affine(number))
            assert_volume(folder / f"labels{role}" / f"{name}.nii.gz", label, affine(number))
    about = facts(folder)
    assert about["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    assert about["intensity_unit"] == "HU"
    assert "Drawn at random by patient with a fixed seed" in about["split"]
    assert_citable(about)
    assert len(splits(folder)) == 5
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)


def test_half_of_the_labels(source, raw):
    convert("lits", source, "--labeled", "50%")
    folder = raw / "Dataset027_LiTS"
    assert len(names(folder / "labelsTr")) == len(names(folder / "imagesUn")) == 4
    assert facts(folder)["labeled_protocol"]["protocol"] == "50%"


@pytest.mark.parametrize(
    ("what", "told"), [("origin", "the origin must be"), ("spacing", "the spacing must be"), ("axes", "the direction")]
)
def test_beyond_the_tolerance(source, raw, what, told):
    grid = affine(1)
    if what == "origin":
        grid[2, 3] += 0.8  # more than a voxel of the finest axis
    elif what == "spacing":
        grid[:3, :3] *= 1.02
    else:
        grid[:3, 1] *= -1
    write_volume(source / "Training Batch 2" / "segmentation-1.nii", voxels(1)[1], grid)
    message = refusal(raw, "lits", source)
    assert "the source has one fault" in message
    assert f"segmentation-1.nii: {told}" in message


def test_faults(source, raw, tmp_path):
    (source / "Training Batch 1" / "segmentation-0.nii").unlink()
    (source / "Training Batch 2" / "volume-1.nii").unlink()
    write_volume(source / "volume-2.nii", voxels(2)[0], inexact(2))
    message = refusal(raw, "lits", source)
    assert "volume-0.nii: the label of this image is missing" in message
    assert "segmentation-1.nii: the image of this label is missing" in message
    assert f"{source / 'volume-2.nii'}: there must be one file per case; found" in message
    (tmp_path / "empty").mkdir()
    assert "it must hold volume-0.nii, segmentation-0.nii and so on; none was found" in refusal(
        raw, "lits", tmp_path / "empty"
    )
