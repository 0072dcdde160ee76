"""Read the images of a public dataset, and say everything that is wrong with them before anything is converted.

A converter names its cases (`Case`) and what a file of the dataset must look like (`SourceRules`); `verify_pairs` reads
every file once and returns one line per fault, each with the file and how to fix it. An empty list means: convert.

Two faults need care, because SimpleITK does not report them: a file that was cut off during the download
(`core/whole_files.py`), and an image and a label of equal size that lie on different grids.

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
    """One case of the source: what it will be called, and where its files are.

    Attributes:
        name: Name of the case in nnU-Net, without channel number and file ending.
        images: One path per channel; a folder where the reader takes folders.
        label: None for cases without a label.
        others: Further files that the readers open for this case.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    others: tuple[Path, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every path the case is made of."""
        return (*self.images, *((self.label,) if self.label is not None else ()), *self.others)


@dataclass(frozen=True)
class SourceRules:
    """What each file of a source must look like, and how it is read.

    Attributes:
        label_values: Value in the source's labels -> value in nnU-Net's. Any other value is a fault.
        axes: Spatial axes, 2 or 3.
        components: Values per pixel of an image file: 1, or 3 for color pictures. Labels always have 1.
        read_image: Path -> image. Replace it for sources that `read_image` cannot read (a DICOM series).
        read_label: Path -> label. Replace it for labels that must be corrected first (a JPEG mask, flipped slices).
        label_grid: How well the label's grid must fit the image's. Wider where a source is known to be inexact.
    """

    label_values: Mapping[int, int]
    axes: int = 3
    components: int = 1
    read_image: Callable[[Path], sitk.Image] = read_image
    read_label: Callable[[Path], sitk.Image] = read_image
    label_grid: GridTolerance = field(default_factory=GridTolerance)


def verify_pairs(cases: Sequence[Case], rules: SourceRules) -> list[str]:
    """Read every file of the cases and list what is wrong.

    Args:
        cases: Any number; none gives an empty list.
        rules: What the files must look like.

    Returns:
        One line per fault, in the order of the cases: case, file, what was found, how to fix it.
    """
    bar = tqdm(cases, desc="Checking the source", unit="case", disable=None)
    return [f"case {case.name}: {fault}" for case in bar for fault in _faults(case, rules)]


def same_grid(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether size, spacing, origin and direction are equal to the last bit."""
    return all(
        getattr(first, what)() == getattr(second, what)()
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")
    )


def to_nnunet_label(label: sitk.Image, grid: sitk.Image, rules: SourceRules) -> sitk.Image:
    """The label as uint8 with nnU-Net's values, on the image's grid.

    Args:
        label: Label of the source, of any number type; `verify_pairs` has found no fault in it.
        grid: Image of the same size, whose spacing, origin and direction the result takes over.
        rules: Their `label_values` are applied.
    """
    # rint before the comparison: a scale factor in the header makes 2.0000001 out of 2.
    voxels = np.rint(sitk.GetArrayViewFromImage(label))
    mapped = np.zeros(voxels.shape, dtype=np.uint8)
    for value, new in rules.label_values.items():
        mapped[voxels == value] = new
    result = sitk.GetImageFromArray(mapped)
    result.CopyInformation(grid)
    return result


def _faults(case: Case, rules: SourceRules) -> Iterator[str]:
    """Faults of one case; grids are compared only among files that could be read and are of the right kind."""
    # An image and its label may be parts of one file, so the path alone does not tell which is meant.
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
        series = " It looks like a time series: put the single frame there." if image.GetDimension() > axes else ""
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
