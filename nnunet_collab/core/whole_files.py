"""Check that an image file is complete, as far as its format allows.

The readers do not report this. SimpleITK 2.5 fills the missing voxels of a truncated NIfTI, GIPL, BMP or TIFF file with
0 or with arbitrary values from memory. It reads a compressed .mha with a flipped bit without an error. SimpleITK and
tifffile both return the first slices of a TIFF stack whose end is missing. So lengths and checksums are checked here.
Uncompressed voxels have no checksum: a flipped bit in them is not found.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import IO, Any

_CHUNK = 1 << 20


def check_whole(path: Path) -> None:
    """Raise if the file is truncated or has a wrong checksum. Files of unknown formats are not checked.

    Raises:
        Exception: If the file is truncated or damaged; an OSError, or another exception of the library used.
    """
    name = path.name.lower()
    for endings, check in _CHECKS.items():
        if name.endswith(endings):
            check(path)


def _check_nifti(path: Path) -> None:
    """Read the file to its end, so that gzip checks its checksum, and compare the number of bytes with the header."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        header = file.read(540)  # the length of a NIfTI-2 header, which is longer than that of NIfTI-1
        held = len(header)
        while chunk := file.read(_CHUNK):
            held += len(chunk)
    _check_length(held, _nifti_bytes(header))


def _nifti_bytes(header: bytes) -> int:
    """Length of the file in bytes according to its NIfTI header; 0 if there is none, which the reader reports."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    kinds: tuple[Any, ...] = (Nifti1Header, Nifti2Header)
    for kind in kinds:
        block, size = header[: kind.sizeof_hdr], kind.sizeof_hdr
        if len(block) == size and any(struct.unpack_from(f"{order}i", block)[0] == size for order in "<>"):
            head: Any = kind(block, check=False)
            # ITK reads an axis of length 0 as one voxel.
            voxels = math.prod(max(count, 1) for count in head.get_data_shape())
            return int(head.get_data_offset() + voxels * int(head["bitpix"]) // 8)
    return 0


def _check_gipl(path: Path) -> None:
    """Compare the length of the file: a header of 256 bytes, then the voxels."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID())
    _check_length(path.stat().st_size, 256 + math.prod(reader.GetSize()) * voxel.GetSizeOfPixelComponent())


def _check_metaimage(path: Path) -> None:
    """Check the zlib stream of the compressed voxels (.mha)."""
    with path.open("rb") as file:
        header = file.read(_CHUNK)
        start = re.search(rb"^ElementDataFile\s*=\s*LOCAL\r?\n", header, re.MULTILINE)
        if start and re.search(rb"^CompressedData\s*=\s*True", header[: start.start()], re.MULTILINE):
            file.seek(start.end())
            _check_stream(file)


def _check_nrrd(path: Path) -> None:
    """Check the gzip stream of the compressed voxels (.nrrd), after an empty line; ITK does not check its checksum."""
    with path.open("rb") as file:
        header = file.read(_CHUNK)
        end = re.search(rb"\r?\n\r?\n", header)
        fields = header[: end.start()] if end else b""
        if end and re.search(rb"^encoding: gz", fields, re.MULTILINE) and b"data file:" not in fields:
            file.seek(end.end())
            _check_stream(file)


def _check_stream(file: IO[bytes]) -> None:
    """Decompress to the end of the stream, where the checksum is."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip
    while not stream.eof:
        # A limited part at a time, because the voxels are not needed.
        if not (chunk := stream.unconsumed_tail or file.read(_CHUNK)):
            raise OSError("its compressed voxels end before their checksum")
        stream.decompress(chunk, 16 * _CHUNK)


def _check_png(path: Path) -> None:
    """Let Pillow check the checksum of every chunk, and that the last chunk is IEND."""
    from PIL import Image

    with Image.open(path) as image:
        try:
            image.verify()
        except SyntaxError as error:  # Pillow raises it for a damaged chunk
            raise OSError(str(error)) from error


def _check_picture(path: Path) -> None:
    """Let Pillow read the file: unlike ITK, it refuses a truncated one."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()


def _check_tiff(path: Path) -> None:
    """Check that the chain of pages reaches its end, and that every strip and tile lies within the file."""
    import tifffile

    length = path.stat().st_size
    with tifffile.TiffFile(path) as tiff:
        pages = _pages_in_chain(path, tiff.tiff)
        if len(tiff.pages) != pages:
            raise OSError(f"{len(tiff.pages)} of its {pages} slices can be read")
        for page in tiff.pages:
            for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                _check_length(length, start + count)


def _pages_in_chain(path: Path, layout: Any) -> int:
    """Number of pages; raises an OSError if a link of the chain points beyond the end of the file.

    Args:
        path: The file.
        layout: `TiffFormat` of tifffile: byte order and sizes, which differ between TIFF and BigTIFF.
    """
    pages = 0
    with path.open("rb") as file:

        def number(kind: str) -> int:
            held = file.read(getattr(layout, f"{kind}size"))
            if len(held) < getattr(layout, f"{kind}size"):
                raise OSError(f"its slice {pages} lies beyond its end")
            return int(struct.unpack(getattr(layout, f"{kind}format"), held)[0])

        file.seek(8 if layout.is_bigtiff else 4)  # byte order and version stand before the first link
        while offset := number("offset"):
            pages += 1
            file.seek(offset)
            file.seek(offset + layout.tagnosize + number("tagno") * layout.tagsize)
    return pages


def _check_length(held: int, needed: int) -> None:
    if held < needed:
        raise OSError(f"it holds {held} bytes and needs {needed}")


_CHECKS = {
    (".nii", ".nii.gz"): _check_nifti,
    (".gipl",): _check_gipl,
    (".mha",): _check_metaimage,
    (".nrrd",): _check_nrrd,
    (".png",): _check_png,
    (".bmp", ".jpg", ".jpeg"): _check_picture,
    (".tif", ".tiff"): _check_tiff,
}
