"""Where a model sees foreground in unlabeled images, so that crops of them can be centered there.

nnU-Net centers a third of the labeled crops on foreground. Where organs are small and volumes large, most crops at
random places hold nothing to learn from. A model that exists already predicts every unlabeled image once; what is
stored is what nnU-Net stores of labeled cases, voxels of each class, and no label is read for it.

They lie in a folder beside the preprocessed cases, a file per case, with a record of the model.
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
MOST_VOXELS = 10_000  # of each class and case that are kept, as nnU-Net does

ClassLocations = dict[int, npt.NDArray[np.int64]]


def locations_folder(preprocessed_dataset: Path, data_identifier: str) -> Path:
    """Beside the preprocessed cases: `<preprocessed_dataset>/<data_identifier>_locations`."""
    return preprocessed_dataset / f"{data_identifier}_locations"


def sample_locations(segmentation: npt.NDArray[Any], foreground: list[int], seed: int) -> ClassLocations:
    """Voxels of each foreground class that there is, at most `MOST_VOXELS` of each.

    Args:
        segmentation: `(*S)` labels.
        foreground: Labels.
        seed: Of the sample, so that a case gives the same voxels whenever it is located.

    Returns:
        Label -> `(n, 1 + axes)`, the first column 0 as in nnU-Net's `class_locations`.
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
    """Write the file of a case, whole or not at all."""
    arrays = {str(label): voxels.astype(np.int32) for label, voxels in locations.items()}

    def write(path: Path) -> None:
        with path.open("wb") as file:  # numpy would add an ending to a name
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
            f"{path}: the places of predicted foreground cannot be read ({error}). Delete the file and run "
            f"nnunet_collab preprocess_unlabeled --locate again."
        ) from error


def located_cases(folder: Path) -> set[str]:
    """The cases that have been located."""
    return {path.stem for path in folder.glob("*.npz")}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Remember the model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, dict(record))


def read_record(folder: Path) -> dict[str, Any]:
    """The model that located, empty if there is none."""
    return json_object_or_empty(folder / RECORD)
