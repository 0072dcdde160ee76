"""Where the scripts lie that ship with the package: the doorways for nnU-Net's finder, and the dataset converters.

In a checkout, and so in an editable install, they are folders beside the package; in a wheel they are inside it.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

from nnunet_collab.core.errors import CollabError

PACKAGE = Path(__file__).parents[1]


def shipped_folder(name: str) -> Path:
    """The folder `name`, e.g. `trainers`, as an absolute path.

    Raises:
        CollabError: If it is in neither place.
    """
    places = [PACKAGE / name, PACKAGE.parent / name]
    for place in places:
        if place.is_dir():
            return place.resolve()
    raise CollabError(
        f"{name}: must be the folder {places[0]} or {places[1]}; there is none. Install the package again."
    )


def doorway_folder() -> Path:
    """The folder that `nnUNet_extTrainer` must contain."""
    return shipped_folder("trainers")


def doorways() -> dict[str, str]:
    """Name of each trainer that has a doorway -> the module its class lives in; nothing is imported."""
    found = {}
    for path in sorted(doorway_folder().glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and path.stem in [alias.name for alias in node.names]:
                found[path.stem] = node.module or ""
    return found


VARIABLE = "nnUNet_extTrainer"


def extended(value: str, folder: Path) -> str:
    """The value of `nnUNet_extTrainer` with `folder` in it.

    Args:
        value: What the variable says now; may be empty. The order of its folders stays, since the first one that
            has a trainer of a given name wins.
        folder: The doorways; appended unless the value names that folder already, in whatever spelling.

    Raises:
        CollabError: If the folder's path cannot be written into a list of paths.
    """
    if os.pathsep in str(folder):
        raise CollabError(
            f"{VARIABLE}: separates its folders by {os.pathsep!r}, so none may have it in its path; got {folder}. "
            "Move the project to another folder, or install the package in another environment."
        )
    # A dictionary keeps the first spelling of each folder, and the order.
    entries: dict[str, str] = {}
    for entry in (*folders_of(value), str(folder)):
        entries.setdefault(canonical(entry), entry)
    return os.pathsep.join(entries.values())


def folders_of(value: str) -> list[str]:
    """The folders that a value of `nnUNet_extTrainer` names, in order, empty entries left out as nnU-Net does."""
    return [entry for entry in value.split(os.pathsep) if entry.strip()]


def canonical(path: str | Path) -> str:
    """One spelling for every way to write a path: absolute, without links, in one case where cases do not count."""
    return os.path.normcase(os.path.realpath(path))


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
