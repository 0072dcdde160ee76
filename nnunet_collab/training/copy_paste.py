"""Copy-paste of patches as in BCP: one box in the middle of a batch, pairs of samples, and the largest components.

Source: Bai et al., "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation" (CVPR 2023), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from nnunet_collab.training.cutmix import box_masks

NEIGHBORS = {"faces": 1, "edges": 2, "corners": 3}  # steps along how many axes lead to a neighbor


def draw_box(size: Sequence[int], share: float) -> Tensor:
    """One box inside a patch: first voxel and the one behind the last along each axis, `(1, axes, 2)` int64.

    The zero-centered mask of the paper: 0 in the box. Every place inside the patch is equally likely; a box of two
    thirds of each side always covers the middle. Drawn on the CPU by torch's global generator, whose state is in the
    checkpoints.

    Args:
        size: Spatial size of the patch.
        share: Share of each side, beta. An axis of one voxel is not cut.
    """
    corners = []
    for length in size:
        extent = max(1, math.floor(length * share + 1e-9))  # 96 * (2 / 3) is 64, not 63.99...
        first = int(torch.randint(0, length - extent + 1, ()))
        corners.append((first, first + extent))
    return torch.tensor([corners], dtype=torch.int64)


def draw_inside(size: Sequence[int], share: float, device: torch.device) -> Tensor:
    """The box of a batch as a mask `(1, *S)` bool, True inside."""
    return box_masks(draw_box(size, share).to(device), size)


def halves(count: int) -> tuple[Tensor, Tensor]:
    """The samples of a batch in two random groups: `(ceil(count / 2),)` and `(floor(count / 2),)` int64 on the CPU.

    Random, because nnU-Net centers the last samples of a batch on foreground.
    """
    order = torch.randperm(count)
    return order[0::2], order[1::2]


def as_many(indices: Tensor, count: int) -> Tensor:
    """The indices over and over until there are `count`."""
    return indices.repeat(-(-count // len(indices)))[:count]


def largest_components(masks: Tensor, neighbors: str) -> Tensor:
    """Of each mask the connected component with most voxels; of equally large ones the first.

    On the CPU: the host waits for the masks.

    Args:
        masks: `(B, K, *S)` bool; each of the B * K masks by itself.
        neighbors: Which voxels are connected: those that share `faces`, also `edges`, or also `corners`.

    Returns:
        `(B, K, *S)` bool on the device of the masks; an empty mask stays empty.
    """
    found = masks.cpu().numpy()
    structure = ndimage.generate_binary_structure(found.ndim - 2, NEIGHBORS[neighbors])
    kept = np.zeros_like(found)
    for place in np.ndindex(*found.shape[:2]):
        components, count = ndimage.label(found[place], structure)
        if count:
            kept[place] = components == 1 + np.bincount(components.ravel())[1:].argmax()
    return torch.from_numpy(kept).to(masks.device)
