"""The tags of DICOM files that a conversion needs, read with SimpleITK's GDCM reader. No other tag is looked at.

Positions, spacings (mm) and directions are DICOM's: x to the left, y to the back, z to the head.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # frames of segments; a label map
_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_NO_IMAGE = (  # beginnings of SOP classes without pixels that belong to a volume
    "1.2.840.10008.1.3.10",  # DICOMDIR
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.66",  # registrations, surfaces
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports
    "1.2.840.10008.5.1.4.1.1.104.",  # documents
    "1.2.840.10008.5.1.4.1.1.481.",  # plans, doses, structures of radiotherapy
    "1.2.840.10008.5.1.4.1.1.9.",  # curves
)
# What GDCM decodes: uncompressed, deflated, JPEG, JPEG-LS, JPEG 2000, RLE.
_DECODED = {
    f"1.2.840.10008.1.2{end}"
    for end in ("", ".1", ".2", ".1.99", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".5")
}
_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN")  # value representations with a length of 4 bytes


class Slice(NamedTuple):
    """One file of an image series.

    Attributes:
        path: The file.
        patient: PatientID; may be empty.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        description: SeriesDescription.
        modality: Modality, e.g. CT.
        kind: ImageType, e.g. ("ORIGINAL", "PRIMARY", "AXIAL").
        is_inverted: Whether low values are bright (MONOCHROME1).
        samples: Values per pixel.
        frames: Number of frames.
        size: Rows and columns.
        spacing: Distance of rows and of columns in mm; empty if it is not known.
        position: Center of the first pixel in mm; empty if it is not known.
        orientation: Directions of rows and columns; empty if they are not known.
        pixel: SimpleITK's pixel type, after the file's own rescaling.
    """

    path: Path
    patient: str
    study: str
    series: str
    instance: str
    description: str
    modality: str
    kind: tuple[str, ...]
    is_inverted: bool
    samples: int
    frames: int
    size: tuple[int, int]
    spacing: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel: int

    @property
    def is_localizer(self) -> bool:
        """Whether it shows where the scanner was to look."""
        return any(word in ("LOCALIZER", "SCOUT", "TOPOGRAM") for word in self.kind)

    @property
    def normal(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Direction in which slices follow each other, `(3,)`."""
        return np.cross(self.orientation[:3], self.orientation[3:])


class Media(NamedTuple):
    """What a DICOM file is.

    Attributes:
        kind: SOP class.
        syntax: Transfer syntax.
    """

    kind: str
    syntax: str


def media(path: Path) -> Media | None:
    """What a file says of itself in its first bytes; None if it is not DICOM."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[128:132] != b"DICM":
        return Media("", "") if path.suffix.lower() in (".dcm", ".ima") else None  # older than the standard's header
    found: dict[int, str] = {}
    place = 132
    while place + 12 <= len(head):
        group, element = struct.unpack_from("<HH", head, place)
        if group != 2:
            break
        is_long = head[place + 4 : place + 6] in _LONG
        (length,) = struct.unpack_from("<I" if is_long else "<H", head, place + (8 if is_long else 6))
        place += 12 if is_long else 8
        found[element] = head[place : place + length].decode("ascii", "replace").strip("\0 ")
        place += length
    return Media(found.get(0x0002, ""), found.get(0x0010, ""))


def read_slices(files: Iterable[Path], problems: list[str]) -> tuple[list[Slice], list[Path]]:
    """The image slices and the segmentations among files. DICOM files of other kinds (reports, plans) are left out.

    Args:
        files: Any files.
        problems: A line is added for each DICOM image that cannot be used.
    """
    slices: list[Slice] = []
    segmentations: list[Path] = []
    for path in tqdm(list(files), desc="Looking for DICOM", unit="file", disable=None):
        what = media(path)
        if what is None:
            continue
        if what.kind in SEGMENTATIONS:
            segmentations.append(path)
        elif what.kind == _STRUCTURES:
            problems.append(
                f"{path}: it holds contours (RTSTRUCT), which are not converted. Export them as DICOM-SEG or NIfTI, "
                "e.g. with 3D Slicer, or move the file away."
            )
        elif what.kind.startswith(_NO_IMAGE):
            continue
        elif what.syntax and what.syntax not in _DECODED:
            problems.append(
                f"{path}: it is compressed in a way that GDCM cannot decode (transfer syntax {what.syntax}). "
                "Decompress it first, e.g. with gdcmconv --raw, or with pydicom and pylibjpeg."
            )
        else:
            _add(path, slices, problems)
    return slices, segmentations


def _add(path: Path, slices: list[Slice], problems: list[str]) -> None:
    try:
        slices.append(_read(path))
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        problems.append(f"{path}: this DICOM file cannot be read ({reason}). Copy it again, or move it away.")


def _read(path: Path) -> Slice:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    keys = set(reader.GetMetaDataKeys())

    def text(tag: str) -> str:
        found = reader.GetMetaData(tag) if tag in keys else ""
        return str(found).encode("utf-8", "replace").decode("utf-8").strip("\0 ")

    def numbers(tag: str) -> tuple[float, ...]:
        return tuple(float(part) for part in text(tag).split("\\") if part.strip())

    return Slice(
        path=path,
        patient=text("0010|0020"),
        study=text("0020|000d"),
        series=text("0020|000e"),
        instance=text("0008|0018"),
        description=text("0008|103e"),
        modality=text("0008|0060"),
        kind=tuple(part.strip().upper() for part in text("0008|0008").split("\\")),
        is_inverted=text("0028|0004").upper() == "MONOCHROME1",
        samples=int(text("0028|0002") or 1),
        frames=int(text("0028|0008") or 1),
        size=(int(text("0028|0010") or 0), int(text("0028|0011") or 0)),
        spacing=_of_length(2, numbers("0028|0030")),
        position=_of_length(3, numbers("0020|0032")),
        orientation=_of_length(6, numbers("0020|0037")),
        pixel=reader.GetPixelIDValue(),
    )


def _of_length(count: int, found: Sequence[float]) -> tuple[float, ...]:
    return tuple(found) if len(found) == count and np.isfinite(found).all() else ()
