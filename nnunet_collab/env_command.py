"""`nnunet_collab env`: the line for one's shell that lets nnU-Net find the trainers of this package.

`eval "$(nnunet_collab env)"` in sh, bash and zsh; `nnunet_collab env --shell fish | source` in fish;
`nnunet_collab env --shell powershell | Invoke-Expression` in PowerShell.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.shipped import doorway_folder

VARIABLE = "nnUNet_extTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab env [--shell SHELL]`."""
    parser.add_argument(
        "--shell",
        choices=sorted(_LINES),
        default="sh",
        help="which shell the line is for (default: sh, also bash, zsh)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the line, and nothing else.

    Returns:
        0.
    """
    print(_LINES[args.shell](extended(os.environ.get(VARIABLE, ""), doorway_folder())))
    return 0


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


def _sh(value: str) -> str:
    return f"export {VARIABLE}={shlex.quote(value)}"


def _fish(value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {VARIABLE} '{quoted}'"


def _powershell(value: str) -> str:
    quoted = value.replace("'", "''")
    return f"$env:{VARIABLE} = '{quoted}'"


_LINES = {"sh": _sh, "fish": _fish, "powershell": _powershell}
