"""Write a split where nnU-Net reads it, and keep a copy of the one that was there."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_atomically, write_json
from nnunet_collab.core.nnunet_folders import SPLIT_FILE, Split, holds_split


def write_split(split: Split, folders: tuple[Path, Path], *, overwrite: bool) -> None:
    """Write the split where training reads it. Also replace a raw copy, because nnU-Net's planner compares both.

    Raises:
        CollabError: If there is another split and `overwrite` is not set, or if writing fails.
    """
    preprocessed, raw = (folder / SPLIT_FILE for folder in folders)
    places = [preprocessed] if preprocessed.parent.is_dir() else []
    if raw.is_file() or not places:  # the planner copies it to the preprocessed dataset
        places.append(raw)
    others = [place for place in places if place.is_file() and not holds_split(place, split)]
    if others and not overwrite:
        raise CollabError(
            f"{others[0]}: there is another split already. To replace it, add --overwrite; a copy is kept as "
            f"{_backup(others[0]).name}. Trainings with the old split cannot be continued then."
        )
    for place in others:
        backup = _backup(place)
        write_atomically(backup, partial(shutil.copyfile, place))
        print(f"kept    {backup}, the previous split")
    for place in places:
        write_json(place, split)
        print(f"wrote   {place}")


def _backup(path: Path) -> Path:
    """A free name in the folder of the split: splits_final.before_split.json, or the same with a number."""
    place, number = path.with_name(f"{path.stem}.before_split.json"), 2
    while place.exists():
        place, number = path.with_name(f"{path.stem}.before_split.{number}.json"), number + 1
    return place
