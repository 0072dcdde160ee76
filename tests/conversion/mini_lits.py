"""A miniature LiTS: uncompressed files in two batches, numbers without zeros, segmentations with inexact affines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mini_acdc import ROTATION
from mini_la import write_volume

NUMBERS = [*range(9), 130]
SHAPE = (5, 4, 3)


def affine(number: int) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = ROTATION @ np.diag([0.7, 0.7, 1.5])
    result[:3, 3] = [-172.4, -179.3, -number]
    return result


def inexact(number: int) -> np.ndarray:
    """Half a voxel beside, turned by a quarter of a degree, 0.5 % too large."""
    angle = 0.004
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    result = affine(number)
    result[:3, :3] = turn @ result[:3, :3] * 1.005
    result[:3, 3] += 0.35
    return result


def voxels(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    return rng.integers(-1024, 900, SHAPE).astype(np.int16), rng.integers(0, 3, SHAPE).astype(np.uint8)


def write_lits(root: Path) -> Path:
    for number in NUMBERS:
        image, label = voxels(number)
        place = root / f"Training Batch {1 + number % 2}"
        write_volume(place / f"volume-{number}.nii", image, affine(number))
        write_volume(place / f"segmentation-{number}.nii", label, inexact(number) if number % 3 else affine(number))
    write_volume(root / "Test" / "test-volume-0.nii", voxels(0)[0], affine(0))
    return root
