"""A tiny source for the tests of raw datasets: NRRD volumes on an oblique-axes grid, labels 0 and 255."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.source_check import Case, SourceRules
from nnunet_collab.core.errors import CollabError

INFO = DatasetInfo(
    channel_names={"0": "MRI"},
    labels={"background": 0, "atrium": 1},
    file_ending=".nii.gz",
    patient_pattern=r"(\w+?)_\d+",
    description="d",
    license="l",
    citation="c",
    reference="r",
)
LA = Target(5, "LA")
RULES = SourceRules(label_values={0: 0, 255: 1})


def save(path: Path, voxels: np.ndarray, *, color: bool = False, **geometry: tuple[float, ...]) -> Path:
    image = sitk.GetImageFromArray(voxels, isVector=color)
    for what, value in geometry.items():
        getattr(image, f"Set{what}")(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def pair(folder: Path, name: str, ending: str = ".nrrd") -> Case:
    rng = np.random.default_rng(list(name.encode()))  # different voxels in every case
    geometry = {"Spacing": (0.5, 0.75, 3.0), "Origin": (5.0, -4.0, 2.0), "Direction": (0, 1, 0, 1, 0, 0, 0, 0, -1)}
    image = save(folder / f"{name}{ending}", rng.integers(0, 99, (3, 4, 5)).astype(np.int16), **geometry)
    label = (rng.integers(0, 2, (3, 4, 5)) * 255).astype(np.uint8)
    return Case(name, (image,), save(folder / f"{name}_label{ending}", label, **geometry))


def make_dataset(folder: Path) -> RawDataset:
    return RawDataset(INFO, RULES, [pair(folder, n) for n in ("a_1", "a_2", "b_1")], [pair(folder, "c_1")])


def refusal(dataset: RawDataset, target: Target = LA) -> str:
    with pytest.raises(CollabError) as caught:
        write_raw_dataset(dataset, target)
    return str(caught.value)
