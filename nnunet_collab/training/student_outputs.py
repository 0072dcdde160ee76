"""Parts of the students' outputs: groups of samples, and maps at the resolution of an output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.core.types import StudentOutput


def slice_output(output: StudentOutput, start: int, stop: int | None) -> StudentOutput:
    """The samples `start` to `stop` of a student's output, without its feature maps."""
    auxiliary = tuple(logits[start:stop] for logits in output.auxiliary)
    return StudentOutput(output.logits[start:stop], None, None, auxiliary)


def split_output(output: StudentOutput, sizes: Sequence[int]) -> list[StudentOutput]:
    """The groups of samples of a student's output, one after the other, without their feature maps."""
    ends = list(accumulate(sizes))
    return [slice_output(output, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def at_size(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """`(B, C, *S)` or a mask `(B, *S)` sampled at the nearest voxels of a grid of another size."""
    if tuple(tensor.shape[-len(size) :]) == tuple(size):
        return tensor
    channels = tensor if tensor.ndim == len(size) + 2 else tensor.unsqueeze(1)
    values = channels if channels.is_floating_point() else channels.float()
    sampled = F.interpolate(values, size=tuple(size), mode="nearest-exact").to(tensor.dtype)
    return sampled if tensor.ndim == sampled.ndim else sampled[:, 0]
