r"""Logit-wise collaborative learning of both students of a pair at once; equal to `collaborative_kl` called twice.

Both losses need the probabilities of both students, so they are computed once, slab by slab, together with the
gradients (`collaborative_slab`). The gradients have the size and the dtype of the logits. The backward pass only
multiplies them, in place, so it needs no further memory.

Source, arithmetic and units as in `collaborative_kl`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_collab.core.checks import check_same_shape, check_truth
from nnunet_collab.core.compilation import compiled_or_eager
from nnunet_collab.core.distributed import global_mean
from nnunet_collab.core.types import Truth
from nnunet_collab.losses.collaborative_kl import Order, UnsurePeer, check_options
from nnunet_collab.losses.collaborative_slab import LogitMode, Options, SlabFunction, slab_losses
from nnunet_collab.losses.rectified import ALL_FACTORS

# Number of values of both students' logits in a slab: on a CPU few enough for the cache of one core; more on a GPU,
# where every operation has a launch cost.
SLAB_ELEMENTS = {"cpu": 2**19, "cuda": 2**22}


def collaborative_pair(
    first_logits: Tensor,
    second_logits: Tensor,
    truth: Truth,
    *,
    mode: LogitMode = "rlcl",
    factors: Collection[str] = ALL_FACTORS,
    order: Order = "target_first",
    unsure_peer: UnsurePeer = "as_published",
    slab_function: SlabFunction = slab_losses,
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
        slab_function: `slab_losses`, or what `compiled` made of it.

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
    options = Options(mode, order, frozenset(factors), unsure_peer, regions is not None)
    true = truth.labels.unsqueeze(1) if regions is None else regions
    sums = _SumsOfKL.apply(first_logits, second_logits, true, truth.keep, options, slab_function)
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
        options: Options,
        slab_function: SlabFunction,
    ) -> Tensor:
        ctx.options, ctx.slab_function, ctx.learns = options, slab_function, ctx.needs_input_grad[:2]
        ctx.save_for_backward(first, second, true, keep)
        sums, ctx.gradients = _run(first, second, true, keep, options, slab_function, ctx.learns)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # the graph was retained, and the gradients were used in the pass before
            first, second, true, keep = ctx.saved_tensors
            _, gradients = _run(first, second, true, keep, ctx.options, ctx.slab_function, ctx.learns)
        for gradient, scale in zip(gradients, grads[0], strict=True):
            if gradient is not None:
                _multiply(gradient, scale)
        return (*gradients, None, None, None, None)


def _run(
    first: Tensor,
    second: Tensor,
    true: Tensor,
    keep: Tensor,
    options: Options,
    slab_function: SlabFunction,
    learns: tuple[bool, bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Sums `(2,)`, and the gradient of each student that learns."""
    logits, true, keep = [z.detach().flatten(2) for z in (first, second)], true.flatten(2), keep.flatten(1)
    sums = torch.zeros(2, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
    results = [
        torch.empty_like(z, memory_format=torch.contiguous_format) if wanted else None
        for z, wanted in zip((first, second), learns, strict=True)
    ]
    with torch.autocast(first.device.type, enabled=False):
        for b, n in _slabs(logits[0]):
            filled = [None if result is None else result.flatten(2)[b, :, n] for result in results]
            own, other = (z[b, :, n] for z in logits)
            sums += slab_function(own, other, true[b, :, n], keep[b, n], options, filled)
    return sums, results


def _slabs(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Split `(B, K, N)` into whole samples, or equal parts of one sample, with about SLAB_ELEMENTS per student pair."""
    samples, classes, voxels = logits.shape
    limit = SLAB_ELEMENTS.get(logits.device.type, SLAB_ELEMENTS["cuda"]) // (2 * max(1, classes)) or 1
    height = max(1, limit // max(1, voxels))
    parts = max(1, -(-voxels // limit))
    width = max(1, -(-voxels // parts))
    for b in range(0, samples, height):
        for n in range(0, voxels, width):
            yield slice(b, b + height), slice(n, n + width)


def _multiply(gradient: Tensor, scale: Tensor) -> None:
    """`gradient` times `scale`, in place."""
    if gradient.dtype == scale.dtype:
        gradient.mul_(scale)
        return
    # In the arithmetic dtype: a loss scale may exceed the range of half precision.
    for part in torch.split(gradient.view(-1), SLAB_ELEMENTS["cuda"]):
        part.copy_(part.to(scale.dtype).mul_(scale))


def compiled(log: Callable[[str], None], **options: Any) -> SlabFunction:
    """`slab_losses`, its operations fused by torch.compile. If that fails, it stays uncompiled, with a line in the log.

    Args:
        log: Function that logs one line.
        options: Options of torch.compile.
    """
    return compiled_or_eager(slab_losses, "CTRCL's logit loss", log, **options)
