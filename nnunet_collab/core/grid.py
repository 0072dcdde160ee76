"""Where the voxels of an image lie in the world, and whether two images lie at the same place.

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
    """The grid of an image with `n` axes.

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
        """The grid that a reader of nnU-Net states; formats without geometry lie at 0, upright.

        Args:
            properties: As nnU-Net's readers return them.
            shape: `(C, Z, Y, X)` of the array that they return.
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
    """By how much two grids may differ and still count as one: headers round.

    Attributes:
        spacing: Relative.
        origin: In voxels of the finest axis.
        direction: Per direction cosine.
    """

    spacing: float = 1e-3
    origin: float = 1e-2
    direction: float = 1e-3


def grid_differences(wanted: Grid, found: Grid, most: GridTolerance | None = None) -> Iterator[tuple[str, str, str]]:
    """What of `found` is not that of `wanted`: its name, the wanted value, the found value.

    A difference in size is told alone, because the rest means nothing then.
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
    # Seven digits: an origin of 1234.56 mm that is wrong by a hundredth of a voxel must not look the same.
    return "(" + ", ".join(f"{value:.7g}" for value in values) + ")"
