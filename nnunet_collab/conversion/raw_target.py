"""The place of a converted dataset, and the checks of that place before anything is written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import (
    PREPROCESSED,
    RAW,
    SPLIT_FILE,
    UNLABELED,
    Split,
    folders_of_id,
    holds_split,
)
from nnunet_collab.core.patients import PATIENTS_FILE

MANIFEST = "manifest.jsonl"  # exists during a conversion
CONVERTED = {"imagesTr", "labelsTr", "imagesTs", "labelsTs", "dataset.json", PATIENTS_FILE, SPLIT_FILE, MANIFEST}


@dataclass(frozen=True)
class Target:
    """A dataset of nnU-Net: `$nnUNet_raw/DatasetXXX_NAME`.

    Attributes:
        dataset_id: Id of the dataset, 1 to 999.
        name: Part of the folder's name after the underscore.
        overwrite: Whether a dataset of this id and name, and its split, may be replaced.
        labeled: Number or share of training patients that keep their labels, as on the command line ("7", "50%"); None
            for all.
        seed: Seed for drawing those patients.
    """

    dataset_id: int
    name: str
    overwrite: bool = False
    labeled: str | None = None
    seed: int = 0

    @property
    def folder(self) -> str:
        """Name of the dataset's folder."""
        return f"Dataset{self.dataset_id:03d}_{self.name}"


def raw_folder(target: Target) -> Path:
    """The folder of the dataset, after checking that it can be written. Nothing is created.

    Raises:
        CollabError: If the id or the name is not valid, if nnUNet_raw is not set or not writable, if the id belongs to
            another dataset, or if the folder exists and may not be replaced.
    """
    if not 1 <= target.dataset_id <= 999:
        raise CollabError(f"-d: the dataset id must lie between 1 and 999; got {target.dataset_id}. Choose a free one.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", target.name) or target.name.startswith("Dataset"):
        raise CollabError(
            "--name: the name must consist of letters, digits, _ and -, without the DatasetXXX_ in front; got "
            f"{target.name!r}. Give a name such as ACDC."
        )
    if not os.environ.get(RAW):
        raise CollabError(
            "convert: the environment variable nnUNet_raw must name the folder of raw datasets; it is not set. "
            "Write: export nnUNet_raw=/path/to/nnUNet_raw"
        )
    folder = Path(os.environ[RAW]) / target.folder
    _refuse_unwritable(RAW, folder)
    _refuse_taken_id(target)
    if folder.exists():
        _refuse_existing(folder, target.overwrite)
    return folder


def split_path(target: Target, split: Split) -> Path | None:
    """The path from which nnU-Net's training reads the split, or None if nnUNet_preprocessed is not set.

    Raises:
        CollabError: If the path cannot be written, or if another split is there that may not be replaced.
    """
    if not os.environ.get(PREPROCESSED):
        return None
    path = Path(os.environ[PREPROCESSED]) / target.folder / SPLIT_FILE
    _refuse_unwritable(PREPROCESSED, path)
    if path.exists() and not target.overwrite and not holds_split(path, split):
        raise CollabError(
            f"{path}: there is already a split, and it differs from that of this conversion; nnU-Net refuses to plan a "
            "dataset with two splits. Move the file away, or replace it with --overwrite."
        )
    return path


def refuse_full_disk(sources: Iterable[Path], folder: Path) -> None:
    """Compare the size of the source files with the free space on the disk of `folder`.

    Raises:
        CollabError: If the free space is smaller than the source.
    """
    needed = sum(path.stat().st_size for source in sources for path in (source, *source.rglob("*")) if path.is_file())
    free = shutil.disk_usage(_existing_part(folder)).free
    if free < needed:
        raise CollabError(
            f"{folder.parent}: the dataset needs about {needed / 1e6:.1f} MB, the size of its source; {free / 1e6:.1f} "
            "MB are free. Free some space, or set nnUNet_raw to a folder on another disk."
        )


def contents(folder: Path) -> str:
    """The contents of a dataset's folder, for a message: "dataset.json, imagesTr (30 files), ..."."""
    entries = sorted(folder.iterdir())
    return (
        ", ".join(f"{e.name} ({len(list(e.iterdir()))} files)" if e.is_dir() else e.name for e in entries) or "nothing"
    )


def _refuse_existing(folder: Path, overwrite: bool) -> None:
    if not folder.is_dir():
        raise CollabError(f"{folder}: the dataset needs this path for its folder; it is a file. Move it away.")
    if not overwrite:
        raise CollabError(
            f"{folder}: the dataset exists already. Choose another id with -d, or replace it with --overwrite, which "
            f"deletes what it holds: {contents(folder)}."
        )
    if foreign := sorted({entry.name for entry in folder.iterdir()} - CONVERTED - _converted_unlabeled(folder)):
        raise CollabError(
            f"{folder}: --overwrite deletes only files of a conversion; the dataset also holds {', '.join(foreign)}. "
            "Move these away first."
        )


def _converted_unlabeled(folder: Path) -> set[str]:
    """The name of the folder of unlabeled images if a conversion has written all files in it, else empty."""
    try:
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        cases = {*content.get("labeled_protocol", {}).get("unlabeled_cases", []), *content.get("unlabeled_cases", [])}
    except (OSError, ValueError, AttributeError, TypeError):  # not written by a conversion
        return set()
    place = folder / UNLABELED
    files = [path.name for path in place.iterdir()] if place.is_dir() else []
    return {UNLABELED} if cases and all(re.sub(r"_\d{4}\..*$", "", name) in cases for name in files) else set()


def _refuse_taken_id(target: Target) -> None:
    """Refuse an id of another dataset: nnU-Net searches three folders by id, and stops if the names differ."""
    for entry in folders_of_id(target.dataset_id):
        if entry.name != target.folder:
            raise CollabError(
                f"{entry}: a dataset id must have the same name in nnUNet_raw, nnUNet_preprocessed and "
                f"nnUNet_results; {target.dataset_id} belongs to {entry.name}, so {target.folder} cannot have it. "
                "Choose another id with -d."
            )


def _refuse_unwritable(variable: str, path: Path) -> None:
    place = _existing_part(path.parent)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise CollabError(
            f"{variable}: must be a writable folder; {place} is not. Set {variable} to another folder, or change the "
            "permissions."
        )


def _existing_part(path: Path) -> Path:
    return next(part for part in (path, *path.absolute().parents) if part.exists())
