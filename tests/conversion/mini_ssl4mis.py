"""Miniatures of the .h5 files of SSL4MIS (ACDC) and UA-MT (LA), made of originals as they do it."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from mini_acdc import write_patient
from mini_la import geometry
from raw_source import save

PATIENTS = [f"patient{i:03d}" for i in range(1, 9)]
LISTS = {"train": PATIENTS[5::-1], "val": PATIENTS[6:7], "test": PATIENTS[7:]}
LA_SCANS = [f"{chr(72 - i)}SCANXXXXXXXXXXXXXX{i}" for i in range(4)]
LA_SHAPE = (5, 9, 8)  # z, y, x of the original
CROP = (2, 1)  # where the .h5 begins in the original: y, x


def write_h5(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        file.create_dataset("label", data=label, compression="gzip")


def write_list(path: Path, cases: list[str]) -> None:
    path.write_text("".join(f"{case}\n" for case in cases))


def write_acdc_pair(root: Path) -> tuple[Path, Path]:
    """Folders of the .h5 files and of the originals: volumes for all, slices for the training patients."""
    h5, originals = root / "h5", root / "originals"
    for patient in PATIENTS:
        write_patient(originals / "training", patient)  # frames 01 and 12, which SSL4MIS calls 01 and 02
        for frame, official in (("frame01", "frame01"), ("frame02", "frame12")):
            name = originals / "training" / patient / f"{patient}_{official}"
            image = np.asarray(nib.load(f"{name}.nii.gz").dataobj).T.astype(np.float64)
            label = np.asarray(nib.load(f"{name}_gt.nii.gz").dataobj).T.astype(np.uint8)
            image = ((image - image.min()) / (image.max() - image.min())).astype(np.float32)
            write_h5(h5 / "data" / f"{patient}_{frame}.h5", image, label)
            for k in range(len(image)):
                write_h5(h5 / "data" / "slices" / f"{patient}_{frame}_slice_{k + 1}.h5", image[k], label[k])
    for name, patients in LISTS.items():
        write_list(h5 / f"{name}.list", [f"{p}_frame0{i}" for p in patients for i in (1, 2)])
    slices = [f"{p}_frame0{i}_slice_{k}" for p in LISTS["train"] for i in (1, 2) for k in (2, 3, 1)]
    write_list(h5 / "train_slices.list", slices)
    return h5, originals


def la_voxels(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of the original, z, y, x; the label is a box with a hole that touches no border."""
    rng = np.random.default_rng(number)
    label = np.zeros(LA_SHAPE, np.uint8)
    label[1:4, 3:6, 3:6] = 1
    label[2, 4, 4] = 0
    return rng.integers(0, 255, LA_SHAPE).astype(np.uint8), label


def la_h5(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as UA-MT crops and normalizes it, z, y, x."""
    image, label = la_voxels(number)
    image = ((image - image.mean()) / image.std()).astype(np.float32)
    y, x = CROP
    return image[:, y : y + 6, x : x + 6], label[:, y : y + 6, x : x + 6]


def write_la_pair(root: Path) -> tuple[Path, Path]:
    h5, originals = root / "h5", root / "originals"
    for number, scan in enumerate(LA_SCANS):
        image, label = la_voxels(number)
        save(originals / "Training Set" / scan / "lgemri.nrrd", image, **geometry(number))
        save(originals / "Training Set" / scan / "laendo.nrrd", label * 255, **geometry(number))
        image, label = la_h5(number)
        write_h5(h5 / "2018LA_Seg_Training Set" / scan / "mri_norm2.h5", image.T, label.T)
    write_list(h5 / "train.list", LA_SCANS[:3])
    write_list(h5 / "test.list", LA_SCANS[3:])
    return h5, originals
