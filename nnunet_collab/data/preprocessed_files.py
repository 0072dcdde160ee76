"""Whether a preprocessed file is there and whole: copying stops on a full disk, and a killed process leaves a half."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

IMAGE_ENDINGS = (".b2nd", ".npy", ".npz")  # nnU-Net's formats, in the order in which they are looked for


def open_array(path: Path) -> Any:
    """An array in one of nnU-Net's formats, of which nothing is read yet but its header (an .npz is read whole).

    Raises:
        OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile: If the file is missing, empty or cut off.
    """
    import blosc2  # here and not above: the help of a command that uses this module must not wait for them
    import numpy as np

    if path.suffix == ".b2nd":
        # Threads of blosc2 would not survive the fork of a loader's worker; its memory maps do not work on Windows.
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}
        return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mapped)
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    with np.load(path) as archive:
        return archive["data"]


def is_whole(path: Path) -> bool:
    """Whether a preprocessed file (.b2nd, .npy, .npz, .pkl) is there with all its bytes; no voxel is read.

    A flipped bit between its first and its last byte is not seen.
    """
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:  # its list of contents is at the end
                return "data.npy" in archive.namelist()
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() == b"."  # the last instruction of every pickle
        return bool(open_array(path).ndim > 0)
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def image_file(folder: Path, identifier: str) -> Path | None:
    """The file of a case's preprocessed image, whole or not; None if there is none."""
    places = (folder / f"{identifier}{ending}" for ending in IMAGE_ENDINGS)
    return next((place for place in places if place.is_file()), None)
