"""A low-rank gradient that is added to a feature map's gradient when the backward pass reaches that map.

`class_aware_pair` explains which gradient this is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_collab.core.blanking import blank
from nnunet_collab.core.distributed import all_reduce_sum

# A chunk is this fraction of a map, but has at least this number of values: on a GPU every operation has a launch cost.
CHUNKS = 4
MIN_CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**22}


class GradientParts(NamedTuple):
    """Parts of the gradient of a value with respect to features `(B, D, N)`; `K` prototypes."""

    to_products: Tensor  # (B, K, N) slopes with respect to the products of features and unit prototypes
    along: Tensor  # (B, 1, N) factor of a cell's features in their gradient
    unit_prototypes: Tensor  # (K, D)
    lengths: Tensor  # (K, 1) of the prototypes, 1e-8 at least
    member: Tensor  # (B, K, N) 1 where a cell belongs to a prototype
    share: Tensor  # (B, K, 1) weight of a cell in its prototype
    mask: Tensor  # (B, 1, N) of the cells that count, see `blank`


def teach(features: Tensor, value: Tensor, parts: GradientParts, *, through_prototypes: bool) -> Tensor:
    """The value, with this gradient for the features `(B, D, *s)` if they require one. Differentiable once."""
    if not (torch.is_grad_enabled() and features.requires_grad):
        return value
    pending: list[tuple[Tensor, ...]] = []
    features.register_hook(lambda gradient: _add_pending(gradient, pending))  # type: ignore[no-untyped-call]
    return _Tie.apply(features, value, pending, through_prototypes, *parts)  # type: ignore[no-any-return]


class _Tie(torch.autograd.Function):
    """Ties a value to features: its backward stores the gradient's parts, and the features' hook adds them."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, value: Tensor, pending: list[Any], through_prototypes: bool, *parts: Tensor
    ) -> Tensor:
        ctx.pending, ctx.through_prototypes = pending, through_prototypes
        ctx.save_for_backward(features, *parts)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, *saved = ctx.saved_tensors
        parts = GradientParts(*saved)
        vectors = (parts.unit_prototypes * grads[0]).t().expand(len(features), -1, -1)
        numbers = parts.to_products
        if ctx.through_prototypes:
            to_prototypes = _to_prototypes(features.detach().flatten(2), parts)
            # Every rank's loss depends on every rank's features through the prototypes.
            to_prototypes = all_reduce_sum(to_prototypes * grads[0])
            vectors = torch.cat((vectors, to_prototypes.t() * parts.share.mT), dim=2)
            numbers = torch.cat((numbers, parts.member), dim=1)
        ctx.pending.append((features, vectors, numbers, parts.along * grads[0], parts.mask))
        # Zeros that need no memory, so that autograd reaches the features.
        zeros = features.new_zeros(()).expand_as(features)
        return zeros, *[None] * (3 + len(parts))


def _to_prototypes(features: Tensor, parts: GradientParts) -> Tensor:
    """Gradient with respect to the prototypes, `(K, D)`: orthogonal to them, and along them if a length is clamped."""
    to_unit = sum_over_cells(parts.to_products, features, parts.mask)
    along = (to_unit * parts.unit_prototypes).sum(dim=1, keepdim=True).mul_(parts.lengths > 1e-8)
    return to_unit.addcmul_(along, parts.unit_prototypes, value=-1).div_(parts.lengths)


@torch.no_grad()
def _add_pending(gradient: Tensor, pending: list[tuple[Tensor, ...]]) -> Tensor | None:
    """Hook of a feature map: its gradient plus the parts that the ties stored in the same backward pass."""
    if not pending:
        return None
    total = gradient
    while pending:
        features, vectors, numbers, along, mask = pending.pop()
        before = total.flatten(2)
        after = torch.empty(before.shape, dtype=before.dtype, device=before.device)
        for (b, _, n), f in chunks(features.flatten(2)):
            part = _blank(f, mask[b, :, n], vectors.dtype).mul_(along[b, :, n])
            torch.add(part.baddbmm_(vectors[b], numbers[b, :, n]), before[b, :, n], out=after[b, :, n])
        total = after.view(gradient.shape)
    return total


def sum_over_cells(weights: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    """Sums of the features `(B, D, N)` of the cells that count, `(K, D)`, each with its weight `(B, K, N)`."""
    total, old = weights.new_empty(weights.shape[1], features.shape[1]), 0
    for (b, _, n), f in chunks(features):
        total.addbmm_(weights[b, :, n], _blank(f, mask[b, :, n], total.dtype).mT, beta=old)
        old = 1
    return total


def _blank(features: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    return blank(features.to(dtype), mask)


def chunks(features: Tensor, parts: int = CHUNKS) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
    """Parts of features `(B, D, N)` and their indices: whole samples, or some cells of one sample."""
    samples, channels, cells = features.shape
    least = MIN_CHUNK_ELEMENTS.get(features.device.type, MIN_CHUNK_ELEMENTS["cuda"])
    limit = max(least, -(-features.numel() // parts))
    height, width = max(1, limit // (channels * cells)), min(cells, max(1, limit // channels))
    for b in range(0, samples, height):
        for n in range(0, cells, width):
            at = (slice(b, b + height), slice(None), slice(n, n + width))
            yield at, features[at].detach()
