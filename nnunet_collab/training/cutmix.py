"""CutMix (Yun et al. 2019) of patches in two or three dimensions: one box for image, pseudo label and confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# The ranges of UniMatch and CrossMatch: share of the patch, and ratio of two sides relative to those of the patch.
# The papers draw the ratio uniformly. We draw its logarithm, so that long and wide boxes are equally frequent in
# every dimension.
SHARE = (0.02, 0.4)
RATIO = (0.3, 1 / 0.3)
TRIES = 100  # a long box may not fit the patch; about half of them do


def draw_boxes(count: int, size: Sequence[int], *, probability: float) -> Tensor:
    """Random boxes, one per sample: first voxel and the one behind the last along each axis, `(count, axes, 2)` int64.

    Samples without a box have 0 in both places. Each axis is drawn separately, so boxes lie inside the patch for any
    patch size (the published code for volumes swaps two axes). The numbers are drawn on the CPU by torch's global
    generator, whose state is in the checkpoints.

    Args:
        count: Number of samples.
        size: Spatial size of the patch.
        probability: Probability that a sample gets a box.
    """
    nothing = [(0, 0)] * len(size)
    boxes = [_draw_box(size) if float(torch.rand(())) < probability else nothing for _ in range(count)]
    return torch.tensor(boxes, dtype=torch.int64).view(count, len(size), 2)


def box_masks(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """`(B, *size)` bool, True inside of the boxes `(B, axes, 2)`, on their device."""
    masks = torch.ones((), dtype=torch.bool, device=boxes.device)
    for axis, length in enumerate(size):
        first, behind = boxes[:, axis].unbind(dim=1)
        place = torch.arange(length, device=boxes.device)
        inside = (place >= first.unsqueeze(1)) & (place < behind.unsqueeze(1))
        masks = masks & inside.view(len(boxes), *[length if other == axis else 1 for other in range(len(size))])
    return masks.expand(len(boxes), *size)


def _draw_box(size: Sequence[int]) -> list[tuple[int, int]]:
    share = SHARE[0] + (SHARE[1] - SHARE[0]) * float(torch.rand(()))
    axes = max(1, sum(length > 1 for length in size))  # an axis of one voxel cannot be cut
    for _ in range(TRIES):
        # Logarithms of the sides relative to a box of the patch's shape; they add up to 0, so the share is kept.
        aspect = (torch.rand(axes) - 0.5) * math.log(RATIO[1] / RATIO[0]) / 2
        sides = (share ** (1 / axes) * (aspect - aspect.mean()).exp()).tolist()
        if max(sides) <= 1:
            break
    else:
        sides = [share ** (1 / axes)] * axes
    box, drawn = [], iter(sides)
    for length in size:
        extent = max(1, round(next(drawn) * length)) if length > 1 else 1
        start = int(torch.randint(0, length - extent + 1, ()))
        box.append((start, start + extent))
    return box


def draw_partners(count: int) -> Tensor:
    """For each of `count` samples the index of another sample, never its own: `(count,)` int64 on the CPU.

    Raises:
        ValueError: If there is no other sample.
    """
    if count < 2:
        raise ValueError(f"draw_partners: a sample needs another one to be mixed with; got {count}.")
    order = torch.randperm(count)
    partners = torch.empty_like(order)
    partners[order] = order.roll(1)  # a single cycle through all samples
    return partners


def mix(tensor: Tensor, other: Tensor, boxes: Tensor) -> Tensor:
    """`other` inside the boxes and `tensor` outside.

    Args:
        tensor: `(B, C, *S)` or `(B, *S)`.
        other: The same shape.
        boxes: `(B, *S)` bool.
    """
    return torch.where(boxes if boxes.ndim == tensor.ndim else boxes.unsqueeze(1), other, tensor)


class CutMix:
    """The boxes of one strong view, and the source of their content.

    Args:
        count: Number of samples.
        size: Spatial size of the patch.
        probability: Probability that a sample gets a box.
        device: Device of the tensors that will be mixed.
        within_batch: True to fill boxes from another sample of the batch, False from samples of the second batch.
    """

    def __init__(
        self, count: int, size: Sequence[int], *, probability: float, device: torch.device, within_batch: bool
    ) -> None:
        self.partners = draw_partners(count).to(device) if within_batch and probability > 0 else None
        # Move only the corners to the device, not masks as large as the batch.
        self.boxes = box_masks(draw_boxes(count, size, probability=probability).to(device), size)
        self.probability = probability

    def __call__(self, tensor: Tensor, second: Tensor | None = None) -> Tensor:
        """`(B, C, *S)` or `(B, *S)` with the boxes filled from `second`, or from the partners in the batch."""
        if self.probability == 0:
            return tensor
        other = tensor[self.partners] if self.partners is not None else second
        if other is None:
            raise ValueError(
                "CutMix: without partners in the batch, samples of the second batch must be given to mix with."
            )
        return mix(tensor, other, self.boxes)
