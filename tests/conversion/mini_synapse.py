"""A miniature BTCV: file names of the archive, all 13 organs, uneven headers, the published numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mini_acdc import ROTATION
from mini_la import write_volume

NUMBERS = [*range(1, 11), *range(21, 41)]
SHAPE = (5, 4, 3)  # x, y, z


def affine(number: int) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = ROTATION @ np.diag([-0.76, 0.76, 3.0])  # stored from left to right, as the official files
    result[:3, 3] = [150.0, -99.5, number]
    return result


def voxels(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    label = rng.integers(0, 14, SHAPE).astype(np.uint8)
    label.flat[:14] = np.arange(14)
    return rng.integers(-1024, 1500, SHAPE).astype(np.int16), label


def write_synapse(root: Path) -> Path:
    training = root / "RawData" / "Training"
    for number in NUMBERS:
        image, label = voxels(number)
        write_volume(training / "img" / f"img{number:04d}.nii.gz", image, affine(number))
        write_volume(training / "label" / f"label{number:04d}.nii.gz", label, affine(number))
    (training / "img" / "._img0001.nii.gz").write_bytes(b"a Mac was here")
    write_volume(root / "RawData" / "Testing" / "img" / "img0061.nii.gz", *[voxels(61)[0], affine(61)])
    return root
