"""A miniature ACDC with the oddities of the official archive, written with nibabel and not with our reader."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (9, 7, 3)
ANGLE = 0.4
ROTATION = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]
)  # not along the axes
GROUPS = ("DCM", "NOR")
TRAIN = [f"patient{i:03d}" for i in range(1, 11)]
TEST = ["patient101", "patient102"]


def affine(patient: str) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = ROTATION @ np.diag([1.3671875, 1.3671875, 10.0])
    result[:3, 3] = [-31.5, 12.25, float(patient[-3:])]
    return result


def write_image(path: Path, voxels: np.ndarray, grid: np.ndarray) -> None:
    image = nib.Nifti1Image(voxels, grid)
    image.set_qform(grid, 1)
    image.set_sform(grid, 1)
    nib.save(image, path)


def write_patient(folder: Path, patient: str, frames: tuple[int, ...] = (1, 12)) -> None:
    number = int(patient[-3:])
    rng = np.random.default_rng(number)
    place = folder / patient
    place.mkdir(parents=True)
    (place / "Info.cfg").write_text(
        f"ED: {frames[0]}\nES: 12\nGroup: {GROUPS[number % 2]}\nHeight: 170.0\nNbFrame: 30\n"
    )
    (place / "MANDATORY_CITATION.md").write_text("cite us")
    write_image(place / f"{patient}_4d.nii.gz", rng.integers(0, 9, (*SHAPE, 2)).astype(np.int16), affine(patient))
    for frame in frames:
        kind = np.float32 if frame == 1 else np.int16
        image, label = rng.integers(0, 900, SHAPE).astype(kind), rng.integers(0, 4, SHAPE)
        write_image(place / f"{patient}_frame{frame:02d}.nii.gz", image, affine(patient))
        name = place / f"{patient}_frame{frame:02d}_gt.nii.gz"
        write_image(name, label.astype(np.float64 if number % 2 else np.uint8), affine(patient))


def write_acdc(root: Path) -> Path:
    """Ten training and two test patients; float labels for every other one; files that a converter must ignore."""
    for patient in TRAIN:
        write_patient(root / "training", patient)
    for patient in TEST:
        write_patient(root / "testing", patient)
    for folder in (root, root / "training", root / "testing"):
        (folder / "MANDATORY_CITATION.md").write_text("cite us")
    (root / "training" / "patient001" / "._patient001_frame01.nii.gz").write_bytes(b"a Mac was here")
    return root
