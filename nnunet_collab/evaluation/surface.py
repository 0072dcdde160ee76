r"""Distances between the surfaces of two masks: Hausdorff, its 95th percentile, and the average.

**Surface.** A voxel of a mask is on the mask's surface :math:`\partial A` if one of its face neighbors (4 in 2D, 6 in
3D) is outside the mask; voxels beyond the image are outside. Points are voxel centers, in mm, and every
surface voxel has the same weight. With :math:`d(a, B) = \min_{b \in \partial B} \lVert a - b \rVert_2` and the directed
sets of distances :math:`D_{AB} = \{d(a, B) : a \in \partial A\}` and :math:`D_{BA}`,

.. math::
    \mathrm{HD} &= \max(\max D_{AB}, \max D_{BA}) \\
    \mathrm{HD95} &= \max(P_{95}(D_{AB}), P_{95}(D_{BA})) \\
    \mathrm{ASD} &= \frac{\sum D_{AB} + \sum D_{BA}}{|\partial A| + |\partial B|}

HD95 is the larger of the two directed 95th percentiles (linear interpolation between ranks), *not* the percentile of
the pooled distances. This is the definition of MONAI's `compute_hausdorff_distance(percentile=95)`, and ASD that of
MONAI's `compute_average_surface_distance(symmetric=True)`. DeepMind's `surface-distance` puts its points on voxel
corners and weighs them by surface area; on smooth objects it differs by less than a voxel.

Nearest surface voxels are found with a k-d tree of the surface voxels alone. It is as exact as a Euclidean distance
transform with `sampling=spacing`, but its time and memory do not depend on the bounding box of the masks. With a
transform, one stray voxel in the far corner of a CT would require a transform of the whole volume.

Range: `[0, inf)` mm; 0 exactly where the surfaces agree. An empty mask has no surface: the three distances are NaN.

**Normalized surface Dice** at a tolerance :math:`\tau`: the share of both surfaces that lies within :math:`\tau` of the
other one,

.. math::
    \mathrm{NSD}_\tau = \frac{|\{a \in \partial A : d(a, B) \le \tau\}| + |\{b \in \partial B : d(b, A) \le \tau\}|}
                            {|\partial A| + |\partial B|}

Source: S. Nikolov et al., Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy, JMIR 23(7),
2021. It counts surface voxels, as MONAI's `compute_surface_dice` does. `surface-distance`, by the authors, weighs
points on voxel corners by surface area: on smooth objects it differs by up to 0.05 with cubic voxels, and by up to 0.1
with slices three times as thick, because each voxel of a slice counts as much as one of a steep side. Take the
tolerance from how far two annotators differ; one below half a voxel measures the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Mask = NDArray[np.bool_]
_WHERE = "surface_distances"


class SurfaceDistances(NamedTuple):
    """Three distances between two surfaces, in the unit of the spacing.

    Attributes:
        hd_mm: Hausdorff distance, the largest distance of all.
        hd95_mm: The larger of the two directed 95th percentiles.
        asd_mm: Average symmetric surface distance, over the voxels of both surfaces together.
    """

    hd_mm: float
    hd95_mm: float
    asd_mm: float


def surface_distances(prediction: Mask, truth: Mask, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Hausdorff distance, HD95 and average symmetric surface distance; symmetric in the two masks.

    Axes of length 1 are dropped, so a single slice is measured in its plane; otherwise every voxel would be surface.

    Args:
        prediction: `(*S)` bool.
        truth: `(*S)` bool.
        spacing_mm: Distance of neighboring voxel centers along each axis of the masks, in mm, > 0.

    Returns:
        The three distances; all NaN if either mask is empty.

    Raises:
        TypeError: If a mask is not boolean.
        ValueError: If the shapes differ or `spacing_mm` does not fit them.
    """
    return summary_of(*directed_distances(prediction, truth, [spacing_mm]))


class Directed(NamedTuple):
    """Distances from every surface voxel of each mask to the surface of the other, in the unit of the spacing.

    Attributes:
        there: `(N,)`, from the prediction to the truth.
        back: `(M,)`, from the truth to the prediction.
    """

    there: NDArray[np.float64]
    back: NDArray[np.float64]


def directed_distances(
    prediction: Mask, truth: Mask, spacings: Sequence[Sequence[float]]
) -> tuple[Directed | None, ...]:
    """All distances between the two surfaces, at each of the spacings; None for each if either mask is empty.

    The surfaces are found once. Shapes and errors are those of `surface_distances`.
    """
    check_masks(_WHERE, prediction=prediction, truth=truth)
    checked = [_checked_spacing(spacing, prediction.ndim) for spacing in spacings]
    if not (prediction.any() and truth.any()):
        return (None,) * len(checked)

    thick = [axis for axis, size in enumerate(prediction.shape) if size > 1]
    if not thick:  # an image of one voxel, which is in both masks
        return tuple(Directed(np.zeros(1), np.zeros(1)) for _ in checked)
    prediction, truth = _crop_to_union(prediction.squeeze(), truth.squeeze())
    ours, theirs = _surface(prediction), _surface(truth)
    both = ours & theirs
    points = _Points(_where(ours), both[ours]), _Points(_where(theirs), both[theirs])
    return tuple(_between(*points, spacing[thick]) for spacing in checked)


def summary_of(directed: Directed | None) -> SurfaceDistances:
    """The three distances of the module's equations; NaN without surfaces."""
    if directed is None:
        return SurfaceDistances(np.nan, np.nan, np.nan)
    there, back = directed
    return SurfaceDistances(
        hd_mm=float(max(there.max(), back.max())),
        hd95_mm=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        asd_mm=float((there.sum() + back.sum()) / (there.size + back.size)),
    )


def surface_dice(directed: Directed | None, tolerance: float) -> float:
    """Normalized surface Dice in `[0, 1]`; NaN without surfaces.

    Args:
        directed: From `directed_distances`.
        tolerance: In the unit of the spacing, >= 0. Distances that exceed it by rounding alone are within it.

    Raises:
        ValueError: If the tolerance is negative or not finite.
    """
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"surface_dice: the tolerance must be a number of at least 0; got {tolerance}")
    if directed is None:
        return float("nan")
    reach = tolerance * (1 + 1e-9)
    within = sum(int(np.count_nonzero(distances <= reach)) for distances in directed)
    return within / (directed.there.size + directed.back.size)


class _Points(NamedTuple):
    """Surface voxels of a mask: `(N, axes)` indices, and `(N,)` whether they are on the other mask's surface, too."""

    indices: NDArray[np.int64]
    shared: NDArray[np.bool_]


def _between(ours: _Points, theirs: _Points, spacing: NDArray[np.float64]) -> Directed:
    """The distances between two surfaces, neither empty."""
    return Directed(_nearest(ours, theirs, spacing), _nearest(theirs, ours, spacing))


def check_masks(where: str, **masks: Mask) -> None:
    """Raise unless the named masks are boolean and of one shape.

    Args:
        where: Public name of the caller; the message starts with it.
        **masks: Argument name -> array.

    Raises:
        TypeError: If a mask is not boolean; the message names the first one.
        ValueError: If shapes differ; the message gives the shape of every mask.
    """
    for name, mask in masks.items():
        if mask.dtype != np.bool_:
            raise TypeError(
                f"{where}: masks must be bool (True = inside); `{name}` is {mask.dtype}. Compare first: labels == 1."
            )
    if len({mask.shape for mask in masks.values()}) > 1:
        got = ", ".join(f"{name} {mask.shape}" for name, mask in masks.items())
        raise ValueError(f"{where}: shapes must be equal; got {got}")


def _checked_spacing(spacing_mm: Sequence[float], axes: int) -> NDArray[np.float64]:
    """The spacing as float64, one positive number per axis."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (axes,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"{_WHERE}: spacing_mm must be {axes} positive numbers, one per axis; got {tuple(spacing_mm)}")
    return spacing


def _crop_to_union(first: Mask, second: Mask) -> tuple[Mask, Mask]:
    """Both masks cut to the bounding box of their union, which must not be empty."""
    for axis in range(first.ndim):
        others = tuple(other for other in range(first.ndim) if other != axis)
        occupied = np.flatnonzero(first.any(axis=others) | second.any(axis=others))
        window = (slice(None),) * axis + (slice(occupied[0], occupied[-1] + 1),)
        first, second = first[window], second[window]
    return first, second


def _surface(mask: Mask) -> Mask:
    """The voxels with a face neighbor outside."""
    interior = mask.copy()
    for axis in range(mask.ndim):
        inside, neighbors = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inside[1:] &= neighbors[:-1]
        inside[:-1] &= neighbors[1:]
        inside[[0, -1]] = False  # voxels beyond the image are outside
    return mask & ~interior


def _where(mask: Mask) -> NDArray[np.int64]:
    """`np.argwhere(mask) + 1`, faster for few voxels in a large box.

    Counted from 1, as in the first tables: the last bit of a distance depends on where the box starts.
    """
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), axis=1) + 1


def _nearest(points: _Points, others: _Points, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each of the points to the nearest of the others, `(N,)`."""
    distances = np.zeros(len(points.indices))  # distance of points that are on both surfaces
    tree = KDTree(others.indices * spacing, leafsize=32, balanced_tree=False)
    distances[~points.shared] = tree.query(points.indices[~points.shared] * spacing)[0]
    return distances
