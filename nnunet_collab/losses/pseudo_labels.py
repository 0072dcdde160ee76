r"""Pseudo labels: one prediction is the label of another one; hard with a confidence threshold, or soft.

For the kept voxels :math:`\Omega` and the detached logits of a teacher,

- label :math:`m = \arg\max_k q_k`, confidence :math:`c = \max_k q_k`, used voxels
  :math:`U = \{v \in \Omega : c_v \ge \tau\}`,
- cross-entropy: :math:`-\frac{1}{|\Omega|} \sum_{v \in U} \log p_{v m_v}`. The mean is over all kept voxels, as in
  FixMatch (Sohn et al. 2020, equation 4) and CRLN (equation 2): few confident voxels weigh little.
- Dice, one ratio per class over the whole batch, used voxels alone in numerator and denominator:
  :math:`1 - \frac{1}{K} \sum_k \frac{2 \sum_U p_k m_k + s}{\sum_U p_k^2 + \sum_U m_k + s}` (`dice`: all classes as in
  the code of Cross Teaching and of CrossMatch for ACDC; `dice_foreground`: without class 0, as for LA; `dice_nnunet`:
  without class 0 and with :math:`p_k` instead of its square, nnU-Net's soft Dice). Dice is not additive: the mean of
  the Dice of four predictions is not the Dice of their concatenation. Its gradient does not
  shrink if few voxels are used; `by_share` multiplies it by :math:`|U| / |\Omega|`, as the mean does in cross-entropy.
- Kullback-Leibler divergence of softmax(z / T) of teacher and student, teacher first: a soft label (CrossMatch,
  equation 2). Mean over all kept voxels, those below the threshold counting 0.

For region-based labels every region is a separate two-class problem: confidence :math:`\max(p, 1-p)`, a Dice per
region, the mean of that of its inside and (`dice` alone) that of its outside. All arithmetic is float32 whatever
autocast says (float64 for float64 logits); the teacher never receives a gradient. In distributed runs sums and counts
are those of all ranks. Where no voxel is used, the loss is 0 with zero gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.core.checks import check_keep, check_same_shape
from nnunet_collab.core.distributed import all_reduce_sum, global_mean, global_share
from nnunet_collab.losses.dice import SMOOTH, soft_dice

Criterion = Literal["dice", "dice_foreground", "dice_nnunet", "ce", "dice_ce", "kl"]


class PseudoLabels(NamedTuple):
    """Hard labels and the teacher's confidence, for `P` independent problems: 1, or one per region.

    Attributes:
        labels: `(B, P, *S)` int64; the class, or for regions 1 inside and 0 outside.
        confidence: `(B, P, *S)` in `[1/K, 1]`, float32, or float64 for float64 logits.
    """

    labels: Tensor
    confidence: Tensor


@torch.no_grad()
def pseudo_labels(logits: Tensor, *, regions: bool) -> PseudoLabels:
    """Labels and confidence of a prediction.

    Args:
        logits: Logits of the teacher, `(B, C, *S)`.
        regions: True if the channels are overlapping regions (sigmoid), False for exclusive classes (softmax).
    """
    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    if regions:
        return PseudoLabels((logits > 0).long(), logits.abs().sigmoid())
    highest, labels = logits.max(dim=1, keepdim=True)
    # Softmax of the largest logit: 1 / sum. (exp(max - logsumexp) loses digits for large logits and can move voxels
    # across a threshold: for two equal logits of 100 the confidence would not be 1/2.)
    return PseudoLabels(labels, (logits - highest).exp().sum(dim=1, keepdim=True).reciprocal())


def pseudo_label_loss(
    student: Tensor,
    teacher: Tensor,
    keep: Tensor,
    *,
    regions: bool,
    criterion: Criterion,
    threshold: float | Tensor = 0.0,
    temperature: float = 1.0,
    smooth: float = SMOOTH,
    by_share: bool = False,
) -> Tensor:
    """Distance of a student's prediction from the pseudo labels of a teacher's prediction.

    Args:
        student: Logits `(B, C, *S)`; receives the gradient.
        teacher: Logits `(B, C, *S)`; detached here.
        keep: `(B, *S)` bool, False for voxels that do not count (padding, annotated voxels).
        regions: True if the channels are overlapping regions (sigmoid), False for exclusive classes (softmax).
        criterion: See the module's docstring; `dice_ce` is the mean of `dice` and `ce`.
        threshold: Voxels with a lower confidence are not used; 0 uses all. A number or a scalar.
        temperature: Temperature of both distributions in `kl`.
        smooth: Smoothing of the Dice criteria; CrossMatch for ACDC uses 1e-4.
        by_share: Multiply Dice by the share of the kept voxels that are used.

    Returns:
        Scalar; exactly 0 with zero gradient if no voxel is used.

    Raises:
        ValueError: If shapes disagree or the criterion is unknown.
        TypeError: If `keep` is not boolean.
    """
    _check(student, teacher, keep, criterion)
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(student.dtype, torch.float32)
        student, teacher = student.to(dtype), teacher.detach().to(dtype)
        labels, confidence = pseudo_labels(teacher, regions=regions)
        used = keep.unsqueeze(1) & (confidence >= threshold)
        # Blank unused voxels before the softmax, not after the loss: an inf or NaN in them would stay in the
        # gradient, which is a product with 0.
        student, teacher = student.masked_fill(~used, 0), teacher.masked_fill(~used, 0)
        if criterion == "kl":
            return _soft_loss(student, teacher, used, keep, regions=regions, temperature=temperature)
        if criterion == "ce":
            return _mean_over_kept(_cross_entropy(student, labels, regions=regions), used, keep)
        kind = "dice" if criterion == "dice_ce" else criterion
        dice = _dice_loss(student, labels, used, regions=regions, criterion=kind, smooth=smooth)
        if by_share:
            dice = dice * global_share(used.sum(), keep.sum() * used.shape[1])
        if criterion == "dice_ce":
            return (dice + _mean_over_kept(_cross_entropy(student, labels, regions=regions), used, keep)) / 2
        return dice


def _cross_entropy(student: Tensor, labels: Tensor, *, regions: bool) -> Tensor:
    if regions:
        return F.binary_cross_entropy_with_logits(student, labels.to(student.dtype), reduction="none")
    return F.cross_entropy(student, labels[:, 0], reduction="none").unsqueeze(1)


def _soft_loss(
    student: Tensor, teacher: Tensor, used: Tensor, keep: Tensor, *, regions: bool, temperature: float
) -> Tensor:
    student, teacher = student / temperature, teacher / temperature
    if regions:
        inside, outside = F.logsigmoid(teacher), F.logsigmoid(-teacher)
        divergence = inside.exp() * (inside - F.logsigmoid(student))
        divergence = divergence + outside.exp() * (outside - F.logsigmoid(-student))
    else:
        log_q = teacher.log_softmax(dim=1)
        divergence = (log_q.exp() * (log_q - student.log_softmax(dim=1))).sum(dim=1, keepdim=True)
    return _mean_over_kept(divergence, used, keep)


def _mean_over_kept(values: Tensor, used: Tensor, keep: Tensor) -> Tensor:
    """Sum of `(B, P, *S)` over the used voxels / number of kept voxels and problems."""
    return global_mean(values.masked_fill(~used, 0).sum(), keep.sum() * used.shape[1])


def _dice_loss(
    student: Tensor, labels: Tensor, used: Tensor, *, regions: bool, criterion: str, smooth: float
) -> Tensor:
    """One ratio per class (and region) over the used voxels of the batch of all ranks."""
    if regions:
        inside = student.sigmoid()
        probabilities, truth = torch.cat([1 - inside, inside], 1), torch.cat([1 - labels, labels], 1)
        used = torch.cat([used, used], 1)
    else:
        probabilities = student.softmax(dim=1)
        classes = torch.arange(student.shape[1], device=student.device).view(1, -1, *[1] * (student.ndim - 2))
        truth = labels == classes
    if criterion != "dice":  # without background: the first channel, or the outside of every region
        first = probabilities.shape[1] // 2 if regions else 1
        probabilities, truth = probabilities[:, first:], truth[:, first:]
        used = used[:, first:] if regions else used
    probabilities = probabilities.masked_fill(~used, 0)
    truth = (truth.bool() & used).to(probabilities.dtype)
    dice = soft_dice(probabilities, truth, smooth=smooth, squared=criterion != "dice_nnunet")
    any_used = all_reduce_sum(used.sum().to(dice.dtype)) > 0
    return torch.where(any_used, (1 - dice).mean(), 0 * dice.sum())


def _check(student: Tensor, teacher: Tensor, keep: Tensor, criterion: str) -> None:
    check_same_shape("pseudo_label_loss", student=student, teacher=teacher)
    check_keep("pseudo_label_loss", keep, student)
    if criterion not in get_args(Criterion):
        raise ValueError(
            f"pseudo_label_loss: criterion must be one of {', '.join(get_args(Criterion))}; got {criterion!r}."
        )
