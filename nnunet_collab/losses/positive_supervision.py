r"""Collaborative positive supervision (CPS) of CRLN: pull uncertain voxels toward their class, away from the others.

For each class c, 256 anchors are drawn from its uncertain voxels and for each 512 negatives from the voxels of other
classes (equations 9 to 12, with replacement, as in Liu et al. 2021, "ReCo"). The positive of all anchors of a class is

.. math:: r_c^+ = (r_m + \xi \, \mathrm{mean}_R P^c) / (1 + \xi)

with the mean feature :math:`r_m` of the class and its learned prototypes (equation 13). The loss is InfoNCE with
cosines and temperature t (equation 14), the mean over the anchors of a class and over the classes that have any. The
anchors carry the gradient; positives and negatives do not. With fewer than two classes present, or no uncertain voxel,
it is 0 with zero gradient.

In a distributed run r_m is the mean over all ranks; each rank draws anchors and negatives from its own voxels. The
anchors of a class represent the uncertain voxels of their rank and are weighted by their number. So, except for the
negatives, the mean over all ranks estimates the loss of a single process with the whole batch. A rank that sees only
one class has no negatives and adds nothing to the loss.

Features are projected only at drawn voxels. The 131 072 negatives per class are processed in parts: the gradient of the
anchors is computed together with the loss, so no feature of a negative is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.core.checks import check_mask
from nnunet_collab.core.distributed import all_reduce_sum, world_size

ANCHORS, NEGATIVES = 256, 512  # per class; per anchor (section 4.2)
AT_A_TIME = 2**13  # negatives whose features are in memory at the same time

Positives = Literal["mean", "learned", "both"]


class Constants(Protocol):
    """Features r without gradient."""

    def at(self, voxels: Tensor) -> Tensor:
        """`(n, F)` of the voxels `(n, 1 + dims)`: sample, then position."""

    def mean_of(self, members: Tensor) -> Tensor:
        """`(C, F)`: means over the members `(B, C, *S)` of all ranks."""


class Projection(Protocol):
    """Computes the features r from f_4 `(B, F_4, *S)`; see `networks.projection.VoxelProjection`."""

    def at(self, features: Tensor, voxels: Tensor) -> Tensor:
        """`(n, F)` of the voxels `(n, 1 + dims)`, with gradient."""

    def fixed(self, features: Tensor) -> Constants:
        """The features of all voxels, without gradient."""

    def parameters(self) -> Iterator[Tensor]:
        """Its weights."""


class Supervision(NamedTuple):
    """Labels and confidence of the voxels of a batch.

    Attributes:
        labels: `(B, *S)` int64: the truth, or the label of the rectified prediction.
        reliable: `(B, *S)` bool: labeled voxels, and unlabeled voxels whose label has a confidence above tau_w.
        confidence: `(B, C, *S)` of the student.
    """

    labels: Tensor
    reliable: Tensor
    confidence: Tensor


def positive_supervision(
    projection: Projection,
    features: Tensor,
    prototypes: Tensor | None,
    known: Supervision,
    *,
    tau: float,
    xi: float | Tensor,
    temperature: float,
    positives: Positives,
    anchors: int = ANCHORS,
    negatives: int = NEGATIVES,
) -> Tensor:
    """The CPS loss (equation 14).

    Args:
        projection: Computes r from f_4.
        features: Features f_4, `(B, F_4, *S)`; receives the gradient.
        prototypes: Learned prototypes `(C, R, F)`; detached here. May be None if only the mean feature is used.
        known: Labels, their reliability, and the student's confidence.
        tau: Anchors of class c are voxels of c in which the student's confidence in c is below tau.
        xi: Weight of the learned prototypes in the positive, a number or a scalar.
        temperature: Temperature t.
        positives: Mean feature, learned prototypes, or both (table 5: MR, LP, CPS).
        anchors: Number of anchors per class.
        negatives: Number of negatives per anchor.

    Returns:
        This rank's share, scalar float32: averaged over the ranks, it is the mean over the classes.

    Raises:
        ValueError: If shapes disagree.
        TypeError: If `known.reliable` is not boolean.
    """
    voxels = (known.confidence.shape[0], *known.confidence.shape[2:])
    if tuple(known.labels.shape) != voxels:
        raise ValueError(
            f"positive_supervision: labels have one value per voxel, so {voxels}; got {tuple(known.labels.shape)}."
        )
    check_mask("positive_supervision", "reliable", known.reliable, voxels)
    classes = known.confidence.shape[1]
    members = torch.stack([(known.labels == c) & known.reliable for c in range(classes)], dim=1)
    drawn = _draw(known, tau, anchors, negatives)
    counts = torch.zeros(classes, device=features.device).index_add_(
        0, drawn.of_class, torch.ones_like(drawn.of_class, dtype=torch.float32)
    )
    weights = (_class_weights(members, known, tau) / counts.clamp_min(1))[drawn.of_class]
    with torch.autocast(features.device.type, enabled=False):
        fixed = projection.fixed(features.detach())
        positive = F.normalize(_positives(fixed, prototypes, members, xi, positives), dim=1)[drawn.of_class]
        anchor = F.normalize(projection.at(features, drawn.anchors), dim=1)
        loss, gradient = _info_nce(anchor.detach(), positive, fixed, drawn.negatives, temperature)
        # A class without voxels has no positive. Its draws are invalid and get weight 0.
        counts_here = weights > 0
        loss = torch.where(counts_here, weights * loss, 0).sum()
        gradient = torch.where(counts_here.unsqueeze(1), weights.unsqueeze(1) * gradient, 0)
        value: Tensor = _Known.apply(anchor, loss, gradient)
        return value


class Drawn(NamedTuple):
    """Voxels (sample, then position).

    Attributes:
        of_class: `(n,)` int64, the class of each anchor.
        anchors: `(n, 1 + dims)`.
        negatives: `(n * m, 1 + dims)`, those of an anchor together.
    """

    of_class: Tensor
    anchors: Tensor
    negatives: Tensor


def _draw(known: Supervision, tau: float, anchors: int, negatives: int) -> Drawn:
    """`anchors` of the uncertain voxels of every class, and `negatives` of other classes' voxels for each of them.

    Drawn with replacement, for all classes at once. There is no list of a class's voxels, because the host would wait
    for its length. Instead voxels are sorted by class, the uncertain ones of each class first: the voxels of a class
    are then one range, and all other voxels the two ranges around it. For a class without voxels, any voxel is drawn.
    """
    classes, labels = known.confidence.shape[1], known.labels.flatten()
    certain = ~_uncertain(known, tau).flatten()
    key = torch.where(known.reliable.flatten(), 2 * labels + certain, 2 * classes)
    order = key.argsort(stable=True)
    counts = torch.zeros(2 * classes + 1, dtype=torch.int64, device=key.device)
    counts.index_add_(0, key, torch.ones_like(key))
    uncertain, members = counts[:-1:2], counts[:-1].view(classes, 2).sum(dim=1)
    first = members.cumsum(0) - members
    own = first.unsqueeze(1) + _ranks(uncertain, anchors)
    other = _ranks(members.sum() - members, anchors * negatives)
    other = torch.where(other < first.unsqueeze(1), other, other + members.unsqueeze(1))
    of_class = torch.arange(classes, device=key.device).repeat_interleave(anchors)
    places = (order[ranks.flatten().clamp_max(len(order) - 1)] for ranks in (own, other))
    return Drawn(of_class, *(torch.stack(torch.unravel_index(p, known.labels.shape), dim=1) for p in places))


def _ranks(sizes: Tensor, count: int) -> Tensor:
    """`(C, count)` int64, uniform in [0, size) of each of the `(C,)` sizes, by the device's generator."""
    uniform = torch.rand(len(sizes), count, dtype=torch.float64, device=sizes.device)
    return (uniform * sizes.unsqueeze(1)).long()


def _uncertain(known: Supervision, tau: float) -> Tensor:
    """`(B, *S)` bool: reliable voxels for which the student's confidence in their class is below tau."""
    confidence = known.confidence.gather(1, known.labels.unsqueeze(1)).squeeze(1)
    return known.reliable & (confidence < tau)


def _class_weights(members: Tensor, known: Supervision, tau: float) -> Tensor:
    """Weight of each class in the mean over all classes with anchors, `(C,)`; 0 if this rank has no anchors of it.

    The average over the ranks of these weighed means is the mean over the classes with anchors on any rank, of the mean
    over the uncertain voxels of all ranks.
    """
    axes = [0, *range(2, members.ndim)]
    counts = (members & _uncertain(known, tau).unsqueeze(1)).sum(dim=axes)
    # A rank has negatives only if it has voxels of another class.
    counts = (counts * (members.sum(dim=axes) < known.reliable.sum())).float()
    everyone = all_reduce_sum(counts)
    return world_size() * counts / everyone.clamp_min(1) / (everyone > 0).sum().clamp_min(1)


@torch.no_grad()
def _positives(
    fixed: Constants, prototypes: Tensor | None, members: Tensor, xi: float | Tensor, kind: Positives
) -> Tensor:
    if kind == "mean":
        return fixed.mean_of(members)
    assert prototypes is not None
    learned = prototypes.detach().float().mean(dim=1)
    return learned if kind == "learned" else (fixed.mean_of(members) + xi * learned) / (1 + xi)


def _info_nce(
    anchor: Tensor, positive: Tensor, fixed: Constants, voxels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Loss `(n,)` of each anchor `(n, F)`, and its gradient `(n, F)`.

    The negatives are the voxels `(n * m, 1 + dims)`, those of an anchor together. Anchors and their positives `(n, F)`
    have length 1.
    """
    count = len(voxels) // len(anchor)
    at_a_time = max(1, AT_A_TIME // count)
    of_anchors, of_voxels = (partial(torch.split, split_size_or_sections=n) for n in (at_a_time, at_a_time * count))
    parts = zip(of_anchors(anchor), of_anchors(positive), of_voxels(voxels), strict=True)
    found = [_loss_and_gradient(a, p, fixed.at(v), temperature) for a, p, v in parts]
    loss, gradient = (torch.cat(values) for values in zip(*found, strict=True))
    return loss, gradient


@torch.no_grad()
def _loss_and_gradient(anchor: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Loss per anchor `(n,)` and its gradient `(n, F)`; `negative` `(n * m, F)` may have any length."""
    inverse = negative.norm(dim=1).clamp_min(1e-12).reciprocal().view(len(anchor), -1)
    negative = negative.view(*inverse.shape, -1)
    own = (anchor * positive).sum(dim=1, keepdim=True)
    other = torch.bmm(negative, anchor.unsqueeze(2)).squeeze(2) * inverse
    logits = torch.cat([own, other], dim=1) / temperature
    weights = logits.softmax(dim=1)
    toward = torch.bmm((weights[:, 1:] * inverse).unsqueeze(1), negative).squeeze(1)
    gradient = (toward + (weights[:, :1] - 1) * positive) / temperature
    return logits.logsumexp(dim=1) - logits[:, 0], gradient


class _Known(torch.autograd.Function):
    """A scalar `value` that depends on `anchor`; its gradient is known already."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return factor * gradient, None, None
