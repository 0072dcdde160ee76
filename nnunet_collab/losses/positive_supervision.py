r"""Collaborative positive supervision (CPS) of CRLN: uncertain voxels are drawn to their class, away from the others.

For each class c, 256 anchors are drawn from its uncertain voxels and for each 512 negatives from the voxels of other
classes (equations 9 to 12, with replacement, as in Liu et al. 2021, "ReCo"). The positive of all anchors of a class is

.. math:: r_c^+ = (r_m + \xi \, \mathrm{mean}_R P^c) / (1 + \xi)

with the mean feature :math:`r_m` of the class and its learned prototypes (equation 13). The loss is InfoNCE with
cosines and temperature t (equation 14), the mean over the anchors of a class and over the classes that have any. The
anchors carry the gradient; positives and negatives do not. With fewer than two classes present, or no uncertain voxel,
it is 0 with zero gradient.

The projected map is never made: features are computed only where voxels were drawn, and r_m from means of f_4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ANCHORS, NEGATIVES = 256, 512  # per class; per anchor (section 4.2)

Positives = Literal["mean", "learned", "both"]


class Projection(Protocol):
    """Makes the features r of f_4; see `networks.projection.VoxelProjection`."""

    def at(self, features: Tensor, voxels: Tensor) -> Tensor:
        """`(n, F)` of the voxels `(n, 1 + dims)` of `(B, F_4, *S)`."""

    def mean_of(self, features: Tensor, members: Tensor) -> Tensor:
        """`(C, F)`: means over the members `(B, C, *S)`."""

    def parameters(self) -> Iterator[Tensor]:
        """Its weights."""


class Supervision(NamedTuple):
    """What CPS knows of the voxels of a batch.

    Attributes:
        labels: `(B, *S)` int64: the truth, or the label of the rectified prediction.
        reliable: `(B, *S)` bool: labelled voxels, and unlabelled ones whose label is surer than tau_w.
        confidence: `(B, C, *S)` of the student.
    """

    labels: Tensor
    reliable: Tensor
    confidence: Tensor


def positive_supervision(
    projection: Projection,
    features: Tensor,
    prototypes: Tensor,
    known: Supervision,
    *,
    tau: float,
    xi: float,
    temperature: float,
    positives: Positives,
    anchors: int = ANCHORS,
    negatives: int = NEGATIVES,
) -> Tensor:
    """Equation 14.

    Args:
        projection: Makes r of f_4.
        features: f_4, `(B, F_4, *S)`; carries the gradient.
        prototypes: `(C, R, F)`; detached here.
        known: Labels, their reliability, and the student's confidence.
        tau: An anchor is a voxel of class c for which the student's confidence in c is below.
        xi: Weight of the learned prototypes in the positive.
        temperature: t.
        positives: Mean feature, learned prototypes, or both (table 5: MR, LP, CPS).
        anchors: Drawn per class.
        negatives: Drawn per anchor.

    Returns:
        Scalar float32.
    """
    classes = prototypes.shape[0]
    members = torch.stack([(known.labels == c) & known.reliable for c in range(classes)], dim=1)
    present = [c for c in range(classes) if bool(members[:, c].any())]
    with torch.autocast(features.device.type, enabled=False):
        losses = []
        means = _positives(projection, features, prototypes, members, xi, positives)
        for c in present if len(present) > 1 else ():
            uncertain = (members[:, c] & (known.confidence[:, c] < tau)).nonzero()
            others = (known.reliable & ~members[:, c]).nonzero()
            if len(uncertain) == 0:
                continue
            anchor = projection.at(features, _draw(uncertain, anchors))
            with torch.no_grad():
                negative = projection.at(features, _draw(others, anchors * negatives))
                negative = F.normalize(negative, dim=1).unflatten(0, (anchors, negatives))  # type: ignore[no-untyped-call]
                positive = F.normalize(means[c], dim=0)
            losses.append(_info_nce(F.normalize(anchor, dim=1), positive, negative, temperature))
        if not losses:
            return 0 * sum(p.float().sum() for p in projection.parameters()) + 0 * features[:0].float().sum()
        return torch.stack(losses).mean()


@torch.no_grad()
def _positives(
    projection: Projection, features: Tensor, prototypes: Tensor, members: Tensor, xi: float, kind: Positives
) -> Tensor:
    learned = prototypes.detach().float().mean(dim=1)
    if kind == "learned":
        return learned
    means = projection.mean_of(features.detach(), members)
    return means if kind == "mean" else (means + xi * learned) / (1 + xi)


def _info_nce(anchor: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Mean over the anchors; `(n, F)`, `(F,)`, `(n, m, F)`, all of length 1."""
    own = (anchor @ positive).unsqueeze(1)
    other = torch.einsum("nf,nmf->nm", anchor, negative)
    logits = torch.cat([own, other], dim=1) / temperature
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def _draw(voxels: Tensor, count: int) -> Tensor:
    """`count` of the voxels, with replacement, by torch's CPU generator, which checkpoints hold."""
    return voxels[torch.randint(len(voxels), (count,)).to(voxels.device)]
