"""Check that nnU-Net's three folders are set, exist, are writable, and have free space."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nnunet_collab.doctor.finding import Finding, Status

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
LOW_GB, TOO_LOW_GB = 10.0, 1.0  # the checkpoints of a fold with two students take about 1 GB


def check_folders() -> Iterator[Finding]:
    """One finding per folder."""
    for variable in (RAW, PREPROCESSED, RESULTS):
        yield check_folder(variable, os.environ.get(variable, ""))


def check_folder(variable: str, value: str) -> Finding:
    """Check one folder.

    Args:
        variable: Environment variable of the folder. The results folder may be missing, because nnU-Net creates it. The
            raw folder may be read-only, because training does not write there.
        value: Value of the variable.
    """
    if not value:
        return Finding("FAIL", f"{variable} is not set", f"export {variable}=/path/to/{variable}")
    path = Path(value)
    if path.exists() and not path.is_dir():
        return Finding("FAIL", f"{variable}: {path} is a file", f"export {variable}=/path/to/a/folder")
    if not path.is_dir() and variable != RESULTS:
        return Finding("FAIL", f"{variable}: there is no folder {path}", f'mkdir -p "{path}"')
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    if not is_writable(existing):
        status: Status = "warn" if variable == RAW else "FAIL"
        text = f"{variable}: {existing} is not writable"
        return Finding(status, text, "Ask its owner for permission, or set the variable to a folder of your own.")
    return _room(variable, path, existing)


def _room(variable: str, path: Path, existing: Path) -> Finding:
    free_gb = shutil.disk_usage(existing).free / 1e9
    place = f"{path}" if existing == path else f"{path} (will be created)"
    text = f"{variable}: {place}, writable, {free_gb:.0f} GB free"
    if free_gb >= LOW_GB or variable == RAW:
        return Finding("ok", text)
    return Finding("FAIL" if free_gb < TOO_LOW_GB else "warn", text, "Free some disk space, or use another disk.")


def is_writable(folder: Path) -> bool:
    """Whether a file can be created there. Permission bits are not reliable on network drives and read-only mounts."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
