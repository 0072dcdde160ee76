"""Read DICOM segmentations (SEG) with highdicom, frame by frame, on the grid of their image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.extras import require_package

PLACE_TOLERANCE = 0.05  # in voxels, between a frame and a slice of the image
DIRECTION_TOLERANCE = 1e-3
SPACING_TOLERANCE = 1e-3  # relative


@dataclass(frozen=True)
class Segmentation:
    """What a SEG file says, without its pixels.

    Attributes:
        names: Number of a segment -> its label.
        series: SeriesInstanceUIDs of the images to which it refers.
    """

    names: Mapping[int, str]
    series: Collection[str]


def require_highdicom() -> Any:
    """The module highdicom.

    Raises:
        CollabError: If it is not installed.
    """
    return require_package("highdicom", "dicom", "convert own: reading DICOM segmentations")


def describe(path: Path) -> Segmentation:
    """The segments of a file, and the series to which it refers.

    Raises:
        CollabError: If the file cannot be read.
    """
    seg = _open(path)
    names = {int(n): str(seg.get_segment_description(n).segment_label).strip() for n in seg.segment_numbers}
    series = {str(item.SeriesInstanceUID) for item in getattr(seg, "ReferencedSeriesSequence", [])}
    return Segmentation({number: name for number, name in names.items() if number != 0}, series)


def read_segmentation(path: Path, grid: sitk.Image, values: Mapping[str, int]) -> sitk.Image:
    """Read a segmentation as label values on the grid of its image. Slices without a frame are background.

    Args:
        path: The file.
        grid: The image on which it was drawn, 3D.
        values: Label of a segment -> label value.

    Raises:
        CollabError: If the file cannot be read, is fractional, if a frame does not lie on a slice of the image, or if
            two segments hold the same voxel.
    """
    seg = _open(path)
    kind = getattr(seg.segmentation_type, "value", str(seg.segmentation_type))
    if kind == "FRACTIONAL":
        raise CollabError(
            f"{path}: a DICOM segmentation must be binary or a label map; it is fractional. Export it again."
        )
    value_of = {number: values[name] for number, name in describe(path).names.items()}
    columns, rows, slices = grid.GetSize()
    labels = np.zeros((slices, rows, columns), np.int16)
    if (int(seg.Rows), int(seg.Columns)) != (rows, columns):
        raise CollabError(
            f"{path}: its frames must have the size of its image, {columns} x {rows}; they have {seg.Columns} x "
            f"{seg.Rows}. Export it again on the image's grid."
        )
    try:
        frames = np.reshape(seg.get_stored_frames(), (-1, rows, columns))
    except (RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise CollabError(f"{path}: its frames cannot be decoded ({error}). Export it again.") from error
    for index, pixels in enumerate(frames):
        place = _slice_of(path, seg, index, grid)
        found = _labels_of(seg, index, pixels, value_of, kind)
        held = labels[place]
        if ((held != 0) & (found != 0) & (held != found)).any():
            raise CollabError(
                f"{path}: segments must not overlap; two hold the same voxels in slice {place}. Export them without "
                "overlap, or leave this case out."
            )
        held[found != 0] = found[found != 0]
    result = sitk.GetImageFromArray(labels)
    result.CopyInformation(grid)
    return result


def _open(path: Path) -> Any:
    highdicom = require_highdicom()
    try:
        return highdicom.seg.segread(path)
    except Exception as error:  # whatever pydicom and highdicom raise for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CollabError(f"{path}: this DICOM segmentation cannot be read ({reason}). Export it again.") from error


def _labels_of(seg: Any, index: int, pixels: Any, value_of: Mapping[int, int], kind: str) -> Any:
    """The label values of one frame, `(Y, X)`."""
    found = np.zeros(pixels.shape, np.int16)
    if kind == "LABELMAP":
        for number, value in value_of.items():
            found[pixels == number] = value
    else:
        item = _item(seg, index, "SegmentIdentificationSequence")
        found[pixels != 0] = value_of[int(item.ReferencedSegmentNumber)]
    return found


def _slice_of(path: Path, seg: Any, index: int, grid: sitk.Image) -> int:
    """Index of the image's slice on which a frame lies."""
    position = _item(seg, index, "PlanePositionSequence").ImagePositionPatient
    orientation = np.array(_item(seg, index, "PlaneOrientationSequence").ImageOrientationPatient, dtype=float)
    spacing = np.array(_item(seg, index, "PixelMeasuresSequence").PixelSpacing, dtype=float)[::-1]
    wanted = np.array(grid.GetDirection()).reshape(3, 3)[:, :2].T.ravel()
    place = np.array(grid.TransformPhysicalPointToContinuousIndex([float(mm) for mm in position]))
    nearest = np.rint(place)
    fits = (
        np.abs(orientation - wanted).max() <= DIRECTION_TOLERANCE
        and np.abs(spacing / grid.GetSpacing()[:2] - 1).max() <= SPACING_TOLERANCE
        and np.abs(place - (0, 0, nearest[2])).max() <= PLACE_TOLERANCE
        and 0 <= nearest[2] < grid.GetSize()[2]
    )
    if not fits:
        shown = ", ".join(f"{mm:.7g}" for mm in position)
        raise CollabError(
            f"{path}: every frame must lie on a slice of its image; frame {index + 1} at ({shown}) does not. It may "
            "have been drawn on another series: export it again, or leave this case out."
        )
    return int(nearest[2])


def _item(seg: Any, index: int, name: str) -> Any:
    """The entry of a frame, or the one that all frames share."""
    groups = seg.PerFrameFunctionalGroupsSequence[index]
    if name in groups:
        return getattr(groups, name)[0]
    return getattr(seg.SharedFunctionalGroupsSequence[0], name)[0]


def names_of(segmentations: Mapping[Path, Segmentation]) -> list[str]:
    """The labels of all segments, each once, in the order of the numbers that the first files give them.

    Raises:
        CollabError: If a file has a segment without a label, or two segments of one label.
    """
    faults = []
    first: dict[str, tuple[int, str]] = {}
    for path, segmentation in segmentations.items():
        names = list(segmentation.names.values())
        if not all(names) or len(set(names)) < len(names):
            faults.append(f"{path}: its segments must have different labels; they have {listed(names)}.")
        for number, name in segmentation.names.items():
            first.setdefault(name, (number, name))
    if faults:
        raise CollabError("\n- ".join(["convert own: segments become classes by their labels:", *faults]))
    return [name for _, name in sorted(first.values())]
