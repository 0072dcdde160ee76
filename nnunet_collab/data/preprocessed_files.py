"""Check that preprocessed files exist and are complete. A full disk or a killed process leaves truncated files."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

IMAGE_ENDINGS = (".b2nd", ".npy", ".npz")  # nnU-Net's formats, in the order of the search


def open_array(path: Path) -> Any:
    """Open an array in one of nnU-Net's formats. Only the header is read, but an .npz file is read completely.

    Raises:
        OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile: If the file is missing, empty or truncated.
    """
    import blosc2  # imported here, so that the help of a command that uses this module is fast
    import numpy as np

    if path.suffix == ".b2nd":
        # One thread, because threads of blosc2 do not survive the fork of a loader's worker. No memory map on Windows,
        # where it does not work.
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}
        return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mapped)
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    with np.load(path) as archive:
        return archive["data"]


def is_whole(path: Path) -> bool:
    """Whether a preprocessed file (.b2nd, .npy, .npz, .pkl) exists with its full length. No voxel is read.

    Changed bytes within the file are not found.
    """
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:  # its table of contents is at the end of the file
                return "data.npy" in archive.namelist()
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() == b"."  # the last instruction of every pickle
        return bool(open_array(path).ndim > 0)
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def image_file(folder: Path, identifier: str) -> Path | None:
    """The file of a case's preprocessed image, complete or not; None if there is none."""
    places = (folder / f"{identifier}{ending}" for ending in IMAGE_ENDINGS)
    return next((place for place in places if place.is_file()), None)
