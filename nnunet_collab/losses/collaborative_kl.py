r"""Logit-wise collaborative learning: pull a student's probabilities toward a soft label made from its peer.

For the kept voxels :math:`\Omega`, a student's :math:`p = \mathrm{softmax}(z)` and a target :math:`q` without gradient,

.. math::
    L = \frac{1}{|\Omega|} \sum_{v \in \Omega} \sum_k q_{vk} (\log q_{vk} - \log p_{vk})
    \quad\text{(target first)} \qquad\text{or}\qquad
    L = \frac{1}{|\Omega|} \sum_{v \in \Omega} \sum_k p_{vk} (\log p_{vk} - \log q_{vk})
    \quad\text{(student first)}.

The four ways to make :math:`q` are the rows of the CTRCL paper's table IV: the peer itself (mutual learning, DML), the
mean of both (ensemble, KDCL), the peer where it is closer to the truth (selective, CTCL), the rectified peer (RLCL,
equation 12). The paper prints "student first", the methods it follows implement "target first", whose gradient
:math:`p - q` is bounded; that is the default. In "student first", q is clamped at 1e-8 before its logarithm.

All arithmetic is float32 (float64 for float64 logits) whatever autocast says. The gradient with respect to the logits
has a closed form, so it is computed in the forward pass, slab by slab, and kept in the logits' own dtype. The loss
needs memory for one copy of the logits; autograd would store five. Units: nats. Range: `[0, inf)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_collab.core.checks import check_same_shape, check_truth
from nnunet_collab.core.distributed import global_mean
from nnunet_collab.core.types import Truth
from nnunet_collab.losses.rectified import ALL_FACTORS, rectify

Order = Literal["target_first", "student_first"]
UnsurePeer = Literal["as_published", "skip"]

# (student log-probabilities, peer log-probabilities, labels) -> (soft label, mask of voxels it teaches or None for all)
SoftLabel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]

SLABS = 16  # the working memory is 1 / SLABS of that for the whole patch
SOFT_LABEL_FLOOR = 1e-8  # lower bound of the soft label inside the logarithm, order "student_first"
MIN_SLAB_VOXELS = {
    "cuda": 2**15
}  # for smaller slabs the kernel launches cost more than the memory is worth; on a CPU there are none


def mutual_kl(student_logits: Tensor, peer_logits: Tensor, truth: Truth, *, order: Order = "target_first") -> Tensor:
    """Mutual learning (DML, Zhang et al. 2018): the soft label is the peer's prediction.

    Args:
        student_logits: Logits of the student, `(B, K, *S)`. Receives the gradient.
        peer_logits: Logits of the peer, `(B, K, *S)`. Detached here.
        truth: Only its `keep` is used.
        order: Which distribution comes first in the Kullback-Leibler divergence.

    Returns:
        Scalar; exactly 0 with zero gradient if no voxel is kept.

    Raises:
        ValueError: If shapes disagree or `order` is unknown.
        TypeError: If `truth.keep` is not boolean.
    """
    return _collaborative_kl("mutual_kl", student_logits, peer_logits, truth, _peer_itself, order)


def ensemble_kl(student_logits: Tensor, peer_logits: Tensor, truth: Truth, *, order: Order = "target_first") -> Tensor:
    """Ensemble learning (KDCL, Guo et al. 2020): the soft label is the mean of both predictions, detached.

    Arguments, result and errors as in `mutual_kl`.
    """
    return _collaborative_kl("ensemble_kl", student_logits, peer_logits, truth, _mean_of_both, order)


def selective_kl(student_logits: Tensor, peer_logits: Tensor, truth: Truth, *, order: Order = "target_first") -> Tensor:
    """Selective distillation (CTCL, Zhu et al. 2022): the peer teaches where its cross-entropy is strictly lower.

    The sum over those voxels is divided by the number of all kept voxels, so that a better student is taught less.
    Arguments, result and errors as in `mutual_kl`.
    """
    return _collaborative_kl("selective_kl", student_logits, peer_logits, truth, _peer_where_better, order)


def rectified_kl(
    student_logits: Tensor,
    peer_logits: Tensor,
    truth: Truth,
    *,
    factors: Collection[str] = ALL_FACTORS,
    order: Order = "target_first",
    unsure_peer: UnsurePeer = "as_published",
) -> Tensor:
    """RLCL (CTRCL, equation 12): the soft label is the peer's prediction, rectified by the truth.

    Args:
        student_logits: Logits of the student, `(B, K, *S)`. Receives the gradient.
        peer_logits: Logits of the peer, `(B, K, *S)`. Detached here.
        truth: Truth that rectifies; voxels with `keep` False are left out.
        factors: The factors of lambda, see `rectify`.
        order: Which distribution comes first in the Kullback-Leibler divergence.
        unsure_peer: What a peer teaches where it is right, but gives the true class less probability than the student
            does. "as_published": its prediction, which pulls the student back (equation 12). "skip": nothing; such
            voxels still count in the mean. This is not in the paper.

    Returns:
        Scalar; exactly 0 with zero gradient if no voxel is kept.

    Raises:
        ValueError: If shapes disagree, or an option or a factor is unknown.
        TypeError: If `truth.keep` is not boolean.
    """
    check_options("rectified_kl", order, factors, unsure_peer)
    soft_label = partial(_rectified_peer, factors=tuple(factors), unsure_peer=unsure_peer)
    return _collaborative_kl("rectified_kl", student_logits, peer_logits, truth, soft_label, order)


def check_options(caller: str, order: str, factors: Collection[str] = (), unsure_peer: str = "as_published") -> None:
    """Raise if an option is unknown.

    Raises:
        ValueError: If so; the message names the option.
    """
    if order not in ("target_first", "student_first"):
        raise ValueError(f"{caller}: order must be 'target_first' or 'student_first'; got {order!r}.")
    if unknown := set(factors) - set(ALL_FACTORS):
        raise ValueError(f"{caller}: factors must be among {ALL_FACTORS}; got {sorted(unknown)}.")
    if unsure_peer not in ("as_published", "skip"):
        raise ValueError(f"{caller}: unsure_peer must be 'as_published' or 'skip'; got {unsure_peer!r}.")


def as_two_classes(region_logits: Tensor) -> Tensor:
    """Region logits `(B, R, *S)` as two-class logits (0, z), `(B * R, 2, *S)`, of softmax (1 - sigmoid, sigmoid)."""
    inside = region_logits.flatten(0, 1).unsqueeze(1)
    return torch.cat([torch.zeros_like(inside), inside], dim=1)


def _peer_itself(student: Tensor, peer: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    return peer.exp(), None


def _mean_of_both(student: Tensor, peer: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    return (student.exp() + peer.exp()) / 2, None


def _peer_where_better(student: Tensor, peer: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    index = labels.unsqueeze(1)
    return peer.exp(), peer.gather(1, index) > student.gather(1, index)


def _rectified_peer(
    student: Tensor, peer: Tensor, labels: Tensor, factors: tuple[str, ...], unsure_peer: UnsurePeer
) -> tuple[Tensor, Tensor | None]:
    soft_label = rectify(peer.exp(), labels, factors=factors)
    if unsure_peer == "as_published":
        return soft_label, None
    index = labels.unsqueeze(1)
    right = peer.gather(1, index) > peer.scatter(1, index, -torch.inf).amax(dim=1, keepdim=True)
    return soft_label, ~(right & (peer.gather(1, index) < student.gather(1, index)))


def _collaborative_kl(
    caller: str, student_logits: Tensor, peer_logits: Tensor, truth: Truth, soft_label: SoftLabel, order: Order
) -> Tensor:
    check_same_shape(caller, student_logits=student_logits, peer_logits=peer_logits)
    check_truth(caller, truth, student_logits.shape[0], tuple(student_logits.shape[2:]))
    check_options(caller, order)
    total: Tensor = _SumOfKL.apply(student_logits, peer_logits.detach(), truth.labels, truth.keep, soft_label, order)
    return global_mean(total, truth.keep.sum())


class _SumOfKL(torch.autograd.Function):
    """Sum of the divergence over the kept voxels. The module's docstring says why the gradient is computed here."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, peer: Tensor, labels: Tensor, keep: Tensor, soft_label: SoftLabel, order: Order
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=student.device)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        with torch.autocast(student.device.type, enabled=False):
            for slab in _slabs(labels):
                slab_keep = keep[:, slab].unsqueeze(1)
                # Blank dropped voxels before the softmax: an inf or NaN there would survive a product with 0.
                log_p = student[:, :, slab].to(dtype).masked_fill(~slab_keep, 0).log_softmax(dim=1)
                log_peer = peer[:, :, slab].to(dtype).masked_fill(~slab_keep, 0).log_softmax(dim=1)
                q, taught = soft_label(log_p, log_peer, labels[:, slab])
                use = slab_keep if taught is None else slab_keep & taught
                slab_total, slab_gradient = _divergence(log_p, q, order)
                total += (slab_total * use).sum()
                if gradient is not None:
                    gradient[:, :, slab] = (slab_gradient * use).to(student.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        result = torch.empty_like(gradient)
        for slab in _slabs(gradient[:, 0]):
            # In the arithmetic dtype: a loss scale may exceed the range of half precision.
            result[:, :, slab] = gradient[:, :, slab].to(grads[0].dtype) * grads[0]
        return result, None, None, None, None, None


def _divergence(log_p: Tensor, q: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """Per-voxel divergence `(B, 1, *S)` and its gradient with respect to the logits `(B, K, *S)`."""
    p = log_p.exp()
    if order == "target_first":
        return (torch.xlogy(q, q) - q * log_p).sum(dim=1, keepdim=True), p - q
    log_ratio = log_p - q.clamp_min(SOFT_LABEL_FLOOR).log()
    value = (p * log_ratio).sum(dim=1, keepdim=True)
    return value, p * (log_ratio - value)


def _slabs(labels: Tensor) -> Iterator[slice]:
    """Split the first spatial axis of `(B, *S)` so that each slab holds about 1/SLABS of the voxels."""
    length = labels.shape[1]
    voxels_per_row = max(1, labels.numel() // max(1, length))
    rows = max(1, -(-length // SLABS), MIN_SLAB_VOXELS.get(labels.device.type, 0) // voxels_per_row)
    return (slice(start, min(start + rows, length)) for start in range(0, length, rows))
