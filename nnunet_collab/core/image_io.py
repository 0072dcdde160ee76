"""Reading an image or label file whole, or not at all."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import SimpleITK as sitk

from nnunet_collab.core.errors import CollabError


def read_image(path: Path) -> sitk.Image:
    """Read one image file with SimpleITK, of any format it knows.

    Raises:
        CollabError: If the file is no image, is cut off, or fails its checksum.
    """
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            _check_nifti_is_whole(path)
        return sitk.ReadImage(str(path))
    except (RuntimeError, OSError, EOFError, zlib.error) as error:
        # SimpleITK's messages open with lines about its own source code; the last line is the reason.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise CollabError(
            f"{path}: cannot be read whole ({reason}). Copy or download this file again, or save it in another format."
        ) from error


def _check_nifti_is_whole(path: Path) -> None:
    """Read the file to its end, so that gzip checks its sum, and count the bytes against what the header announces."""
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        header = file.read(348)
        held = len(header)
        while chunk := file.read(1 << 20):
            held += len(chunk)
    needed = _nifti_bytes(header)
    if held < needed:
        raise OSError(f"it holds {held} bytes and needs {needed}")


def _nifti_bytes(header: bytes) -> int:
    """Length in bytes that a NIfTI-1 header announces; 0 if it is none, which SimpleITK then reports."""
    for order in "<>":
        if len(header) == 348 and struct.unpack_from(f"{order}i", header)[0] == 348:
            axes, *size = struct.unpack_from(f"{order}8h", header, 40)
            (bits,) = struct.unpack_from(f"{order}h", header, 72)
            (offset,) = struct.unpack_from(f"{order}f", header, 108)
            return int(offset) + math.prod(max(int(count), 1) for count in size[: max(axes, 0)]) * int(bits) // 8
    return 0
