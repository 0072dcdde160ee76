"""The conversion of Synapse: organs renumbered, the published 18 and 12 cases, geometry, refusals."""

from __future__ import annotations

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
from mini_la import write_volume
from mini_synapse import NUMBERS, affine, voxels, write_synapse

TEST = {1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38}
# Value in BTCV -> value in TransUNet's protocol, written out from the two tables of organs.
EIGHT = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}


@pytest.fixture
def source(tmp_path) -> Path:
    return write_synapse(tmp_path / "Abdomen")


def test_values_geometry_and_published_split(source, raw, monkeypatch, capsys):
    convert("synapse", source)
    folder = raw / "Dataset027_Synapse"
    for role, numbers in (("Tr", sorted(set(NUMBERS) - TEST)), ("Ts", sorted(TEST))):
        assert names(folder / f"images{role}") == [f"case{n:04d}" for n in numbers]
        assert len(numbers) == {"Tr": 18, "Ts": 12}[role]
        for number in numbers:
            image, label = voxels(number)
            ours = np.vectorize(lambda value: EIGHT.get(value, 0))(label)
            assert_volume(folder / f"images{role}" / f"case{number:04d}_0000.nii.gz", image, affine(number))
            assert_volume(folder / f"labels{role}" / f"case{number:04d}.nii.gz", ours, affine(number))
    about = facts(folder)
    assert about["labels"] == {
        "background": 0, "aorta": 1, "gallbladder": 2, "left_kidney": 3, "right_kidney": 4, "liver": 5, "pancreas": 6,
        "spleen": 7, "stomach": 8,
    }  # fmt: skip
    assert about["channel_names"] == {"0": "CT"}
    assert about["intensity_unit"] == "HU"
    assert_citable(about)
    assert len(splits(folder)) == 5
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)


def test_all_organs_keep_their_values(source, raw):
    convert("synapse", source / "RawData" / "Training", "--organs", "13", "--labeled", "4")
    folder = raw / "Dataset027_Synapse"
    assert len(names(folder / "labelsTr")) == 4
    assert len(names(folder / "imagesUn")) == 14
    assert_volume(folder / "labelsTs" / "case0001.nii.gz", voxels(1)[1], affine(1))
    labels = facts(folder)["labels"]
    assert len(labels) == 14
    assert (labels["spleen"], labels["aorta"], labels["left_adrenal_gland"]) == (1, 8, 13)


def test_faults(source, raw):
    training = source / "RawData" / "Training"
    (training / "label" / "label0001.nii.gz").unlink()
    (training / "img" / "img0002.nii.gz").unlink()
    write_volume(training / "img" / "img0003.nii", *[voxels(3)[0], affine(3)])
    write_volume(training / "label" / "label0004.nii.gz", np.full((5, 4, 3), 14, np.uint8), affine(4))
    message = refusal(raw, "synapse", source)
    assert f"{training / 'img' / 'img0001.nii.gz'}: the label of this image is missing" in message
    assert f"{training / 'label' / 'label0002.nii.gz'}: the image of this label is missing" in message
    assert f"{training / 'img' / 'img0003.nii.gz'}: there must be one file per case; found" in message
    assert "label values must be 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13; found 14" in message


def test_wrong_folder(tmp_path, raw):
    (tmp_path / "img").mkdir()
    assert "SOURCE must hold the folders img and label" in refusal(raw, "synapse", tmp_path)
    (tmp_path / "label").mkdir()
    assert f"{tmp_path / 'img'}: it must hold img0001.nii.gz and so on; none was found" in refusal(
        raw, "synapse", tmp_path
    )
