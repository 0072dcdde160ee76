"""Voxels of predicted foreground in unlabeled images, on which crops can be centered.

nnU-Net centers a third of the labeled crops on foreground. With small organs in large volumes, most crops at random
positions contain no foreground. So a trained model predicts every unlabeled image once, and voxels of each predicted
class are stored, in the form in which nnU-Net stores them for labeled cases. No label is read.

The files are in a folder beside the preprocessed cases: one file per case, and a record of the model.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_atomically, write_json
from nnunet_collab.core.json_files import json_object_or_empty

RECORD = "model.json"
MOST_VOXELS = 10_000  # largest number of stored voxels per class and case, as in nnU-Net

ClassLocations = dict[int, npt.NDArray[np.int64]]


def locations_folder(preprocessed_dataset: Path, data_identifier: str) -> Path:
    """The folder of the locations: `<preprocessed_dataset>/<data_identifier>_locations`."""
    return preprocessed_dataset / f"{data_identifier}_locations"


def sample_locations(segmentation: npt.NDArray[Any], foreground: list[int], seed: int) -> ClassLocations:
    """Voxels of each foreground class in a segmentation, at most `MOST_VOXELS` per class.

    Args:
        segmentation: Predicted labels, `(*S)`.
        foreground: Foreground labels.
        seed: Seed for sampling, so that the result can be repeated.

    Returns:
        Label -> voxel indices `(n, 1 + axes)`; the first column is 0, as in nnU-Net's `class_locations`.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for label in foreground:
        voxels = np.argwhere(segmentation == label)
        if len(voxels) > MOST_VOXELS:
            voxels = voxels[np.sort(generator.choice(len(voxels), MOST_VOXELS, replace=False))]
        if len(voxels):
            found[label] = np.concatenate([np.zeros((len(voxels), 1), voxels.dtype), voxels], axis=1)
    return found


def save_locations(folder: Path, case: str, locations: Mapping[int, npt.NDArray[Any]]) -> None:
    """Write the file of a case atomically."""
    arrays = {str(label): voxels.astype(np.int32) for label, voxels in locations.items()}

    def write(path: Path) -> None:
        with path.open("wb") as file:  # numpy would append an ending to a path
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomically(folder / f"{case}.npz", write)


def load_locations(folder: Path, case: str) -> ClassLocations:
    """What `save_locations` wrote.

    Raises:
        CollabError: If the file is damaged.
    """
    path = folder / f"{case}.npz"
    try:
        with np.load(path, allow_pickle=False) as content:
            return {int(label): content[label].astype(np.int64) for label in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CollabError(
            f"{path}: the locations of predicted foreground cannot be read ({error}). Delete the file and run "
            f"nnunet_collab preprocess_unlabeled --locate again."
        ) from error


def located_cases(folder: Path) -> set[str]:
    """The cases that have been located."""
    return {path.stem for path in folder.glob("*.npz")}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, dict(record))


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the model; empty if there is none."""
    return json_object_or_empty(folder / RECORD)
