r"""Logit-wise collaborative learning of both students of a pair at once; equal to `collaborative_kl` called twice.

Both losses need the log-probabilities of both students, so they are computed once. With the soft label
:math:`q = \lambda P' + (1 - \lambda)\,\mathrm{onehot}(y)` of the peer's :math:`P'` (lambda = 1 without rectification),

.. math::
    KL(q \| P) = \lambda KL(P' \| P) + (1 - P'_y) \lambda \log \lambda
                 + q_y \log q_y - \lambda P'_y \log P'_y - (1 - \lambda) \log P_y,

so the only sums over the classes are :math:`KL(P' \| P)` and the entropy in lambda. The voxels are read in slabs.
Nothing of the size of the logits is kept for the backward pass, which computes the probabilities again.

Source, arithmetic and units as in `collaborative_kl`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_collab.core.blanking import bit_mask, blank
from nnunet_collab.core.checks import check_same_shape, check_truth
from nnunet_collab.core.compilation import compiled_or_eager
from nnunet_collab.core.distributed import global_mean
from nnunet_collab.core.types import Truth
from nnunet_collab.losses.collaborative_kl import SOFT_LABEL_FLOOR, Order, UnsurePeer, as_two_classes, check_options
from nnunet_collab.losses.rectified import ALL_FACTORS

LogitMode = Literal["rlcl", "mutual", "ensemble", "selective"]

# Number of values of both students' logits in a slab: on a CPU few enough for its cache; more on a GPU, where every
# operation has a launch cost.
SLAB_ELEMENTS = {"cpu": 2**21, "cuda": 2**22}


@dataclass(frozen=True)
class _Options:
    mode: LogitMode
    order: Order
    factors: frozenset[str]
    unsure_peer: UnsurePeer
    regions: bool


class _Slab(NamedTuple):
    """Results of one slab: sums of the two divergences `(2,)`, and values per student and voxel `(2, B, 1, n)`."""

    sums: Tensor
    share: Tensor  # lambda of the soft label that the student learns from
    taught: Tensor  # bool, whether the student learns there


class SlabFunctions(NamedTuple):
    """The pointwise part, which a compiler can fuse."""

    values: Callable[..., _Slab]
    gradients: Callable[..., Tensor]


def collaborative_pair(
    first_logits: Tensor,
    second_logits: Tensor,
    truth: Truth,
    *,
    mode: LogitMode = "rlcl",
    factors: Collection[str] = ALL_FACTORS,
    order: Order = "target_first",
    unsure_peer: UnsurePeer = "as_published",
    functions: SlabFunctions | None = None,
) -> tuple[Tensor, Tensor]:
    """The logit loss of each student of a pair, the other's tensors being constants.

    Args:
        first_logits: Logits of the first student, `(B, K, *S)`, or `(B, R, *S)` with regions.
        second_logits: Logits of the second student, same shape.
        truth: Truth; regions are independent two-class problems.
        mode: Row of the CTRCL paper's table IV; see `collaborative_kl`.
        factors: Factors of lambda, see `rectify`; only for "rlcl".
        order: Which distribution comes first in the Kullback-Leibler divergence.
        unsure_peer: See `rectified_kl`; only for "rlcl".
        functions: `EAGER`, compiled; None for `EAGER` itself.

    Returns:
        Two scalars: the first gives a gradient only to the first student, the second only to the second.

    Raises:
        ValueError: If shapes disagree, or an option is unknown.
        TypeError: If `truth.keep` is not boolean.
    """
    check_same_shape("collaborative_pair", first_logits=first_logits, second_logits=second_logits)
    check_truth("collaborative_pair", truth, first_logits.shape[0], tuple(first_logits.shape[2:]))
    check_options("collaborative_pair", order, factors, unsure_peer)
    if mode not in ("rlcl", "mutual", "ensemble", "selective"):
        raise ValueError(f"collaborative_pair: mode must be rlcl, mutual, ensemble or selective; got {mode!r}.")
    regions = truth.regions
    if regions is not None:
        check_same_shape("collaborative_pair", regions=regions, first_logits=first_logits)
    options = _Options(mode, order, frozenset(factors), unsure_peer, regions is not None)
    true = truth.labels.unsqueeze(1) if regions is None else regions
    sums = _SumsOfKL.apply(first_logits, second_logits, true, truth.keep, options, functions or EAGER)
    count = truth.keep.sum() * (1 if regions is None else regions.shape[1])
    first, second = global_mean(sums, count).unbind()
    return first, second


class _SumsOfKL(torch.autograd.Function):
    """Sums of both divergences over the kept voxels, `(2,)`."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        true: Tensor,
        keep: Tensor,
        options: _Options,
        functions: SlabFunctions,
    ) -> Tensor:
        ctx.options, ctx.functions = options, functions
        logits = [z.flatten(2) for z in (first, second)]
        true, keep = true.flatten(2), keep.flatten(1)
        dtype = torch.promote_types(first.dtype, torch.float32)
        sums = torch.zeros(2, dtype=dtype, device=first.device)
        learns = any(ctx.needs_input_grad[:2])
        share = taught = None
        if learns:
            shape = (2, *(true.shape if options.regions else (len(true), 1, true.shape[2])))
            share = torch.empty(shape, dtype=dtype, device=first.device)
            taught = torch.empty(shape, dtype=torch.bool, device=first.device)
        with torch.autocast(first.device.type, enabled=False):
            for slab in _slabs(first):
                z = [part[..., slab] for part in logits]
                part = functions.values(*z, true[..., slab], keep[:, slab], options)
                sums += part.sums
                if share is not None and taught is not None:
                    share[..., slab] = part.share.view(share[..., slab].shape)
                    taught[..., slab] = part.taught.view(share[..., slab].shape)
        ctx.save_for_backward(first, second, true, share, taught)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first, second, true, share, taught = ctx.saved_tensors
        logits = [z.flatten(2) for z in (first, second)]
        results = [
            torch.empty_like(z, memory_format=torch.contiguous_format) if learns else None
            for z, learns in zip((first, second), ctx.needs_input_grad[:2], strict=True)
        ]
        with torch.autocast(first.device.type, enabled=False):
            for slab in _slabs(first):
                z = [part[..., slab] for part in logits]
                part = ctx.functions.gradients(
                    *z, true[..., slab], share[..., slab], taught[..., slab], grads[0], ctx.options
                )
                for result, gradient in zip(results, part, strict=True):
                    if result is not None:
                        result.flatten(2)[..., slab] = gradient
        return (*results, None, None, None, None)


def _slabs(logits: Tensor) -> Iterator[slice]:
    """Split the `n` voxels of a sample into equal parts."""
    voxels = logits[0, 0].numel()
    limit = SLAB_ELEMENTS.get(logits.device.type, SLAB_ELEMENTS["cuda"])
    parts = min(max(1, voxels), -(-2 * logits.numel() // limit) or 1)
    length = -(-voxels // parts) or 1
    return (slice(start, min(start + length, voxels)) for start in range(0, voxels, length))


def _both(first: Tensor, second: Tensor, true: Tensor, options: _Options) -> tuple[Tensor, Tensor]:
    """Logits of both students `(2, B, K, n)` in the arithmetic dtype, and the truth `(2, B, 1, n)`."""
    if options.regions:
        first, second, true = as_two_classes(first), as_two_classes(second), true.flatten(0, 1).unsqueeze(1).long()
    logits = torch.stack((first, second))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), true.expand(2, *true.shape)


def _slab_values(first: Tensor, second: Tensor, true: Tensor, keep: Tensor, options: _Options) -> _Slab:
    """Sums of the divergences over the voxels of a slab, and the values per voxel.

    A dropped voxel may hold an inf or a NaN, so it is removed before anything is summed over voxels.
    """
    logits, y = _both(first, second, true, options)
    log_p = logits.log_softmax(dim=2)
    p = log_p.exp()
    log_true = log_p.gather(2, y)
    closed = options.order == "target_first" and options.mode != "ensemble"
    towards = _divergence_from_peer(log_p, p) if closed else None
    share, right = _share_of_peer(log_p, p, log_true, y, options)
    taught = keep.unsqueeze(1)
    if options.regions:
        taught = taught.expand(-1, first.shape[1], -1).flatten(0, 1).unsqueeze(1)
    if options.mode == "selective":
        taught = taught & (log_true.flip(0) > log_true)
    elif options.unsure_peer == "skip":
        taught = taught & ~(right & (log_true.flip(0) < log_true))
    if towards is None:
        soft = _soft_labels(p, share, y, options)
        values, _ = _divergence(log_p, p, soft, options.order)
    elif options.mode == "rlcl":
        log_peer_true = log_true.flip(0)
        peer_true, of_truth = log_peer_true.exp(), 1 - share
        of_peer = share * peer_true
        q_true = of_peer + of_truth
        values = (share * towards).addcmul_(torch.xlogy(share, share), 1 - peer_true).add_(torch.xlogy(q_true, q_true))
        values = values.addcmul_(of_peer, log_peer_true, value=-1).addcmul_(of_truth, log_true, value=-1)
    else:
        values = towards
    return _Slab(values.where(taught, 0).sum(dim=(1, 2, 3)), share, taught.expand_as(share))


def _slab_gradients(
    first: Tensor, second: Tensor, true: Tensor, share: Tensor, taught: Tensor, scale: Tensor, options: _Options
) -> Tensor:
    """Gradients with respect to the logits of both students, `(2, B, K, n)`, times `scale` `(2,)`."""
    logits, y = _both(first, second, true, options)
    if options.regions:
        share, taught = (t.flatten(1, 2).unsqueeze(2) for t in (share, taught))
    if options.order == "target_first":
        p = logits.softmax(dim=2)
        gradients = p.sub_(_soft_labels(p, share, y, options))
    else:
        log_p = logits.log_softmax(dim=2)
        p = log_p.exp()
        _, gradients = _divergence(log_p, p, _soft_labels(p, share, y, options), options.order)
    gradients = blank(gradients.mul_(scale.view(2, 1, 1, 1)), bit_mask(taught, gradients.dtype))
    return gradients[:, :, 1].view(2, *first.shape) if options.regions else gradients


def _divergence_from_peer(log_p: Tensor, p: Tensor) -> Tensor:
    """KL(peer || student) of each student, `(2, B, 1, n)`."""
    sums = (p * (log_p[1] - log_p[0])).sum(dim=2, keepdim=True)
    return torch.stack((sums[1], -sums[0]))


def _share_of_peer(log_p: Tensor, p: Tensor, log_true: Tensor, y: Tensor, options: _Options) -> tuple[Tensor, Tensor]:
    """Lambda of the soft label that each student learns from, and whether its peer is right; `(2, B, 1, n)`."""
    if options.mode != "rlcl":
        return torch.ones_like(log_true), torch.ones_like(log_true, dtype=torch.bool)
    log_mistaken = log_p.scatter(2, y, -torch.inf).amax(dim=2, keepdim=True)
    right = log_true > log_mistaken
    true = log_true.exp()
    weight = true if "similarity" in options.factors else torch.ones_like(true)
    if "alignment" in options.factors:
        weight = weight / (1 + log_mistaken.exp() - true)
    if "certainty" in options.factors:
        weight = weight * (p * log_p).sum(dim=2, keepdim=True).exp()
    return torch.where(right, 1, weight).flip(0), right.flip(0)


def _soft_labels(p: Tensor, share: Tensor, y: Tensor, options: _Options) -> Tensor:
    """The soft label of each student, made from its peer, `(2, B, K, n)`."""
    if options.mode == "ensemble":
        return p.mean(dim=0, keepdim=True).expand_as(p)
    peer = p.flip(0)
    return peer.mul_(share).scatter_add_(2, y, 1 - share) if options.mode == "rlcl" else peer


def _divergence(log_p: Tensor, p: Tensor, q: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """Divergence `(2, B, 1, n)` and its gradient with respect to the logits `(2, B, K, n)`."""
    if order == "target_first":
        return (torch.xlogy(q, q) - q * log_p).sum(dim=2, keepdim=True), p - q
    log_ratio = log_p - q.clamp_min(SOFT_LABEL_FLOOR).log()
    value = (p * log_ratio).sum(dim=2, keepdim=True)
    return value, p * (log_ratio - value)


EAGER = SlabFunctions(_slab_values, _slab_gradients)


def compiled(log: Callable[[str], None], **options: Any) -> SlabFunctions:
    """`EAGER` with its operations fused by torch.compile. If that fails, it stays uncompiled, with a line in the log.

    Args:
        log: Function that logs one line.
        options: Options of torch.compile.
    """
    return SlabFunctions(*(compiled_or_eager(function, "CTRCL's logit loss", log, **options) for function in EAGER))
