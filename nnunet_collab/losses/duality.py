r"""Lagrange duality consistency (LDC): a consistency loss, size constraints, and the Lagrangian that joins them.

Source: Zheng et al., "Lagrange Duality and Compound Multi-Attention Transformer for Semi-Supervised Medical Image
Segmentation", section III.C, and its released code. Equation 3 of the paper has no objective and no multipliers, and
its bounds cancel, so it cannot be minimized. This module has a Lagrangian that can be minimized:

- objective, with :math:`p` of the student and :math:`y` of the teacher (or the truth),

  .. math:: l(p, y) = \alpha\,CE(p, y) + \omega \sum_k \beta_k (1 - D_k(p, y)) + \delta\,MSE(p, y),

  :math:`D_k = (2 \sum p y + s) / (\sum p + \sum y + s)` over foreground classes;
- constraints :math:`m_k(p) - (1 + t) S_k \le 0` and :math:`(1 - t) S_k - m_k(p) \le 0` on the mean probability
  :math:`m_k` of each foreground class, with a size :math:`S_k` that is constant;
- augmented Lagrangian (Powell, Hestenes, Rockafellar) with multipliers :math:`\lambda_j \ge 0`, constant here,

  .. math:: \sum_j \frac{\max(0, \lambda_j + \rho g_j)^2 - \lambda_j^2}{2 \rho}
            \quad (\rho = 0: \sum_j \lambda_j g_j), \qquad \nu h + \frac{\rho}{2} h^2

  for inequalities :math:`g_j \le 0` and an equality :math:`h = 0` with :math:`\nu` of either sign.

A network's loss is not convex, so duality is weak: the multipliers guide the training but guarantee nothing.

The released code computes something else, on labeled images alone: `consistency_loss` with sigmoid, Dice of each
sample and a squared error of raw *logits*, and the equality :math:`h` = `mean_excess`. With softmax that :math:`h` is 0
for every prediction, since both means are `1 / C`.

Shapes: `B` samples, `C` channels, `K` of them foreground (all but channel 0, or all regions), `*S` spatial axes. For
regions, and with `sigmoid`, every channel is a separate two-class problem. All arithmetic is float32 whatever
autocast says (float64 for float64 logits); targets and multipliers never receive a gradient. In distributed runs sums
and counts are those of all ranks. Where no voxel is used, losses are 0 with zero gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.core.checks import check_keep, check_mask, check_same_shape
from nnunet_collab.core.distributed import all_reduce_sum, global_mean
from nnunet_collab.losses.dice import soft_dice

Activation = Literal["softmax", "sigmoid"]


def activate(logits: Tensor, activation: Activation) -> Tensor:
    """Probabilities of `(B, C, *S)` logits, float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()


@torch.no_grad()
def teacher_target(
    logits: Tensor, *, activation: Activation, hard: bool, threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Target from a teacher's prediction, and the voxels in which the teacher is confident enough.

    Args:
        logits: Logits of the teacher, `(B, C, *S)`.
        activation: Softmax: exclusive classes; sigmoid: one problem per channel.
        hard: Use the most likely class instead of the distribution.
        threshold: Lowest confidence of a voxel that is used; 0 uses all voxels.

    Returns:
        Target `(B, C, *S)` and `(B, P, *S)` bool, P 1 or, with sigmoid, C.
    """
    probabilities = activate(logits, activation)
    if activation == "sigmoid":
        used = torch.maximum(probabilities, 1 - probabilities) >= threshold
        return (probabilities > 0.5).to(probabilities.dtype) if hard else probabilities, used
    confidence, labels = probabilities.max(dim=1, keepdim=True)
    target = torch.zeros_like(probabilities).scatter_(1, labels, 1.0) if hard else probabilities
    return target, confidence >= threshold


def consistency_loss(
    logits: Tensor,
    target: Tensor,
    keep: Tensor,
    *,
    activation: Activation,
    class_weights: Tensor,
    cross_entropy: float = 0.3,
    dice: float = 0.5,
    squared_error: float = 0.2,
    mse_on: Literal["prob", "logit"] = "prob",
    used: Tensor | None = None,
    dice_per_sample: bool = False,
) -> Tensor:
    """The objective of the module's docstring; its defaults are the weights of the released code.

    Cross-entropy (binary with sigmoid) and squared error are sums over the used voxels, divided by the number of kept
    voxels and, except for the cross-entropy with softmax, by the number of channels. Dice counts only used voxels.

    Args:
        logits: `(B, C, *S)`; receives the gradient.
        target: `(B, C, *S)` in [0, 1]; detached here.
        keep: `(B, *S)` bool, False for voxels that do not count.
        activation: Softmax: exclusive classes; sigmoid: one problem per channel.
        class_weights: `(K,)` weights beta of the Dice of the last K channels.
        cross_entropy: Weight alpha.
        dice: Weight omega.
        squared_error: Weight delta.
        mse_on: Values that are compared with the target. `logit` as in the released code: it pulls probabilities to 1/2
            and 0.73, against the cross-entropy.
        used: `(B, P, *S)` bool, P 1 or C; None for all kept voxels.
        dice_per_sample: One ratio per sample, as released, or one of the whole batch.

    Raises:
        ValueError: If shapes disagree.
        TypeError: If a mask is not boolean.
    """
    mask = _used("consistency_loss", logits, target, keep, used)
    with torch.autocast(logits.device.type, enabled=False):
        z, y = _blanked(logits, target, mask)
        p = activate(z, activation)
        count = keep.sum()
        compared = p if mse_on == "prob" else z
        squares = global_mean((compared - y).square().masked_fill(~mask, 0).sum(), count * z.shape[1])
        overlap = _dice_loss(p.masked_fill(~mask, 0), y, class_weights, dice_per_sample)
        entropy = _cross_entropy(z, y, mask, count, activation)
        return cross_entropy * entropy + dice * overlap + squared_error * squares


def paper_equation_2(
    logits: Tensor,
    target: Tensor,
    keep: Tensor,
    *,
    activation: Activation,
    class_weights: Tensor,
    cross_entropy: float = 0.3,
    used: Tensor | None = None,
) -> Tensor:
    r"""Equation 2 as printed: :math:`-\frac{1}{N} \sum [\alpha y \log p + \sum_k \beta_k y_k p_k / (y_k + p_k)]`.

    The ratio is taken voxel by voxel (0 where both are 0), has no factor 2, and nothing rewards low probabilities of
    absent channels. Its smallest value is negative. Arguments as in `consistency_loss`; N counts the kept voxels.

    Raises:
        ValueError: If shapes disagree.
        TypeError: If a mask is not boolean.
    """
    mask = _used("paper_equation_2", logits, target, keep, used)
    with torch.autocast(logits.device.type, enabled=False):
        z, y = _blanked(logits, target, mask)
        log_p = z.log_softmax(dim=1) if activation == "softmax" else F.logsigmoid(z)
        first = z.shape[1] - len(class_weights)
        p_k, y_k = log_p[:, first:].exp(), y[:, first:]
        ratio = y_k * p_k / (y_k + p_k).clamp_min(torch.finfo(z.dtype).tiny)
        weights = class_weights.to(z).view(1, -1, *[1] * (z.ndim - 2))
        # In unused voxels y is 0, and so are both summands.
        return -global_mean((cross_entropy * y * log_p).sum() + (weights * ratio).sum(), keep.sum())


# ---------------------------------------------------------------- constraints


def class_fractions(probabilities: Tensor) -> Tensor:
    """Mean probability `(C,)` of each channel over all voxels of the batch of all ranks.

    Padding counts, too, as in the labels: nnU-Net's loader labels it background. An empty batch gives 0.

    Args:
        probabilities: `(B, C, *S)`; receives the gradient.
    """
    axes = [0, *range(2, probabilities.ndim)]
    dtype = torch.promote_types(probabilities.dtype, torch.float32)
    count = torch.tensor(probabilities[:, 0].numel(), dtype=dtype, device=probabilities.device)
    sums = all_reduce_sum(probabilities.sum(axes, dtype=dtype))
    return sums / all_reduce_sum(count).clamp_min(1)


def size_band(fractions: Tensor, sizes: Tensor, half_width: Tensor) -> Tensor:
    """Residuals `(2 K,)` of the upper, then of the lower bounds of the sizes; at most 0 where they hold.

    Args:
        fractions: Mean probabilities `(K,)`; receives the gradient.
        sizes: Sizes `(K,)`, detached here. Size 0: the class has not been seen yet, and its residuals are 0.
        half_width: Half-widths of the bands `(K,)`, detached here.

    Raises:
        ValueError: If shapes disagree.
    """
    check_same_shape("size_band", fractions=fractions, sizes=sizes, half_width=half_width)
    sizes, half_width = sizes.detach(), half_width.detach()
    upper, lower = fractions - (sizes + half_width), (sizes - half_width) - fractions
    return torch.where((sizes > 0).repeat(2), torch.cat([upper, lower]), torch.zeros_like(torch.cat([upper, lower])))


def mean_excess(probabilities: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Mean of probability minus target over kept voxels and all channels: the equality of the released code.

    Args:
        probabilities: `(B, C, *S)`; receives the gradient. A softmax gives 0.
        target: `(B, C, *S)`; detached here.
        keep: `(B, *S)` bool; if empty the result is 0.

    Raises:
        ValueError: If shapes disagree.
        TypeError: If a mask is not boolean.
    """
    mask = _used("mean_excess", probabilities, target, keep, None)
    probabilities, target = _blanked(probabilities, target, mask)
    difference = probabilities - target
    count = all_reduce_sum(keep.sum().to(difference.dtype) * probabilities.shape[1])
    return all_reduce_sum(difference.sum()) / count.clamp_min(1)


def logit_excess(logits: Tensor, limit: float) -> Tensor:
    """Mean of max(0, |z| - limit) over all logits of all ranks; at most 0 where no logit is beyond the limit."""
    excess = (logits.to(torch.promote_types(logits.dtype, torch.float32)).abs() - limit).relu()
    return class_fractions(excess).mean()


def augmented_lagrangian(residuals: Tensor, multipliers: Tensor, equality: Tensor, *, rho: float) -> Tensor:
    """The constraints' share of the objective: a scalar, negative if constraints with a multiplier hold.

    Args:
        residuals: Residuals g or h, `(J,)`; receives the gradient. Equal on all ranks.
        multipliers: `(J,)`; detached here.
        equality: `(J,)` bool, True for an equality.
        rho: Penalty, >= 0; 0 gives the plain Lagrangian.

    Returns:
        Sum over the constraints; 0 without any.

    Raises:
        ValueError: If shapes disagree.
    """
    check_same_shape("augmented_lagrangian", residuals=residuals, multipliers=multipliers, equality=equality)
    multipliers = multipliers.detach().to(residuals.dtype)
    linear = multipliers * residuals
    if rho == 0:
        return linear.sum()
    inequality = ((multipliers + rho * residuals).relu().square() - multipliers.square()) / (2 * rho)
    of_equality = linear + rho / 2 * residuals.square()
    return torch.where(equality, of_equality, inequality).sum()


# ---------------------------------------------------------------- parts


def _used(caller: str, logits: Tensor, target: Tensor, keep: Tensor, used: Tensor | None) -> Tensor:
    check_same_shape(caller, logits=logits, target=target)
    check_keep(caller, keep, logits)
    if used is not None:
        problems = 1 if used.ndim > 1 and used.shape[1] == 1 else logits.shape[1]
        check_mask(caller, "used", used, (logits.shape[0], problems, *logits.shape[2:]))
    return keep.unsqueeze(1) if used is None else keep.unsqueeze(1) & used


def _blanked(logits: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both, with 0 in unused voxels: an inf or NaN there would stay in the gradient, because inf * 0 is NaN."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).masked_fill(~mask, 0), target.detach().to(dtype).masked_fill(~mask, 0)


def _cross_entropy(z: Tensor, y: Tensor, mask: Tensor, count: Tensor, activation: Activation) -> Tensor:
    if activation == "softmax":
        return -global_mean((y * z.log_softmax(dim=1)).sum(), count)
    values = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    return global_mean(values.masked_fill(~mask, 0).sum(), count * z.shape[1])


def _dice_loss(p: Tensor, y: Tensor, class_weights: Tensor, per_sample: bool) -> Tensor:
    first = p.shape[1] - len(class_weights)
    p, y = p[:, first:], y[:, first:]
    dice = soft_dice(p, y, per_sample=per_sample)
    losses = (class_weights.to(p) * (1 - dice)).sum(dim=-1)
    if not per_sample:
        return losses
    return global_mean(losses.sum(), torch.tensor(len(losses), device=p.device))
