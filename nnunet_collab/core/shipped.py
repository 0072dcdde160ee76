"""Find the scripts that ship with the package: the doorways for nnU-Net's search, and the dataset converters.

In a checkout and in an editable install, they are folders beside the package. In a wheel, they are inside the package.
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
        CollabError: If the folder is in neither place.
    """
    places = [PACKAGE / name, PACKAGE.parent / name]
    for place in places:
        if place.is_dir():
            return place.resolve()
    raise CollabError(
        f"{name}: the folder must be {places[0]} or {places[1]}; neither exists. Install the package again."
    )


def doorway_folder() -> Path:
    """The folder that `nnUNet_extTrainer` must contain."""
    return shipped_folder("trainers")


def doorways() -> dict[str, str]:
    """Name of each trainer that has a doorway -> the module of its class. Nothing is imported."""
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
        value: Current value of the variable; may be empty. The order of its folders is kept, because nnU-Net uses the
            first folder that has a trainer of a given name.
        folder: Folder of the doorways. It is appended unless the value already contains it, in any spelling.

    Raises:
        CollabError: If the folder's path contains the separator of the list.
    """
    if os.pathsep in str(folder):
        raise CollabError(
            f"{VARIABLE}: {os.pathsep!r} separates its folders, so no path may contain it; got {folder}. "
            "Move the project to another folder, or install the package in another environment."
        )
    # A dictionary keeps the first spelling of each folder, and the order.
    entries: dict[str, str] = {}
    for entry in (*folders_of(value), str(folder)):
        entries.setdefault(canonical(entry), entry)
    return os.pathsep.join(entries.values())


def folders_of(value: str) -> list[str]:
    """The folders in a value of `nnUNet_extTrainer`, in order. Empty entries are skipped, as nnU-Net does."""
    return [entry for entry in value.split(os.pathsep) if entry.strip()]


def canonical(path: str | Path) -> str:
    """One spelling of a path: absolute, without links, in lower case on systems that ignore case."""
    return os.path.normcase(os.path.realpath(path))


def available_cores() -> int:
    """Number of cores that this process may use; it can be smaller than that of the machine."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
