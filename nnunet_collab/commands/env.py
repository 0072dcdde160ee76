"""`nnunet_collab env`: print the shell command with which nnU-Net finds the trainers of this package.

`eval "$(nnunet_collab env)"` in sh, bash and zsh; `nnunet_collab env --shell fish | source` in fish;
`nnunet_collab env --shell powershell | Invoke-Expression` in PowerShell.
"""

from __future__ import annotations

import argparse
import os
import shlex

from nnunet_collab.core.shipped import VARIABLE, doorway_folder, extended


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


def _sh(value: str) -> str:
    return f"export {VARIABLE}={shlex.quote(value)}"


def _fish(value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {VARIABLE} '{quoted}'"


def _powershell(value: str) -> str:
    quoted = value.replace("'", "''")
    return f"$env:{VARIABLE} = '{quoted}'"


_LINES = {"sh": _sh, "fish": _fish, "powershell": _powershell}
