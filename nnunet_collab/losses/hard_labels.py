r"""nnU-Net's whole loss on hard labels that may be known for a part of the voxels only: Dice + cross-entropy.

For the set :math:`\Omega` of voxels that `keep` selects, probabilities p and labels y of the foreground classes c,

.. math::
    L = \frac{1}{K} \sum_{c} \Bigl(1 - \frac{2 \sum_\Omega p_c y_c + s}{\sum_\Omega p_c + \sum_\Omega y_c + s}\Bigr)
        - \frac{1}{|\Omega|} \sum_\Omega \log p_y.

Regions have sigmoids and binary cross-entropy in place of softmax and cross-entropy; no channel is background there.
The sums of Dice are those of the batch, or of each sample with a mean over the samples, as nnU-Net plans it.

Source: nnU-Net 2.8, `DC_and_CE_loss` and `DC_and_BCE_loss` with `MemoryEfficientSoftDiceLoss`. We differ in constants
and counts: Dice is 1 - dice, so that a perfect prediction has a loss of 0; and several processes divide by the counts
of all of them, so that they compute what one does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.core.checks import check_truth
from nnunet_collab.core.distributed import global_mean
from nnunet_collab.core.types import Truth
from nnunet_collab.losses.dice import SMOOTH, soft_dice


class HardLabelForm(NamedTuple):
    """The form that nnU-Net's loss has for a dataset.

    Attributes:
        batch_dice: Whether Dice has one ratio per class for the whole batch, or one per sample.
        dice: Whether there is Dice beside the cross-entropy.
        sum_regions: Whether binary cross-entropy is the sum over the regions, as nnU-Net has it where there is an
            ignore label, or their mean.
    """

    batch_dice: bool = True
    dice: bool = True
    sum_regions: bool = False


PLAIN = HardLabelForm()


def hard_label_loss(logits: Tensor, truth: Truth, form: HardLabelForm = PLAIN) -> Tensor:
    """Dice + cross-entropy over the voxels that `truth.keep` selects.

    Args:
        logits: `(B, C, *S)`; receives the gradient.
        truth: Labels, or regions, of the same grid.
        form: Which of nnU-Net's forms.

    Returns:
        Scalar >= 0; exactly 0 with zero gradient if no voxel counts.

    Raises:
        ValueError: If shapes disagree.
        TypeError: If `keep` is not boolean or the labels are no integers.
    """
    check_truth("hard_label_loss", truth, len(logits), tuple(logits.shape[2:]))
    with torch.autocast(logits.device.type, enabled=False):
        keep = truth.keep.unsqueeze(1)
        # Blanked before the softmax, not after the loss: an inf or NaN would stay in the gradient, a product with 0.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~keep, 0)
        if truth.regions is None:
            probabilities = logits.softmax(dim=1)[:, 1:]
            classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
            members = (truth.labels.unsqueeze(1) == classes) & keep
            surprise = F.cross_entropy(logits, truth.labels, reduction="none").unsqueeze(1)
        else:
            probabilities = logits.sigmoid()
            members = truth.regions & keep
            surprise = F.binary_cross_entropy_with_logits(logits, members.to(logits.dtype), reduction="none")
        channels = 1 if form.sum_regions else surprise.shape[1]
        loss = global_mean(surprise.masked_fill(~keep, 0).sum(), keep.sum() * channels)
        if not form.dice:
            return loss
        probabilities, members = probabilities.masked_fill(~keep, 0), members.to(probabilities.dtype)
        if form.batch_dice:
            return loss + (1 - soft_dice(probabilities, members, smooth=SMOOTH)).mean()
        missed = 1 - soft_dice(probabilities, members, smooth=SMOOTH, per_sample=True)
        return loss + global_mean(missed.sum(), torch.tensor(missed.numel(), device=missed.device))
