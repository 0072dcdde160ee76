"""A projection of a feature map that is evaluated only at some voxels, for contrastive losses at full resolution.

CRLN (equation 9) projects f_4 by r = Conv1(Conv3(f_4)). Nothing stands between the two convolutions, so r of one voxel
follows from the neighbourhood of f_4 around it, and the mean of r over a class from shifted means of f_4.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}


class VoxelProjection(nn.Module):
    """r = Conv1(Conv3(f_4)), evaluated voxel by voxel.

    Args:
        dims: 2 or 3.
        channels: `F_4`.
        width: `F` of the prototypes, to which r is compared.
    """

    def __init__(self, dims: int, channels: int, width: int) -> None:
        super().__init__()
        self.spatial = CONV[dims](channels, channels, 3, padding=1)
        self.point = CONV[dims](channels, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """The whole map `(B, F, *S)`; for tests and small images."""
        return self.point(self.spatial(features))  # type: ignore[no-any-return]

    def at(self, features: Tensor, voxels: Tensor) -> Tensor:
        """Features `(n, F)` of the voxels `(n, 1 + dims)` (sample, then position) of `features` `(B, F_4, *S)`."""
        padded = F.pad(features, [1, 1] * (features.ndim - 2)).movedim(1, -1)
        sample, *position = voxels.unbind(dim=1)
        hidden = self.spatial.bias.float()  # type: ignore[union-attr]
        for offset, weight in self._taps(features.ndim - 2):
            gathered = padded[(sample, *(p + o for p, o in zip(position, offset, strict=True)))]
            hidden = hidden + gathered.float() @ weight.t()
        return F.linear(hidden, self.point.weight.flatten(1).float(), self.point.bias.float())  # type: ignore[union-attr]

    def mean_of(self, features: Tensor, members: Tensor) -> Tensor:
        """Mean feature `(C, F)` of each class.

        Args:
            features: `(B, F_4, *S)`.
            members: `(B, C, *S)` bool; NaN is returned for a class without any.
        """
        counts = members.sum(dim=[0, *range(2, members.ndim)]).float()
        padded = F.pad(features, [1, 1] * (features.ndim - 2))
        mask = members.flatten(2).float()
        hidden = self.spatial.bias.float().expand(len(counts), -1)  # type: ignore[union-attr]
        for offset, weight in self._taps(features.ndim - 2):
            window = tuple(slice(o, o + n) for o, n in zip(offset, features.shape[2:], strict=True))
            shifted = padded[(slice(None), slice(None), *window)].flatten(2).float()
            sums = torch.einsum("bcn,bfn->cf", mask, shifted)
            hidden = hidden + (sums / counts.unsqueeze(1)) @ weight.t()
        return F.linear(hidden, self.point.weight.flatten(1).float(), self.point.bias.float())  # type: ignore[union-attr]

    def _taps(self, dims: int) -> list[tuple[tuple[int, ...], Tensor]]:
        """Offsets 0 to 2 along each axis, and the weight `(F_4, F_4)` of the convolution there."""
        weight = self.spatial.weight.float()
        return [(o, weight.movedim((0, 1), (-2, -1))[o]) for o in itertools.product(range(3), repeat=dims)]
