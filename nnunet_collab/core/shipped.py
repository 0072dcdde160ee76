"""Where the scripts lie that ship with the package: the doorways for nnU-Net's finder, and the dataset converters.

In a checkout, and so in an editable install, they are folders beside the package; in a wheel they are inside it.
"""

from __future__ import annotations

import ast
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
