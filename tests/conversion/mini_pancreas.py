"""A miniature Pancreas-CT: DICOM series in folders of studies and series, file names out of order, NIfTI labels whose
rows run the other way and whose headers know nothing of the patient, the withdrawn cases.
"""

from __future__ import annotations

import locale
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from mini_la import write_volume

NUMBERS = [*range(21, 31)]  # with 25, which was withdrawn
SHAPE = (6, 12, 10)  # z, y, x
SPACING = (0.75, 0.75, 1.0)
CORNER = (4, 7, 2)  # of the pancreas in z, y, x: far from the middle, so that every flip shows
ROOT_UID = "1.2.826.0.1.3680043.8.498"


def origin(number: int) -> tuple[float, float, float]:
    """In DICOM's axes: left, posterior, superior."""
    return -187.5, -10.0 - number, 60.25


def affine(number: int) -> np.ndarray:
    """The same grid in nibabel's axes: right, anterior, superior."""
    x, y, z = origin(number)
    result = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    result[:3, 3] = -x, -y, z
    return result


def voxels(number: int) -> tuple[np.ndarray, np.ndarray]:
    """HU and label, z, y, x, both as the patient lies: air and bone, and soft tissue where the pancreas is."""
    rng = np.random.default_rng(number)
    hu = rng.choice([-900, 700], SHAPE).astype(np.int16)
    label = np.zeros(SHAPE, np.uint8)
    z, y, x = CORNER
    label[z : z + 2, y : y + 4, x : x + 3] = 1
    hu[label == 1] = rng.integers(20, 140, int(label.sum()))
    return hu, label


def write_series(folder: Path, hu: np.ndarray, number: int, *, series: int = 1, left_out: tuple[int, ...] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    x, y, z = origin(number)
    uid = f"{ROOT_UID}.{number}.{series}"
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    before = locale.setlocale(locale.LC_ALL)
    for k in (k for k in range(len(hu)) if k not in left_out):
        image = sitk.GetImageFromArray(hu[k : k + 1])
        image.SetSpacing(SPACING)
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"{uid}.{k + 1}", "0008|0060": "CT",
            "0010|0020": f"PANCREAS_{number:04d}", "0020|000d": f"{ROOT_UID}.{number}", "0020|000e": uid,
            "0020|0013": str(k + 1), "0020|0032": f"{x}\\{y}\\{z + k * SPACING[2]}",
            "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-1024", "0028|1053": "1", "0018|0050": str(SPACING[2]),
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"1-{(k * 5) % 7:03d}.dcm"))  # names in another order than the slices
        writer.Execute(image)
    # Writing DICOM leaves the process in the "C" locale, in which Python reads text as ASCII.
    locale.setlocale(locale.LC_ALL, before)


def write_label(path: Path, label: np.ndarray, flip: str) -> None:
    """As the archive's labels lie against the series: voxels flipped, no place in the patient."""
    stored = label[:: -1 if "z" in flip else 1, :: -1 if "y" in flip else 1]
    write_volume(path, stored.transpose(2, 1, 0), np.diag([*SPACING, 1.0]))


def series_folder(root: Path, number: int) -> Path:
    return root / "Pancreas-CT" / f"PANCREAS_{number:04d}" / "11-24-2015-Pancreas" / "Pancreas-23138"


def label_file(root: Path, number: int) -> Path:
    return root / "TCIA_pancreas_labels-02-05-2017" / f"label{number:04d}.nii.gz"


def write_pancreas(root: Path, flip: str = "y") -> Path:
    for number in NUMBERS:
        hu, label = voxels(number)
        if number != 25:
            write_series(series_folder(root, number), hu, number)
        write_label(label_file(root, number), label, flip)
    (root / "Pancreas-CT" / "LICENSE").write_text("CC BY 3.0")
    return root
