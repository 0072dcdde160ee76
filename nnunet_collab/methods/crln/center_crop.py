"""The center crop of a patch: the student sees only this part, the teacher sees the whole patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.core.errors import CollabError


class CenterCrop:
    """A box in the middle of a patch. Its sides are about a given share of the patch's.

    Args:
        size: Size of the patch.
        share: Share of every side, in (0, 1].
        multiple: The network only accepts sides that are multiples of these; the nearest multiples are used.
    """

    def __init__(self, size: Sequence[int], share: float, multiple: Sequence[int]) -> None:
        sides = [max(1, round(share * n / m)) * m for n, m in zip(size, multiple, strict=True)]
        self.size = tuple(min(side, n) for side, n in zip(sides, size, strict=True))
        self.before = tuple((n - side) // 2 for n, side in zip(size, self.size, strict=True))
        self.after = tuple(n - side - b for n, side, b in zip(size, self.size, self.before, strict=True))
        self.whole = self.size == tuple(size)

    def take(self, tensor: Tensor) -> Tensor:
        """Crop `(B, C, *S)` or `(B, *S)` to the box."""
        first = tensor.ndim - len(self.size)
        for axis, (start, length) in enumerate(zip(self.before, self.size, strict=True), start=first):
            tensor = tensor.narrow(axis, start, length)
        return tensor

    def put_back(self, box: Tensor) -> Tensor:
        """Put a box back into a patch that is 0 or False outside."""
        margins = [n for pair in zip(self.before[::-1], self.after[::-1], strict=True) for n in pair]  # last axis first
        return box if self.whole else F.pad(box, margins)


def context_of(patch: Sequence[int], share: float, network: Any) -> CenterCrop:
    """The box that the student sees of unlabeled patches.

    Args:
        patch: Size of the patch.
        share: Setting `context_crop`.
        network: UNet of the student, whose strides tell which sizes it takes.

    Raises:
        CollabError: If the share leaves the whole patch or a single voxel at the lowest resolution.
    """
    strides = [math.prod(axis) for axis in zip(*network.encoder.strides, strict=True)]
    context = CenterCrop(patch, share, strides)
    if share < 1 and (context.whole or list(context.size) == strides):
        what = "the whole patch" if context.whole else "a single voxel at the lowest resolution"
        raise CollabError(
            f"setting 'context_crop': {share:g} of the patch {list(patch)} is {list(context.size)}, since the "
            f"network takes multiples of {strides}: that leaves {what}. Choose another share, or 1."
        )
    return context
