"""Feature perturbation: additional passes of a network's decoder over features in which channels are dropped.

One encoder pass serves all perturbed passes; their features are appended to the batch, so that the decoder runs once
over everything. With instance normalization, as in nnU-Net's networks, this equals separate passes; with batch
normalization clean and perturbed samples would share statistics.

Channels are dropped by `F.dropout2d` or `F.dropout3d` with an explicit `training=True`. There is no module whose mode
could be wrong, and validation and prediction never use this path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PerturbAt = Literal["all", "bottleneck"]


class PerturbedPass(NamedTuple):
    """Samples of the batch that pass the decoder once more, with perturbed features.

    Attributes:
        start: First sample.
        stop: Index after the last sample.
        rate: Share of the channels that are dropped, in [0, 1); the others are scaled up by 1 / (1 - rate).
        at: `all`: every feature map that the encoder hands to the decoder; `bottleneck`: the deepest one only.
    """

    start: int
    stop: int
    rate: float
    at: PerturbAt = "all"


class OnlyTeaching(NamedTuple):
    """Samples of the batch whose own prediction has no loss, so the decoder's pass leaves them out.

    Attributes:
        start: First sample.
        stop: Index after the last sample.
        decoded: True: decode them separately, without gradient. False: their prediction is not needed.
    """

    start: int
    stop: int
    decoded: bool = True


def append_perturbed_passes(
    features: Any, perturbed_passes: Sequence[PerturbedPass], left_out: OnlyTeaching | None = None
) -> Any:
    """The encoder's output with the samples of every pass appended, perturbed, in the order of the passes.

    Args:
        features: `(B, D, *s)`, or a sequence of such maps, finest first.
        perturbed_passes: What to append.
        left_out: Samples that the result has only in the passes.

    Returns:
        The same kind of object for a batch of `B + sum(stop - start)` samples, less those left out.
    """
    if isinstance(features, Tensor):
        return _append(features, perturbed_passes, left_out, deepest=True)
    last = len(features) - 1
    return type(features)([_append(f, perturbed_passes, left_out, deepest=i == last) for i, f in enumerate(features)])


def _append(
    feature: Tensor, perturbed_passes: Sequence[PerturbedPass], left_out: OnlyTeaching | None, *, deepest: bool
) -> Tensor:
    drop = F.dropout2d if feature.ndim == 4 else F.dropout3d
    masks = []
    for perturbed_pass in perturbed_passes:
        whole = feature.new_ones(
            (perturbed_pass.stop - perturbed_pass.start, feature.shape[1], *[1] * (feature.ndim - 2))
        )
        masks.append(
            drop(whole, perturbed_pass.rate, training=True) if deepest or perturbed_pass.at == "all" else whole
        )
    appended: Tensor = _AppendProducts.apply(
        feature,
        [(p.start, p.stop) for p in perturbed_passes],
        (len(feature), len(feature)) if left_out is None else (left_out.start, left_out.stop),
        *masks,
    )
    return appended


class _AppendProducts(torch.autograd.Function):
    """`torch.cat([feature[:a], feature[b:], feature[start:stop] * mask, ...])`, `a` to `b` left out.

    Written in one go: full-resolution features are large.
    """

    @staticmethod
    def forward(
        ctx: Any, feature: Tensor, spans: list[tuple[int, int]], left_out: tuple[int, int], *masks: Tensor
    ) -> Tensor:
        ctx.spans, ctx.left_out = spans, left_out
        ctx.save_for_backward(*masks)
        a, b = left_out
        kept = len(feature) - (b - a)
        total = kept + sum(stop - start for start, stop in spans)
        result = feature.new_empty((total, *feature.shape[1:]))
        result[:a] = feature[:a]
        result[a:kept] = feature[b:]
        end = kept
        for (start, stop), mask in zip(spans, masks, strict=True):
            begin, end = end, end + stop - start
            torch.mul(feature[start:stop], mask, out=result[begin:end])
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (of_result,) = grads
        a, b = ctx.left_out
        end = len(of_result) - sum(stop - start for start, stop in ctx.spans)
        gradient = of_result.new_empty((end + b - a, *of_result.shape[1:]))
        gradient[:a] = of_result[:a]
        gradient[a:b] = 0
        gradient[b:] = of_result[a:end]
        for (start, stop), mask in zip(ctx.spans, ctx.saved_tensors, strict=True):
            begin, end = end, end + stop - start
            gradient[start:stop].addcmul_(of_result[begin:end], mask)
        return gradient, None, None, *[None] * len(ctx.spans)
