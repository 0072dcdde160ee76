"""Convert nnU-Net's targets to the form that losses need; nnU-Net's supervised loss for any student."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn

from nnunet_collab.core.types import StudentOutput, Truth


def read_truth(target: Tensor | list[Tensor], *, has_regions: bool, ignore_label: int | None) -> Truth:
    """The truth of a batch, from the target that nnU-Net's loader delivers.

    Args:
        target: `(B, 1, *S)` labels, or `(B, R, *S)` regions followed by one channel of the ignore label if there is
            one; or a list of such tensors of decreasing resolution for deep supervision.
        has_regions: Whether the target has regions instead of labels.
        ignore_label: The dataset's ignore label.
    """
    full = target[0] if isinstance(target, list) else target
    if has_regions:
        regions = full.bool()
        keep = torch.ones_like(regions[:, 0])
        if ignore_label is not None:
            regions, keep = regions[:, :-1], ~regions[:, -1]
        return Truth(torch.zeros_like(keep, dtype=torch.long), keep, regions)
    labels = full[:, 0].long()
    keep = torch.ones_like(labels, dtype=torch.bool) if ignore_label is None else labels != ignore_label
    return Truth(labels.masked_fill(~keep, 0), keep)


SupervisedLoss = Callable[[StudentOutput, "Tensor | list[Tensor]"], Tensor]


def supervised_loss(nnunet_loss: nn.Module) -> SupervisedLoss:
    """nnU-Net's loss for students with and without deep supervision.

    If no voxel counts (all ignored, cross-entropy alone), the loss is 0 with zero gradient.

    Args:
        nnunet_loss: What `nnUNetTrainer._build_loss` returns; wrapped for deep supervision if that is on.

    Returns:
        Function of a student's output and nnU-Net's target. It raises ValueError if the target is not a list but the
        loss is wrapped: nnU-Net's loader makes lists exactly when nnU-Net makes the wrapper.
    """

    def loss(output: StudentOutput, target: Tensor | list[Tensor]) -> Tensor:
        value: Tensor | float
        outputs = [output.logits, *output.auxiliary]
        if not isinstance(nnunet_loss, DeepSupervisionWrapper):
            value = nnunet_loss(output.logits, target)
        elif not isinstance(target, list):
            raise ValueError("supervised_loss: with deep supervision the target must be a list; got one tensor.")
        elif output.auxiliary:
            value = nnunet_loss(outputs, target)
        else:
            value = nnunet_loss.loss(output.logits, target[0])
        if not isinstance(value, Tensor):  # nnU-Net's plain 0 has no gradient, but distributed training needs one
            value = torch.stack([logits[:0].sum() for logits in outputs]).sum()
        return value.float()

    return loss


def drop_lowest_resolution(nnunet_loss: nn.Module) -> None:
    """Give the lowest deep-supervision output weight 0, which nnU-Net does except in distributed runs.

    In distributed runs nnU-Net uses 1e-6 so that no parameter is unused. We freeze that output's layer instead, so
    distributed and single runs minimize the same loss.
    """
    if isinstance(nnunet_loss, DeepSupervisionWrapper):
        weights = [*nnunet_loss.weight_factors[:-1], 0.0]
        nnunet_loss.weight_factors = tuple(w / sum(weights) for w in weights)
