r"""Signed distance maps of the truth: computed on the GPU if there is one, else in the loader's workers.

For each foreground class (or region) of a patch, with Euclidean distances in the units of the spacing,

.. math:: s = \frac{d_{out}}{\max d_{out}} - \frac{d_{in}}{\max d_{in}},

:math:`d_{out}` is the distance of outer voxels to the class, :math:`d_{in}` that of inner voxels to its outside. The
map is in [-1, 1], negative inside, and 0 on the boundary, the outermost layer of the class. A class that is absent or
fills the patch has no boundary in it: its map is 0.

Source: boundary-aware contrast of Zheng et al. (section III.D), after You et al., "SimCVD" (2021); the
form with both distances divided by their maximum is that of Xue et al., "Shape-aware organ segmentation by predicting
signed distance maps" (2020).
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

KEY = "signed_distance"  # name of the entry in the batch


def signed_distance(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float32]:
    """The map of one class in one patch.

    Args:
        mask: `(*S)`, True inside.
        spacing: Spacing of each axis, in any unit.

    Returns:
        `(*S)` in [-1, 1]; all 0 for an empty or a full mask.
    """
    result = np.zeros(mask.shape, np.float32)
    if not mask.any() or mask.all():
        return result
    outside = distance_transform_edt(~mask, sampling=spacing)
    np.divide(outside, outside.max(), out=result)
    # The nearest outer voxel of an inner voxel is at most one voxel outside of the class's bounding box.
    (box,) = find_objects(mask.astype(np.uint8))
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
    part = mask[box]
    inside = distance_transform_edt(part, sampling=spacing)
    result[box] -= (inside / inside.max()).astype(np.float32)
    # Voxels outside of the patch are unknown, so its border is not a boundary; neither is that of the box.
    result[box][part & ~binary_erosion(part, border_value=1)] = 0
    return result


@torch.no_grad()
def signed_distances(masks: Tensor, spacing: Sequence[float]) -> Tensor:
    """The maps of many classes at once, by operations that use the whole GPU and never wait for the device.

    The squared distance is a minimum over all voxels, taken axis by axis (Felzenszwalb and Huttenlocher, "Distance
    Transforms of Sampled Functions", 2012, section 3), and here over all positions of the axis. On a CPU that costs
    several times as much as `signed_distance`.

    Args:
        masks: `(B, K, *S)` bool, True inside.
        spacing: Spacing of each axis of the patch.

    Returns:
        `(B, K, *S)` float32 in [-1, 1], equal to `signed_distance` of each.
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
    """Distance to the nearest True voxel of the same mask, `(B, K, *S)`; inf if the mask is empty."""
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
    """`(B, K, *S)` bool: masks of the foreground classes or regions at full resolution, without the ignore label.

    Args:
        target: Target as nnU-Net's loader delivers it.
        classes: Foreground labels, by channel; empty if the target's channels are regions.
        regions: Number of regions; not used if there are classes.
    """
    full = target[0] if isinstance(target, list) else target
    return torch.cat([full == int(label) for label in classes], dim=1) if classes else full[:, :regions].bool()


class WithSignedDistances:
    """A source of batches that adds the maps of the labeled samples.

    The batch gets an entry `signed_distance` `(B, K, *S)` float32 at full resolution, K classes without background, or
    regions. Voxels of an ignore label count as outside of every class.

    Args:
        source: Source of batches with `target`, such as nnU-Net's loader.
        spacing: Spacing of each axis of the patch.
        classes: Foreground labels, by channel; empty if the target's channels are regions.
        regions: Number of regions; 0 if the target has one channel of labels.
    """

    def __init__(self, source: BatchSource, spacing: Sequence[float], *, classes: Sequence[int], regions: int) -> None:
        self.source = source
        self.spacing = list(spacing)
        self.classes = [int(label) for label in classes]
        self.regions = regions

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch with the global generators; the maps use no random numbers."""
        return self.complete(self.source.generate_train_batch())

    def complete(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its maps."""
        masks = class_masks(batch["target"], self.classes, self.regions).numpy()
        maps = [[signed_distance(mask, self.spacing) for mask in sample] for sample in masks]
        return {**batch, KEY: torch.from_numpy(np.stack([np.stack(sample) for sample in maps]))}
