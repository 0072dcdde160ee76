"""The conversion of Kvasir-SEG: pictures of many sizes, masks made binary, few counts published, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from converting import assert_citable, assert_nnunet_finds_no_fault, convert, facts, names, refusal, splits
from mini_kvasir import PICTURES, truth, write_kvasir
from PIL import Image


@pytest.fixture
def source(tmp_path) -> Path:
    return write_kvasir(tmp_path / "Kvasir-SEG")


def test_pixels_and_seeded_split(source, raw, monkeypatch, capsys):
    gray = np.asarray(Image.open(source / "masks" / f"{PICTURES[0]}.jpg"))
    assert len(np.unique(gray)) > 2  # the oddity is in the miniature
    convert("kvasir", source.parent)
    folder = raw / "Dataset027_KvasirSEG"
    train, test = names(folder / "imagesTr"), names(folder / "imagesTs")
    assert (len(train), len(test)) == (9, 1)
    assert sorted([*train, *test]) == PICTURES
    for role, cases in (("Tr", train), ("Ts", test)):
        for name in cases:
            picture = np.asarray(Image.open(folder / f"images{role}" / f"{name}_0000.png")).astype(int)
            was = np.asarray(Image.open(source / "images" / f"{name}.jpg"))
            assert picture.shape == was.shape
            assert np.abs(picture - was).max() <= 2  # decoders of JPEG round differently
            mask = np.asarray(Image.open(folder / f"labels{role}" / f"{name}.png"))
            assert mask.dtype == np.uint8
            assert np.array_equal(mask, truth(PICTURES.index(name)))
    about = facts(folder)
    assert about["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert about["file_ending"] == ".png"
    assert "Drawn at random with a fixed seed: the paper gives only the numbers" in about["split"]
    assert "does not say which pictures are of one patient" in about["description"]
    assert_citable(about)
    assert len(splits(folder)) == 5
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)


def test_faults(source, raw):
    (source / "masks" / f"{PICTURES[0]}.jpg").unlink()
    Image.fromarray(np.full((24, 40), 128, np.uint8)).save(source / "masks" / f"{PICTURES[1]}.jpg")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(source / "masks" / f"{PICTURES[2]}.jpg")
    Image.fromarray(np.zeros((33, 34), np.uint8)).save(source / "images" / f"{PICTURES[3]}.jpg")
    (source / "images" / f"{PICTURES[4]}.jpg").write_bytes(b"no picture")
    message = refusal(raw, "kvasir", source)
    assert "the label of this image is missing" in message
    assert f"{PICTURES[1]}.jpg: a mask must be black and white; 100% of its pixels are gray" in message
    assert f"{PICTURES[2]}.jpg: the size must be that of {PICTURES[2]}.jpg, (36, 30); it is (9, 9)" in message
    assert f"{source / 'images' / PICTURES[3]}.jpg: every pixel must have 3 value(s); it has 1" in message
    assert f"{source / 'images' / PICTURES[4]}.jpg: cannot be read completely" in message


def test_wrong_folder(tmp_path, raw):
    assert "SOURCE must hold the folders images and masks" in refusal(raw, "kvasir", tmp_path)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    assert "it must hold pictures; none was found" in refusal(raw, "kvasir", tmp_path)
