"""A miniature BraTS 2019: two grades, four sequences, labels 0, 1, 2 and 4, the tables beside the folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mini_la import write_volume

PATIENTS = {
    "HGG": [f"BraTS19_2013_{i}_1" for i in range(12)] + ["BraTS19_CBICA_AAB_1", "BraTS19_TCIA01_147_1"],
    "LGG": [f"BraTS19_TCIA09_{i}_1" for i in range(14)],
}
ALL = sorted(PATIENTS["HGG"] + PATIENTS["LGG"])
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE[1, 3] = 239
SEQUENCES = ("flair", "t1", "t1ce", "t2")


def voxels(patient: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(ALL.index(patient))
    result = {name: rng.integers(0, 900, (5, 4, 3)).astype(np.int16) for name in SEQUENCES}
    seg = rng.choice([0, 1, 2, 4], (5, 4, 3)).astype(np.uint8)
    seg.flat[:4] = 0, 1, 2, 4
    return {**result, "seg": seg}


def write_brats(root: Path) -> Path:
    top = root / "MICCAI_BraTS_2019_Data_Training"
    for grade, patients in PATIENTS.items():
        for patient in patients:
            for name, array in voxels(patient).items():
                write_volume(top / grade / patient / f"{patient}_{name}.nii.gz", array, AFFINE)
    (top / "name_mapping.csv").write_text("Grade\n")
    (top / "HGG" / ".DS_Store").write_bytes(b"a Mac was here")
    return root
