"""Heads of LDC: signed distance maps from the last decoder features, and one vector per image or slice of the maps.

Source: Zheng et al., section III.D, which names projection heads of signed distance maps, but not their layers. We use
a point-wise convolution with tanh, since the maps are in [-1, 1], and an MLP on the pooled map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.core.pooling import average_pool
from nnunet_collab.networks.dimensions import CONVOLUTIONS


class DistanceHead(nn.Module):
    """Signed distance maps by tanh of a 1x1 convolution.

    Args:
        dims: 2 or 3.
        channels: Channels of the features.
        maps: Number of maps `K`, one per foreground class or region.
    """

    def __init__(self, dims: int, channels: int, maps: int) -> None:
        super().__init__()
        self.point = CONVOLUTIONS[dims](channels, maps, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D, *s)` to `(B, K, *s)` in [-1, 1], float32."""
        # The convolution may run in half precision, which saves a copy of the largest map.
        return self.point(features).float().tanh()  # type: ignore[no-any-return]


class SliceProjection(nn.Module):
    """One vector of length 1 per image, or per slice of a volume.

    Args:
        maps: Number of maps `K`.
        axis: Spatial axis along which volumes are cut into slices; None for images.
        pool: Maps of images and slices are average-pooled to at most `pool` x `pool`.
        size: Size of the maps, `(*s)`.
        width: Length of the vectors.
    """

    def __init__(self, maps: int, axis: int | None, size: tuple[int, ...], *, pool: int = 16, width: int = 128) -> None:
        super().__init__()
        self.axis = axis
        in_plane = [n for i, n in enumerate(size) if i != axis]
        self.pool = min(pool, in_plane[0]), min(pool, in_plane[1])
        self.mlp = nn.Sequential(
            nn.Linear(maps * self.pool[0] * self.pool[1], width), nn.ReLU(inplace=True), nn.Linear(width, width)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """`(B, K, *s)` to `(B * J, E)`, the J slices of a volume (1 of an image) one after the other."""
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float()
            if self.axis is not None:
                maps = maps.movedim(2 + self.axis, 1).flatten(0, 1)
            return F.normalize(self.mlp(average_pool(maps, self.pool).flatten(1)), dim=1)
