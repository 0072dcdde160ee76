"""Dynamic interaction module (DIM) of CRLN: learned prototypes attend to two decoder maps; one map per class results.

Source: Wang et al., "Leveraging labeled data knowledge: A cooperative rectification learning network for
semi-supervised 3D medical image segmentation" (Medical Image Analysis 2025), equations 3 to 7. No code was published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.networks.dimensions import CONVOLUTIONS, UPSAMPLING

Aggregation = Literal["sum", "spatial", "convolutional", "shared"]

PROTOTYPE_STD = 0.02  # not in the paper; the value of Transformers' embeddings


class DynamicInteraction(nn.Module):
    """Prototypes `(C, R, F)` and the layers that relate them to the maps of an image.

    Args:
        dims: 2 or 3.
        num_classes: Number of classes `C`, with the background.
        prototypes: Number of prototypes `R` per class.
        channels: Channels of the coarser map f_2 (`F`) and of the finer map f_3 (`F_3`).
        aggregation: Table 6: the sum over the prototypes; a spatial convolution before it (SA); a convolution in place
            of the sum, with weights per class (SA + CI); the same weights for all classes (SA + CI + CR, equation 6).
    """

    def __init__(
        self, dims: int, num_classes: int, prototypes: int, channels: tuple[int, int], *, aggregation: Aggregation
    ) -> None:
        super().__init__()
        coarse, fine = channels
        conv = CONVOLUTIONS[dims]
        self.dims = dims
        self.aggregation = aggregation
        self.prototypes = nn.Parameter(torch.randn(num_classes, prototypes, coarse) * PROTOTYPE_STD)
        self.context_2, self.context_3 = conv(coarse, coarse, 1), conv(fine, fine, 1)
        self.query_1, self.key_1, self.value_1 = (nn.Linear(coarse, coarse) for _ in range(3))
        self.query_2, self.key_2 = nn.Linear(coarse, fine), nn.Linear(fine, fine)
        groups = 1 if aggregation == "shared" else num_classes
        width = prototypes * groups
        if aggregation != "sum":
            self.spatial = conv(width, width, 3, padding=1, groups=groups)
        if aggregation in ("convolutional", "shared"):
            self.combine = conv(width, groups, 1, groups=groups)

    def forward(self, coarse: Tensor, fine: Tensor, size: Sequence[int]) -> Tensor:
        """The holistic relationship map `(B, C, *size)`, real-valued like logits; computed in float32.

        Args:
            coarse: Map f_2, `(B, F, *s_2)`.
            fine: Map f_3, `(B, F_3, *s_3)`.
            size: Spatial size of the image.
        """
        with torch.autocast(coarse.device.type, enabled=False):
            proximity = self._proximity(coarse.float(), fine.float())
            relations = self._aggregate(proximity)
            return F.interpolate(relations, size=tuple(size), mode=UPSAMPLING[self.dims], align_corners=False)

    def _proximity(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """M^II of equation 5, `(B, C, R, *s_3)`."""
        r2 = self.context_2(coarse).flatten(2).transpose(1, 2)  # (B, N_2, F)
        r3 = self.context_3(fine).flatten(2).transpose(1, 2)  # (B, N_3, F_3)
        classes, count, width = self.prototypes.shape
        tokens = self.prototypes.reshape(1, classes * count, width).expand(len(r2), -1, -1)
        scores = self.query_1(tokens) @ self.key_1(r2).transpose(1, 2) / math.sqrt(width)  # equation 3
        updated = scores.softmax(dim=-1) @ self.value_1(r2)  # equation 4
        proximity = self.query_2(updated) @ self.key_2(r3).transpose(1, 2) / math.sqrt(r3.shape[-1])  # equation 5
        return proximity.unflatten(1, (classes, count)).unflatten(3, fine.shape[2:])  # type: ignore[no-any-return]

    def _aggregate(self, proximity: Tensor) -> Tensor:
        """Equation 6 before the upsampling: `(B, C, R, *s_3)` to `(B, C, *s_3)`."""
        classes, count = proximity.shape[1:3]
        if self.aggregation == "sum":
            return proximity.sum(dim=2)
        if self.aggregation == "shared":
            relations = self.combine(self.spatial(proximity.flatten(0, 1)))
            return relations.unflatten(0, (-1, classes))[:, :, 0]  # type: ignore[no-any-return]
        spatial = self.spatial(proximity.flatten(1, 2))
        if self.aggregation == "spatial":
            return spatial.unflatten(1, (classes, count)).sum(dim=2)  # type: ignore[no-any-return]
        return self.combine(spatial)  # type: ignore[no-any-return]
