r"""Signed distance maps of the truth: on a GPU made there, else in the loader's workers.

For each foreground class (or region) of a patch, with Euclidean distances in the units of the spacing,

.. math:: s = \frac{d_{out}}{\max d_{out}} - \frac{d_{in}}{\max d_{in}},

:math:`d_{out}` of outer voxels to the class, :math:`d_{in}` of inner ones to its outside; 0 on the boundary, which is
the outermost layer of the class, negative inside, in [-1, 1]. A class that is absent, or fills the patch, has no
boundary in it: its map is 0.

Source: boundary-aware contrast of Zheng et al. (section III.D), after You et al., "SimCVD" (2021); the form with both
distances divided by their largest is that of Xue et al., "Shape-aware organ segmentation by predicting signed distance
maps" (2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects
from torch import Tensor

from nnunet_collab.data.loaders import BatchSource

KEY = "signed_distance"  # of the entry in the batch


def signed_distance(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float32]:
    """The map of one class in one patch.

    Args:
        mask: `(*S)`, True inside.
        spacing: Of each axis, in any unit.

    Returns:
        `(*S)` in [-1, 1]; all 0 for an empty or a full mask.
    """
    result = np.zeros(mask.shape, np.float32)
    if not mask.any() or mask.all():
        return result
    outside = distance_transform_edt(~mask, sampling=spacing)
    np.divide(outside, outside.max(), out=result)
    # The nearest outer voxel of an inner one is at most one beyond the smallest box that holds the class.
    (box,) = find_objects(mask.astype(np.uint8))
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
    part = mask[box]
    inside = distance_transform_edt(part, sampling=spacing)
    result[box] -= (inside / inside.max()).astype(np.float32)
    # Voxels beyond the patch are unknown, so its border is no boundary; nor is that of the box.
    result[box][part & ~binary_erosion(part, border_value=1)] = 0
    return result


@torch.no_grad()
def signed_distances(masks: Tensor, spacing: Sequence[float]) -> Tensor:
    """The maps of many classes at once, by operations that keep a GPU busy and wait for nothing.

    The squared distance is a minimum over all voxels, taken axis by axis (Felzenszwalb and Huttenlocher, "Distance
    Transforms of Sampled Functions", 2012, section 3), and here over all places of the axis: on a CPU that costs
    several times as much as `signed_distance`.

    Args:
        masks: `(B, K, *S)` bool, True inside.
        spacing: Of each axis of the patch.

    Returns:
        `(B, K, *S)` float32 in [-1, 1], as `signed_distance` gives them one by one.
    """
    axes = tuple(range(2, masks.ndim))
    inside, outside = _distances_to(~masks, spacing), _distances_to(masks, spacing)
    maps = outside / outside.amax(axes, keepdim=True) - inside / inside.amax(axes, keepdim=True)
    edge = torch.zeros_like(masks)
    for axis in axes:
        first, last = masks.narrow(axis, 0, masks.shape[axis] - 1), masks.narrow(axis, 1, masks.shape[axis] - 1)
        edge.narrow(axis, 0, first.shape[axis]).logical_or_(first & ~last)
        edge.narrow(axis, 1, last.shape[axis]).logical_or_(last & ~first)
    bounded = masks.any(dim=2).flatten(2).any(dim=2) & ~masks.flatten(2).all(dim=2)
    return maps.masked_fill(edge | ~bounded.view(*bounded.shape, *[1] * len(axes)), 0)


def _distances_to(masks: Tensor, spacing: Sequence[float]) -> Tensor:
    """Distance to the nearest True voxel of the same mask, `(B, K, *S)`; inf without any."""
    squares = torch.where(masks, 0.0, float("inf"))
    for axis, step in enumerate(spacing, start=2):
        places = torch.arange(masks.shape[axis], device=masks.device, dtype=torch.float32) * step
        result = torch.full_like(squares, float("inf"))
        shape = [-1 if other == axis else 1 for other in range(masks.ndim)]
        for place in range(masks.shape[axis]):
            costs = (places - places[place]).square().view(shape)
            torch.minimum(result, squares.narrow(axis, place, 1) + costs, out=result)
        squares = result
    return squares.sqrt()


def class_masks(target: Tensor | list[Tensor], classes: Sequence[int], regions: int) -> Tensor:
    """`(B, K, *S)` bool: each foreground class, or region, at full resolution; of the ignore label nothing.

    Args:
        target: As nnU-Net's loader delivers it.
        classes: Foreground labels, by channel; empty if the target's channels are regions.
        regions: Number of regions, not looked at where there are classes.
    """
    full = target[0] if isinstance(target, list) else target
    return torch.cat([full == int(label) for label in classes], dim=1) if classes else full[:, :regions].bool()


class WithSignedDistances:
    """A source of batches that adds the maps of the labeled samples.

    The batch gets an entry `signed_distance` `(B, K, *S)` float32 at full resolution, K classes without background, or
    regions. Voxels of an ignore label count as outside of every class.

    Args:
        source: Draws batches as nnU-Net's loader does, with `target`.
        spacing: Of each axis of the patch.
        classes: Foreground labels, by channel; empty if the target's channels are regions.
        regions: Number of regions; 0 if the target has one channel of labels.
    """

    def __init__(self, source: BatchSource, spacing: Sequence[float], *, classes: Sequence[int], regions: int) -> None:
        self.source = source
        self.spacing = list(spacing)
        self.classes = [int(label) for label in classes]
        self.regions = regions

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch from the global generators; the maps draw nothing."""
        return self.complete(self.source.generate_train_batch())

    def complete(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its maps."""
        masks = class_masks(batch["target"], self.classes, self.regions).numpy()
        maps = [[signed_distance(mask, self.spacing) for mask in sample] for sample in masks]
        return {**batch, KEY: torch.from_numpy(np.stack([np.stack(sample) for sample in maps]))}
