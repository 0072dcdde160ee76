r"""Signed distance maps of the truth, made in the loader's workers.

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
from scipy.ndimage import binary_erosion, distance_transform_edt
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
    inside = distance_transform_edt(mask, sampling=spacing)
    result[:] = outside / outside.max() - inside / inside.max()
    # Voxels beyond the patch are unknown, so its border is no boundary.
    result[mask & ~binary_erosion(mask, border_value=1)] = 0
    return result


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
        target = batch["target"]
        full: Tensor = target[0] if isinstance(target, list) else target
        if self.regions:
            masks = full[:, : self.regions].numpy().astype(bool)
        else:
            masks = np.concatenate([full.numpy() == label for label in self.classes], axis=1)
        maps = [[signed_distance(mask, self.spacing) for mask in sample] for sample in masks]
        return {**batch, KEY: torch.from_numpy(np.stack([np.stack(sample) for sample in maps]))}
