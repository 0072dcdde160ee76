"""Whether an image file is whole, as far as its format can tell.

Readers do not say it: SimpleITK 2.5 fills the missing voxels of a NIfTI, GIPL, BMP or TIFF file that was cut off with 0
or with whatever was in memory, reads a compressed .mha with a flipped bit as if it were whole, and both SimpleITK and
tifffile give back the first slices of a TIFF stack whose end is missing. So the length and the checksums are compared
here. Uncompressed voxels have no checksum: a flipped bit in them cannot be seen.
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
    """Raise if the file is cut off or fails its checksum; a file of an unknown format passes.

    Raises:
        Exception: What is wrong, most often an OSError; the libraries used here raise others, too.
    """
    name = path.name.lower()
    for endings, check in _CHECKS.items():
        if name.endswith(endings):
            check(path)


def _check_nifti(path: Path) -> None:
    """Read the file to its end, so that gzip checks its sum, and count the bytes against what the header announces."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        header = file.read(540)  # of NIfTI-2, the longer of the two
        held = len(header)
        while chunk := file.read(_CHUNK):
            held += len(chunk)
    _check_length(held, _nifti_bytes(header))


def _nifti_bytes(header: bytes) -> int:
    """Length in bytes that a NIfTI header announces; 0 if it is none, which the reader then reports."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    kinds: tuple[Any, ...] = (Nifti1Header, Nifti2Header)
    for kind in kinds:
        block, size = header[: kind.sizeof_hdr], kind.sizeof_hdr
        if len(block) == size and any(struct.unpack_from(f"{order}i", block)[0] == size for order in "<>"):
            head: Any = kind(block, check=False)
            # An axis of length 0 is read as one voxel by ITK.
            voxels = math.prod(max(count, 1) for count in head.get_data_shape())
            return int(head.get_data_offset() + voxels * int(head["bitpix"]) // 8)
    return 0


def _check_gipl(path: Path) -> None:
    """A header of 256 bytes, then the voxels."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID())
    _check_length(path.stat().st_size, 256 + math.prod(reader.GetSize()) * voxel.GetSizeOfPixelComponent())


def _check_metaimage(path: Path) -> None:
    """Compressed voxels (.mha) are one zlib stream."""
    with path.open("rb") as file:
        header = file.read(_CHUNK)
        start = re.search(rb"^ElementDataFile\s*=\s*LOCAL\r?\n", header, re.MULTILINE)
        if start and re.search(rb"^CompressedData\s*=\s*True", header[: start.start()], re.MULTILINE):
            file.seek(start.end())
            _check_stream(file)


def _check_nrrd(path: Path) -> None:
    """Compressed voxels (.nrrd) are one gzip stream after an empty line; ITK does not read it to its checksum."""
    with path.open("rb") as file:
        header = file.read(_CHUNK)
        end = re.search(rb"\r?\n\r?\n", header)
        fields = header[: end.start()] if end else b""
        if end and re.search(rb"^encoding: gz", fields, re.MULTILINE) and b"data file:" not in fields:
            file.seek(end.end())
            _check_stream(file)


def _check_stream(file: IO[bytes]) -> None:
    """Decompress to the end, where the checksum stands."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip
    while not stream.eof:
        # At most so much at once: the voxels are not kept.
        if not (chunk := stream.unconsumed_tail or file.read(_CHUNK)):
            raise OSError("its compressed voxels end before their checksum")
        stream.decompress(chunk, 16 * _CHUNK)


def _check_png(path: Path) -> None:
    """Every chunk has a checksum, and the last one is IEND."""
    from PIL import Image

    with Image.open(path) as image:
        try:
            image.verify()
        except SyntaxError as error:  # Pillow's word for a broken chunk
            raise OSError(str(error)) from error


def _check_picture(path: Path) -> None:
    """Pillow refuses what is cut off, where ITK does not."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()


def _check_tiff(path: Path) -> None:
    """The chain of pages must reach its end, and every strip and tile must lie within the file."""
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
    """Number of pages; OSError if a link of the chain points beyond the file.

    Args:
        path: The file.
        layout: tifffile's `TiffFormat`: byte order and sizes, which differ between TIFF and BigTIFF.
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
