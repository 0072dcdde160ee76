"""Read the images of a public dataset, and report all faults before anything is converted.

A converter lists its cases (`Case`) and the rules for the files of the dataset (`SourceRules`). `verify_pairs` reads
every file once and returns one line per fault, with the file and how to fix it. An empty list means that the source can
be converted.

SimpleITK does not report two kinds of faults: a file that was truncated during the download (`core/whole_files.py`),
and an image and a label of equal size on different grids.

Sizes, spacings (mm) and origins (mm) are in SimpleITK's order x, y, z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_collab.conversion.voxel_values import shown_values
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.grid import Grid, GridTolerance, grid_differences
from nnunet_collab.core.image_io import LABEL_TOLERANCE, read_image


@dataclass(frozen=True)
class Case:
    """A case of the source: its name in nnU-Net and its files.

    Attributes:
        name: Name of the case in nnU-Net, without channel number and file ending.
        images: One path per channel; a folder if the reader reads folders.
        label: Path of the label, or None.
        others: Other files that the readers open for this case.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    others: tuple[Path, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """All paths of the case."""
        return (*self.images, *((self.label,) if self.label is not None else ()), *self.others)


@dataclass(frozen=True)
class SourceRules:
    """Rules for the files of a source, and the functions that read them.

    Attributes:
        label_values: Label value in the source -> label value in nnU-Net. Any other value is a fault.
        axes: Number of spatial axes, 2 or 3.
        components: Number of values per pixel of an image: 1, or 3 for color images. Labels always have 1.
        read_image: Function path -> image. Replace it for sources that `read_image` cannot read (a DICOM series).
        read_label: Function path -> label. Replace it for labels that must be corrected first (a JPEG mask, flipped
            slices).
        label_grid: Largest differences between the grids of label and image. Larger for a source with known errors.
    """

    label_values: Mapping[int, int]
    axes: int = 3
    components: int = 1
    read_image: Callable[[Path], sitk.Image] = read_image
    read_label: Callable[[Path], sitk.Image] = read_image
    label_grid: GridTolerance = field(default_factory=GridTolerance)


def verify_pairs(cases: Sequence[Case], rules: SourceRules) -> list[str]:
    """Read every file of the cases and list all faults.

    Args:
        cases: Cases to check; may be empty.
        rules: Rules for the files.

    Returns:
        One line per fault, in the order of the cases: case, file, what was found, how to fix it.
    """
    bar = tqdm(cases, desc="Checking the source", unit="case", disable=None)
    return [f"case {case.name}: {fault}" for case in bar for fault in _faults(case, rules)]


def same_grid(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether size, spacing, origin and direction are exactly equal."""
    return all(
        getattr(first, what)() == getattr(second, what)()
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")
    )


def to_nnunet_label(label: sitk.Image, grid: sitk.Image, rules: SourceRules) -> sitk.Image:
    """The label as uint8 with nnU-Net's values, on the image's grid.

    Args:
        label: Label of the source, of any number type; it must have passed `verify_pairs`.
        grid: Image of the same size; the result gets its spacing, origin and direction.
        rules: Rules with the `label_values`.
    """
    # Rounded before the comparison: a scale factor in the header can turn 2 into 2.0000001.
    voxels = np.rint(sitk.GetArrayViewFromImage(label))
    mapped = np.zeros(voxels.shape, dtype=np.uint8)
    for value, new in rules.label_values.items():
        mapped[voxels == value] = new
    result = sitk.GetImageFromArray(mapped)
    result.CopyInformation(grid)
    return result


def _faults(case: Case, rules: SourceRules) -> Iterator[str]:
    """Faults of one case. Grids are compared only among files that can be read and have the right type."""
    # An image and its label can be parts of one file, so the path alone does not distinguish them.
    parts = [(path, False) for path in case.images] + ([(case.label, True)] if case.label is not None else [])
    grids: list[tuple[Path, sitk.Image, bool]] = []
    for path, is_label in parts:
        try:
            image = (rules.read_label if is_label else rules.read_image)(path)
        except CollabError as error:
            yield str(error)
            continue
        faults = [*_kind_faults(path, image, rules.axes, 1 if is_label else rules.components)]
        if not faults:
            grids.append((path, image, is_label))
            faults = [*(_label_faults(path, image, rules) if is_label else _image_faults(path, image))]
        yield from faults
    for path, image, is_label in grids[1:]:
        tolerance = rules.label_grid if is_label else GridTolerance()
        yield from _grid_faults(*grids[0][:2], path, image, tolerance)


def _kind_faults(path: Path, image: sitk.Image, axes: int, components: int) -> Iterator[str]:
    if image.GetDimension() != axes:
        series = " It may be a time series: replace it with a single frame." if image.GetDimension() > axes else ""
        yield (
            f"{path}: the image must have {axes} axes; it has {image.GetDimension()}, size {image.GetSize()}.{series} "
            "Copy the right file again."
        )
    elif image.GetNumberOfComponentsPerPixel() != components:
        yield (
            f"{path}: every pixel must have {components} value(s); it has {image.GetNumberOfComponentsPerPixel()}. "
            "Copy the right file again."
        )


def _image_faults(path: Path, image: sitk.Image) -> Iterator[str]:
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.dtype.kind == "f" and not (finite := np.isfinite(voxels)).all():
        yield (
            f"{path}: intensities must be finite; {np.count_nonzero(~finite)} voxels are NaN or infinite. Copy the "
            "file again, or leave this case out."
        )


def _label_faults(path: Path, label: sitk.Image, rules: SourceRules) -> Iterator[str]:
    known = np.array(sorted(rules.label_values), dtype=np.float64)
    values = np.unique(sitk.GetArrayViewFromImage(label)).astype(np.float64)
    # "not <=" instead of ">": NaN must count as unknown.
    unknown = values[~(np.abs(values[:, None] - known).min(axis=1) <= LABEL_TOLERANCE)]
    if unknown.size:
        allowed = ", ".join(f"{value:g}" for value in known)
        yield (
            f"{path}: label values must be {allowed}; found {shown_values(unknown)}. Copy the label again, or leave "
            "this case out."
        )


def _grid_faults(first: Path, a: sitk.Image, second: Path, b: sitk.Image, most: GridTolerance) -> Iterator[str]:
    for what, wanted, found in grid_differences(Grid.of_image(a), Grid.of_image(b), most):
        yield (
            f"{second}: the {what} must be that of {first.name}, {wanted}; it is {found}. Export it again on the "
            "image's grid, or leave this case out."
        )
