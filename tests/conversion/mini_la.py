"""A miniature Left Atrium: folders with names of 20 characters, NRRD with labels 0 and 255, an oblique grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from mini_acdc import ROTATION
from raw_source import save

SCANS = [f"{chr(65 + i)}{i}RBREL16DQ6M8LWS{i:02d}XY" for i in range(10)]
SHAPE = (3, 6, 5)  # z, y, x


def geometry(number: int) -> dict[str, tuple[float, ...]]:
    return {
        "Spacing": (0.625, 0.625, 1.25),
        "Origin": (-20.0, 4.5, float(number)),
        "Direction": tuple(ROTATION.ravel()),
    }


def affine(number: int) -> np.ndarray:
    """The same grid as nibabel gives it: right and anterior instead of left and posterior."""
    result = np.eye(4)
    result[:3, :3] = ROTATION @ np.diag([0.625, 0.625, 1.25])
    result[:3, 3] = [-20.0, 4.5, number]
    return np.diag([-1, -1, 1, 1]) @ result


def voxels(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and label (0 and 1), z, y, x."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 255, SHAPE).astype(np.uint8), rng.integers(0, 2, SHAPE).astype(np.uint8)


def write_la(root: Path, scans: list[str] = SCANS) -> Path:
    for number, scan in enumerate(scans):
        image, label = voxels(number)
        save(root / "Training Set" / scan / "lgemri.nrrd", image, **geometry(number))
        save(root / "Training Set" / scan / "laendo.nrrd", label * 255, **geometry(number))
    (root / "Training Set" / "._.DS_Store").write_bytes(b"a Mac was here")
    return root


def write_volume(path: Path, array: np.ndarray, grid: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, grid), path)
    return path
