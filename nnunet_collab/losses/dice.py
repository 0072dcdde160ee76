"""Soft Dice coefficient of two maps of probabilities, of the batch of all ranks or of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_collab.core.distributed import all_reduce_sum

SMOOTH = 1e-5  # Cross Teaching, UniMatch, CrossMatch for LA, the released code of LDC


def soft_dice(
    probabilities: Tensor, target: Tensor, *, smooth: float = SMOOTH, squared: bool = False, per_sample: bool = False
) -> Tensor:
    r"""(2 sum p y + s) / (sum p + sum y + s) of each channel.

    Voxels that do not count are 0 in both; two empty maps have the coefficient 1.

    Args:
        probabilities: `(B, K, *S)`, float32 at least; receives the gradient.
        target: `(B, K, *S)` in [0, 1], of the same dtype.
        smooth: s.
        squared: Sum p^2 in place of p in the denominator, for targets of 0 and 1.
        per_sample: One coefficient per sample of this rank; else the sums are those of the batch of all ranks.

    Returns:
        `(K,)`, or `(B, K)` per sample; in [0, 1].
    """
    axes = [*([] if per_sample else [0]), *range(2, probabilities.ndim)]
    sizes = probabilities.square() if squared else probabilities
    sums = torch.stack([(probabilities * target).sum(axes), sizes.sum(axes), target.sum(axes)])
    both, of_p, of_target = sums if per_sample else all_reduce_sum(sums)
    dice: Tensor = (2 * both + smooth) / (of_p + of_target + smooth)
    return dice
