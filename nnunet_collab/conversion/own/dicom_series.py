"""Check that slices make one volume, and read it with SimpleITK's GDCM reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_collab.conversion.own.dicom_tags import Slice
from nnunet_collab.core.errors import CollabError, listed

DIRECTION_TOLERANCE = 1e-3  # of each direction cosine, as between the grids of image and label
SPACING_TOLERANCE = 1e-3  # relative
POSITION_TOLERANCE = 0.25  # in slice distances; a missing slice moves a neighbor by at least 0.5
SHIFT_TOLERANCE = 0.5  # of the stack along its slices, in pixels: more is a tilted gantry


@dataclass(frozen=True)
class Series:
    """A volume as its slices.

    Attributes:
        slices: Slices in the order of their positions.
    """

    slices: tuple[Slice, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order of their positions."""
        return tuple(part.path for part in self.slices)


def in_order(slices: Sequence[Slice]) -> Series:
    """The slices sorted along their normal; in the given order if positions are not known."""
    if any(not part.position or not part.orientation for part in slices):
        return Series(tuple(slices))
    normal = slices[0].normal
    return Series(tuple(sorted(slices, key=lambda part: float(np.dot(normal, part.position)))))


def series_faults(slices: Sequence[Slice]) -> Iterator[str]:
    """Why slices of one series do not make one volume, one line per fault; none if they do."""
    where = slices[0].path.parent
    if localizers := [part.path.name for part in slices if part.is_localizer]:
        yield (
            f"{where}: {len(localizers)} of its {len(slices)} files are localizers (scouts), which are not part of a "
            f"volume: {listed(localizers)}. Move them away."
        )
        return
    if colored := [part.path.name for part in slices if part.samples != 1]:
        yield f"{where}: DICOM images must be gray; these are in color: {listed(colored)}. Move them away."
        return
    if several := [part.path.name for part in slices if part.frames != 1]:
        yield (
            f"{where}: a DICOM file must hold one slice; these hold several frames (enhanced or a film): "
            f"{listed(several)}. Convert the case to NIfTI first, e.g. with dcm2niix."
        )
        return
    if len({part.patient for part in slices}) > 1:
        yield from _other_patients(slices)
        return
    if len(slices) > 1 and (
        unplaced := [part.path.name for part in slices if not part.position or not part.orientation]
    ):
        yield f"{where}: slices must say where they are; these do not: {listed(unplaced)}. Export the series again."
        return
    if not (mixed := list(_mixed(slices))) and len(slices) > 1:
        mixed = list(_place_faults(in_order(slices)))
    yield from mixed


def _other_patients(slices: Sequence[Slice]) -> Iterator[str]:
    other = next(part for part in slices if part.patient != slices[0].patient)
    yield (
        f"{slices[0].path.parent}: a folder must hold one patient; {slices[0].path.name} and {other.path} have "
        "different PatientIDs. Move the files of each patient to a folder of their own."
    )


def _mixed(slices: Sequence[Slice]) -> Iterator[str]:
    where, first = slices[0].path.parent, slices[0]
    rules: dict[str, tuple[Callable[[Slice], Sequence[float]], float]] = {
        "orientation": (lambda part: part.orientation, DIRECTION_TOLERANCE),
        "size": (lambda part: part.size, 0.0),
        "pixel spacing": (lambda part: part.spacing, SPACING_TOLERANCE),
    }
    for what, (value, tolerance) in rules.items():
        if others := [part for part in slices if not _close(value(first), value(part), tolerance)]:
            yield (
                f"{where}: all slices must have the same {what}; {others[0].path.name} has "
                f"{_short(value(others[0]))} and {first.path.name} {_short(value(first))} ({len(others)} of "
                f"{len(slices)} differ). Move the files of each volume to a folder of their own."
            )


def _place_faults(series: Series) -> Iterator[str]:
    """Gaps, slices at the same place, and tilted stacks of slices with one orientation."""
    slices, normal = series.slices, series.slices[0].normal
    where = slices[0].path.parent
    places = np.array([part.position for part in slices])
    heights = places @ normal
    steps = np.diff(heights)
    step = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower median: of two distances, one may be a gap
    if same := [i for i in range(len(steps)) if steps[i] < 0.01 * max(step, 1e-3)]:
        pair = slices[same[0]], slices[same[0] + 1]
        if pair[0].instance == pair[1].instance:
            yield f"{pair[1].path}: it is a copy of {pair[0].path}. Remove one of them ({len(same)} such files)."
        else:
            yield (
                f"{where}: it is a 4D series: {len(same) + 1} or more slices lie at the same place as another, e.g. "
                f"{pair[0].path.name} and {pair[1].path.name} (times, echoes or weightings). Move one volume to a "
                "folder of its own, or make each a channel (--channels)."
            )
        return
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(heights - even).max() > POSITION_TOLERANCE * step:
        gaps = [i for i in range(len(steps)) if steps[i] > 1.5 * step]
        if gaps:
            missing = sum(round(steps[i] / step) - 1 for i in gaps)
            yield (
                f"{where}: slices are missing, about {max(missing, 1)}: between {slices[gaps[0]].path.name} and "
                f"{slices[gaps[0] + 1].path.name} the distance is {steps[gaps[0]]:.4g} mm instead of {step:.4g} mm. "
                "Copy the series again, or leave this case out."
            )
        else:
            yield (
                f"{where}: the distance of its slices varies from {steps.min():.4g} to {steps.max():.4g} mm, which a "
                "voxel grid cannot hold. Resample the series, e.g. with dcm2niix, or leave this case out."
            )
        return
    along = places - places[0] - np.outer(heights - heights[0], normal)
    pixel = min(slices[0].spacing) if slices[0].spacing else 1.0
    if (shift := float(np.linalg.norm(along, axis=1).max())) > SHIFT_TOLERANCE * pixel:
        yield (
            f"{where}: its slices are not stacked at a right angle, they shift by {shift:.4g} mm (a tilted gantry). "
            "Resample the series, e.g. with dcm2niix, or leave this case out."
        )


def read_series(series: Series) -> sitk.Image:
    """Read a volume with one value per voxel.

    Raises:
        CollabError: If a file cannot be decoded.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(path) for path in series.files])
    if len({part.pixel for part in series.slices}) > 1:
        # Slices have factors of their own (PET): the type of the first would truncate those of the others.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        return reader.Execute()
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise CollabError(
            f"{series.files[0].parent}: this DICOM series cannot be decoded ({reason}). Copy it again, or decompress "
            "it with gdcmconv --raw."
        ) from error


def _close(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= tolerance * max(1.0, abs(a)) for a, b in zip(one, other, strict=True)
    )


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")" if values else "none"
