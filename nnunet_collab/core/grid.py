"""The grid of an image in world coordinates, and the comparison of two grids.

Sizes, spacings (mm) and origins (mm) are in SimpleITK's order x, y, z; so are the axes of `direction`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import SimpleITK as sitk


@dataclass(frozen=True)
class Grid:
    """Size and position of an image with `n` axes.

    Attributes:
        size: Number of voxels along each axis, `n` numbers.
        spacing: Distance of neighboring voxel centers, `n` numbers in mm.
        origin: Center of the first voxel, `n` numbers in mm.
        direction: `n * n` direction cosines, row by row; column `i` is the direction of axis `i`.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of_image(cls, image: sitk.Image) -> Grid:
        """The grid of a SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def of_properties(cls, properties: Mapping[str, Any], shape: Sequence[int]) -> Grid:
        """The grid from the properties of an nnU-Net reader. Formats without geometry get origin 0 and no rotation.

        Args:
            properties: Properties as a reader of nnU-Net returns them.
            shape: Shape `(C, Z, Y, X)` of the array that the reader returns.
        """
        if "sitk_stuff" in properties:
            stuff = properties["sitk_stuff"]
            axes = len(stuff["spacing"])
            return cls(tuple(shape[::-1][:axes]), *(tuple(stuff[what]) for what in ("spacing", "origin", "direction")))
        spacing = tuple(float(mm) for mm in properties["spacing"][::-1])
        origin, direction = np.zeros(3), np.eye(3)
        if "nibabel_stuff" in properties:
            stuff = properties["nibabel_stuff"]
            affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=np.float64)
            origin, direction = affine[:3, 3], affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        return cls(tuple(shape[:0:-1]), spacing, tuple(origin.tolist()), tuple(direction.ravel().tolist()))


@dataclass(frozen=True)
class GridTolerance:
    """The largest differences between two grids that count as equal. Headers store rounded values.

    Attributes:
        spacing: Relative difference of the spacing.
        origin: Difference of the origin, in voxels of the finest axis.
        direction: Difference of each direction cosine.
    """

    spacing: float = 1e-3
    origin: float = 1e-2
    direction: float = 1e-3


def grid_differences(wanted: Grid, found: Grid, most: GridTolerance | None = None) -> Iterator[tuple[str, str, str]]:
    """Each property in which `found` differs from `wanted`: its name, the wanted value, the found value.

    If the sizes differ, only the size is reported, because the other values cannot be compared then.
    """
    if wanted.size != found.size:
        yield "size", str(tuple(wanted.size)), str(tuple(found.size))
        return
    most = most or GridTolerance()
    axes = len(wanted.size)
    tolerances = {
        "spacing": [most.spacing * value for value in wanted.spacing],
        "origin": [most.origin * min(wanted.spacing)] * axes,
        "direction": [most.direction] * axes**2,
    }
    for what, tolerance in tolerances.items():
        ours, theirs = getattr(wanted, what), getattr(found, what)
        # "not <=" instead of ">": NaN must count as different.
        if any(not abs(x - y) <= t for x, y, t in zip(ours, theirs, tolerance, strict=True)):
            yield what, _short(ours), _short(theirs)


def _short(values: Sequence[float]) -> str:
    # 7 digits, so that an origin of 1234.56 mm that is wrong by 0.01 voxels looks different in the message.
    return "(" + ", ".join(f"{value:.7g}" for value in values) + ")"
