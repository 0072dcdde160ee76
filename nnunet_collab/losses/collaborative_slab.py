r"""The arithmetic of `collaborative_pair` on one slab of voxels: values and gradients of both students in one pass.

With the soft label :math:`q = \lambda P' + (1 - \lambda)\,\mathrm{onehot}(y)` of the peer's :math:`P'` (lambda = 1
without rectification),

.. math::
    KL(q \| P) = \sum_k \lambda P'_k (\log P'_k - \log P_k) + (1 - P'_y) \lambda \log \lambda
                 + q_y \log q_y - \lambda P'_y \log P'_y - (1 - \lambda) \log P_y,

and its gradient with respect to the logits is :math:`P - q`. So the only sum over the classes that is needed voxel by
voxel is the entropy in lambda; the first sum here is a scalar product of two whole slabs.

An operation on a slab that is in the processor's cache takes a third of the time of one that is not, so there are few
of them, most of them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nnunet_collab.core.blanking import bit_mask, blank
from nnunet_collab.losses.collaborative_kl import SOFT_LABEL_FLOOR, Order, UnsurePeer, as_two_classes

LogitMode = Literal["rlcl", "mutual", "ensemble", "selective"]


@dataclass(frozen=True)
class Options:
    """What the students learn from each other; see `collaborative_pair`."""

    mode: LogitMode
    order: Order
    factors: frozenset[str]
    unsure_peer: UnsurePeer
    regions: bool

    @property
    def leaves_out(self) -> bool:
        """Whether a kept voxel may teach nothing."""
        return self.mode == "selective" or self.unsure_peer == "skip"


class _Voxels(NamedTuple):
    """Both students at the voxels of a slab; 2 is the student, `K` its classes or the two classes of a region."""

    scores: Tensor  # (2, B, K, n) logits minus the largest
    p: Tensor  # (2, B, K, n)
    log_total: Tensor  # (2, B, 1, n); scores - log_total is log p
    log_true: Tensor  # (2, B, 1, n) of the true class
    log_mistaken: Tensor  # (2, B, 1, n) of the most probable other class
    y: Tensor  # (2, B, 1, n) the true class
    keep: Tensor  # (B, 1, n) bool


# (both logits (B, K, n), truth (B, 1, n) or (B, R, n), keep (B, n), options, where the gradients go) -> sums (2,)
SlabFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Options, Sequence[Tensor | None]], Tensor]


def slab_losses(
    first: Tensor, second: Tensor, true: Tensor, keep: Tensor, options: Options, gradients: Sequence[Tensor | None]
) -> Tensor:
    """Sums `(2,)` of both students' divergences over the kept voxels of a slab, in float32 or higher.

    Args:
        first: Logits of the first student, `(B, K, n)`, or `(B, R, n)` with regions.
        second: Logits of the second student, same shape.
        true: Labels `(B, 1, n)` int64, or regions `(B, R, n)` bool.
        keep: Voxels that count, `(B, n)` bool. The others may hold an inf or a NaN.
        options: Options.
        gradients: For each student, a tensor of the shape of its logits that is filled with the gradient, or None.
    """
    shape = first.shape
    if options.regions:
        first, second, true = as_two_classes(first), as_two_classes(second), true.flatten(0, 1).unsqueeze(1).long()
        keep = keep.unsqueeze(1).expand(-1, shape[1], -1).flatten(0, 1)
    at = _probabilities(first, second, true, keep)
    share, right = _share_of_peer(at, options)
    taught = _taught(at, right, options)
    if options.order == "target_first" and options.mode != "ensemble":
        sums, minuends, subtrahends = _closed_form(at, share, taught, options)
    else:
        values, slopes = _divergence(at, _soft_labels(at, share, options), options.order)
        sums = values.where(taught, 0).sum(dim=(1, 2, 3))
        slopes = blank(slopes, bit_mask(taught, slopes.dtype))
        minuends, subtrahends = slopes, None
    for student, result in enumerate(gradients):
        if result is None:
            continue
        slope = minuends[student]
        if subtrahends is not None:
            slope = slope.sub_(subtrahends[1 - student])
            if options.mode == "rlcl":
                slope.scatter_add_(1, at.y[student], share[student] - 1)
            if options.leaves_out:
                slope = blank(slope, bit_mask(taught[student], slope.dtype))
        result.copy_(slope[:, 1].view(shape) if options.regions else slope)
    return sums


def _probabilities(first: Tensor, second: Tensor, true: Tensor, keep: Tensor) -> _Voxels:
    """A softmax that also finds the largest other class. Dropped voxels read 0: both students agree there."""
    keep = keep.unsqueeze(1)
    dtype = torch.promote_types(first.dtype, torch.float32)
    mask = bit_mask(keep, dtype)
    scores = torch.stack((blank(first.to(dtype), mask), blank(second.to(dtype), mask)))
    y = true.expand(2, *true.shape)
    of_true = scores.gather(2, y)
    log_mistaken = scores.scatter_(2, y, -torch.inf).amax(dim=2, keepdim=True)
    top = torch.maximum(log_mistaken, of_true)
    log_true = of_true - top
    p = scores.scatter_(2, y, of_true).sub_(top).exp()
    total = p.sum(dim=2, keepdim=True)
    log_total = total.log()
    p.mul_(total.reciprocal_())
    return _Voxels(scores, p, log_total, log_true.sub_(log_total), log_mistaken.sub_(top).sub_(log_total), y, keep)


def _share_of_peer(at: _Voxels, options: Options) -> tuple[Tensor, Tensor]:
    """Lambda of the soft label that each student learns from, and whether its peer is right; `(2, B, 1, n)`.

    At dropped voxels lambda is 1. There the soft label is the student's own prediction, and the gradient is exactly 0.
    """
    right = at.log_true > at.log_mistaken
    if options.mode != "rlcl":
        return torch.ones_like(at.log_true), right.flip(0)
    true = at.log_true.exp()
    weight = true if "similarity" in options.factors else torch.ones_like(true)
    if "certainty" in options.factors:
        weight = weight * (at.p * at.scores).sum(dim=2, keepdim=True).sub_(at.log_total).exp_()
    if "alignment" in options.factors:
        weight = weight / (1 + at.log_mistaken.exp() - true)
    return torch.where(right | ~at.keep, 1, weight).flip(0), right.flip(0)


def _taught(at: _Voxels, right: Tensor, options: Options) -> Tensor:
    """Whether a student learns at a voxel, `(2, B, 1, n)` bool."""
    if options.mode == "selective":
        return at.keep & (at.log_true.flip(0) > at.log_true)
    if options.unsure_peer == "skip":
        return at.keep & ~(right & (at.log_true.flip(0) < at.log_true))
    return at.keep.expand_as(right)


def _closed_form(at: _Voxels, share: Tensor, taught: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of "target first" (equation in the module's docstring), and the two terms P and lambda P of the gradients.

    The second term is that of the student which teaches. It learns nothing from itself.
    """
    sums = torch.zeros_like(share[:, 0, 0, 0])
    # `from_peer` is by the student that teaches.
    if options.mode == "rlcl":
        from_peer = at.p * share.flip(0)
        of_truth, log_peer_true = 1 - share, at.log_true.flip(0)
        peer_true = log_peer_true.exp()
        of_peer = share * peer_true
        q_true = of_peer + of_truth
        values = torch.xlogy(share, share).mul_(1 - peer_true).add_(torch.xlogy(q_true, q_true))
        values = values.addcmul_(of_peer, log_peer_true, value=-1).addcmul_(of_truth, at.log_true, value=-1)
        sums = values.where(taught, 0).sum(dim=(1, 2, 3))
    else:
        from_peer = at.p.clone()  # the probabilities are overwritten
    difference = (at.scores[1] - at.scores[0]).sub_(at.log_total[1] - at.log_total[0])
    towards = []
    for student in range(2):
        used = difference * taught[student] if options.leaves_out else difference
        towards.append(torch.dot(from_peer[1 - student].flatten(), used.flatten()))
    return sums + torch.stack((towards[0], -towards[1])), at.p, from_peer


def _soft_labels(at: _Voxels, share: Tensor, options: Options) -> Tensor:
    """The soft label of each student, made from its peer, `(2, B, K, n)`."""
    if options.mode == "ensemble":
        return at.p.mean(dim=0, keepdim=True).expand_as(at.p)
    peer = at.p.flip(0)
    return peer.mul_(share).scatter_add_(2, at.y, 1 - share) if options.mode == "rlcl" else peer


def _divergence(at: _Voxels, q: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """Divergence `(2, B, 1, n)` and its gradient with respect to the logits `(2, B, K, n)`."""
    log_p = at.scores - at.log_total
    if order == "target_first":
        return (torch.xlogy(q, q) - q * log_p).sum(dim=2, keepdim=True), at.p - q
    log_ratio = log_p - q.clamp_min(SOFT_LABEL_FLOOR).log()
    value = (at.p * log_ratio).sum(dim=2, keepdim=True)
    return value, at.p * (log_ratio - value)
