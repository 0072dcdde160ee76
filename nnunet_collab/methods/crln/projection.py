"""A projection of a feature map that is evaluated only at some voxels, for contrastive losses at full resolution.

CRLN (equation 9) projects f_4 by r = Conv1(Conv3(f_4)), which has several times as many channels as f_4. There is no
nonlinearity between the two convolutions, so r of a voxel depends only on its neighborhood in f_4. This is cheap for
the few voxels that carry a gradient. For the many voxels without gradient, Conv3 is computed once for the whole map,
and Conv1 only where needed. The mean of r over a class is Conv1 of the mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.core.distributed import all_reduce_sum
from nnunet_collab.networks.dimensions import CONVOLUTIONS, CONVOLVE


class VoxelProjection(nn.Module):
    """r = Conv1(Conv3(f_4)), evaluated voxel by voxel.

    Args:
        dims: 2 or 3.
        channels: Number of channels of f_4, `F_4`.
        width: Number of channels `F` of r and of the prototypes.
    """

    def __init__(self, dims: int, channels: int, width: int) -> None:
        super().__init__()
        self.dims = dims
        self.spatial = CONVOLUTIONS[dims](channels, channels, 3, padding=1)
        self.point = CONVOLUTIONS[dims](channels, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """The whole map `(B, F, *S)`; for tests and small images."""
        return self.point(self.spatial(features))  # type: ignore[no-any-return]

    def at(self, features: Tensor, voxels: Tensor) -> Tensor:
        """Features `(n, F)` of the voxels `(n, 1 + dims)` (sample, then position) of `features` `(B, F_4, *S)`."""
        steps = torch.cartesian_prod(*[torch.arange(-1, 2, device=voxels.device)] * self.dims)
        places = voxels[:, 1:].unsqueeze(1) + steps  # (n, neighbors, dims)
        last = torch.tensor(features.shape[2:], device=voxels.device) - 1
        outside = ((places < 0) | (places > last)).any(dim=2, keepdim=True)
        places = torch.minimum(places.clamp_min(0), last)
        # One access for all neighbors, so that the gradient of the map is computed once.
        gathered = features.movedim(1, -1)[(voxels[:, :1].expand_as(places[..., 0]), *places.unbind(dim=2))]
        neighbors = gathered.float().masked_fill(outside, 0).flatten(1)
        weight = self.spatial.weight.float().flatten(2).transpose(1, 2).flatten(1)  # neighbors before channels
        hidden = F.linear(neighbors, weight, self.spatial.bias.float())  # type: ignore[union-attr]
        return self._project(hidden)

    @torch.no_grad()
    def fixed(self, features: Tensor) -> FixedProjection:
        """All features of `(B, F_4, *S)`, as constants."""
        # In the precision of the features, which saves a copy of the largest map.
        weight, bias = self.spatial.weight.to(features.dtype), self.spatial.bias.to(features.dtype)  # type: ignore[union-attr]
        return FixedProjection(self, CONVOLVE[self.dims](features, weight, bias, padding=1))

    def _project(self, hidden: Tensor) -> Tensor:
        """Apply Conv1 to `(n, F_4)`."""
        return F.linear(hidden, self.point.weight.flatten(1).float(), self.point.bias.float())  # type: ignore[union-attr]


class FixedProjection:
    """r without gradient, for any number of voxels.

    Args:
        projection: The projection; its Conv1 is used.
        hidden: Conv3 of the features, `(B, F_4, *S)`.
    """

    def __init__(self, projection: VoxelProjection, hidden: Tensor) -> None:
        self.projection = projection
        self.hidden = hidden.movedim(1, -1).contiguous()  # channels last, because it is read voxel by voxel

    @torch.no_grad()
    def at(self, voxels: Tensor) -> Tensor:
        """Features `(n, F)` of the voxels `(n, 1 + dims)` (sample, then position)."""
        index = voxels[:, 0]
        for axis, size in enumerate(self.hidden.shape[1:-1], start=1):
            index = index * size + voxels[:, axis]
        rows = self.hidden.flatten(0, -2).index_select(0, index)
        return self.projection._project(rows.float())

    @torch.no_grad()
    def mean_of(self, members: Tensor) -> Tensor:
        """Mean of r `(C, F)` over the members of each class on all ranks; NaN for a class without any.

        Args:
            members: `(B, C, *S)` bool.
        """
        samples = zip(members.flatten(2), self.hidden.flatten(1, -2), strict=True)
        sums = all_reduce_sum(torch.stack([mask.float() @ hidden.float() for mask, hidden in samples]).sum(dim=0))
        counts = all_reduce_sum(members.sum(dim=[0, *range(2, members.ndim)]))
        return self.projection._project(sums / counts.unsqueeze(1))
