"""What the tests of `convert own` share: run it, and write volumes with nibabel and pictures with Pillow."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from converting import convert, refusal

from nnunet_collab.core.nnunet_folders import RAW

AFFINE = np.array([[0.0, -0.8, 0.0, 11.0], [0.6, 0.0, 0.0, -7.0], [0.0, 0.0, 2.5, 30.0], [0.0, 0.0, 0.0, 1.0]])
SHAPE = (7, 6, 4)


def own(source: Path, *more: str) -> Path:
    """Convert, and return the folder of the dataset."""
    convert("own", source, *more)
    return Path(os.environ[RAW], "Dataset027_Own")


def refused(source: Path, *more: str) -> str:
    """The message of a conversion that must refuse, after making sure that nothing was written."""
    return refusal(Path(os.environ[RAW]), "own", source, *more)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 2000, SHAPE).astype(np.int16)


def label(seed: int, values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    return np.random.default_rng(seed + 999).choice(values, SHAPE).astype(np.uint8)


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def write_volumes(source: Path, images: str = "images", labels: str | None = "labels", *, seeds: range) -> list[str]:
    """Cases named anna0, anna1, ...; returns their names."""
    for seed in seeds:
        write_volume(source / images / f"anna{seed}.nii.gz", image(seed))
        if labels:
            write_volume(source / labels / f"anna{seed}.nii.gz", label(seed))
    return [f"anna{seed}" for seed in seeds]


@pytest.fixture
def nnunet(tmp_path, monkeypatch) -> Path:
    """nnU-Net's folders, empty; returns nnUNet_raw, which does not exist yet."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    return tmp_path / "nnUNet_raw"
