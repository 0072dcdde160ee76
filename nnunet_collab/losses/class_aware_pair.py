r"""CFCL of both students of a pair, at all levels at once; equal to `class_aware` called for each.

With :math:`u_i = \alpha \cos(F_s, p_i)` and :math:`R = \mathrm{softmax}(u)`, the gradient of the divergence with
respect to u has a closed form, :math:`R - R'` for "target first". From there to the features of a cell it has rank 2K
and a part along the features themselves,

.. math::
    \frac{\partial L}{\partial F_s} = \sum_i a_{i,s} p_i + \sum_i b_i [Y_s = i] + c_s F_s,

with one number a per cell and class, one vector b per class (through the prototypes), and one number c per cell
(through the norm). Only a, b and c are kept. The gradient itself, the largest tensor here, is computed when the
backward pass reaches the features, when the memory of later layers is free already. Features are read in chunks of
cells. The maps over the classes are small. Those of both students and of all levels are in one tensor, because on a GPU
every operation has a launch cost.

Source, arithmetic and units as in `class_aware`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_collab.core.blanking import bit_mask, blank
from nnunet_collab.core.checks import check_truth
from nnunet_collab.core.distributed import all_reduce_sum, world_size
from nnunet_collab.core.pooling import average_pool
from nnunet_collab.core.types import Truth
from nnunet_collab.losses.class_aware import ClassSet, check_features, check_spatial_axes, common_grid, sample_centers
from nnunet_collab.losses.collaborative_kl import Order
from nnunet_collab.losses.late_gradient import CHUNKS, GradientParts, chunks, sum_over_cells, teach


def class_aware_pair(
    first_features: Sequence[Tensor],
    second_features: Sequence[Tensor],
    truth: Truth,
    *,
    num_classes: int,
    alpha: float = 20.0,
    order: Order = "target_first",
    classes: ClassSet = "sample",
    detach_prototypes: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """CFCL of each student of a pair at each level, the other's tensors being constants.

    Args:
        first_features: Features of the first student, `(B, D, *s)` per level.
        second_features: Features of the second student, `(B, D', *s')` per level; channels and size may differ.
        truth: Truth at full resolution, `(B, *S)`. Each region is a two-class problem; the loss is their mean.
        num_classes: Number of classes K, with the background. Not used for regions.
        alpha: Factor of the cosine, > 0.
        order: Which map comes first in the Kullback-Leibler divergence.
        classes: Softmax over the classes of the `sample` (paper) or of the `batch`.
        detach_prototypes: If True, the gradient does not flow through the prototypes.

    Returns:
        Two scalars per level: the first gives a gradient only to the first student's features, the second only to the
        second student's. They can be differentiated once.

    Raises:
        ValueError: As in `class_aware_kl`.
        TypeError: If `truth.keep` is not boolean.
    """
    levels = list(zip(first_features, second_features, strict=True))
    for first, second in levels:
        check_features("class_aware_pair", first, second, alpha, order, classes)
        check_spatial_axes("class_aware_pair", "labels", truth.labels, 1, first)
        check_truth("class_aware_pair", truth, first.shape[0])
    sizes = [common_grid(*level) for level in levels]
    with torch.autocast(truth.keep.device.type, enabled=False):
        maps = [[average_pool(f, size) for f in level] for level, size in zip(levels, sizes, strict=True)]
        with torch.no_grad():
            cells = _read_cells(truth, sizes, num_classes, classes, _arithmetic(maps))
            comparison = _compare([[f.flatten(2) for f in level] for level in maps], cells)
            values, slopes = _divergences(comparison, cells, alpha, order)
            along = _along_features(comparison, slopes)
            slopes.div_(comparison.norms)  # now with respect to the products of features and unit prototypes
        return [
            (_teach(maps, values, slopes, along, comparison, cells, level, 0, detach_prototypes),
             _teach(maps, values, slopes, along, comparison, cells, level, 1, detach_prototypes))
            for level in range(len(levels))
        ]  # fmt: skip


class _Cells(NamedTuple):
    """The truth on the grids of the levels, `N` cells in all: `G` problems of `K` classes each, one without regions."""

    of_level: list[slice]  # cells of each level
    member: Tensor  # (B, G * K, N) 1 where a kept cell has the class, in the arithmetic dtype
    mask: Tensor  # (B, 1, N) of the kept cells, see `blank`
    weight: Tensor  # (levels,) of a kept cell in the mean
    share: Tensor  # (levels, B, G * K, 1) what a cell contributes to the prototype of its class
    not_competing: Tensor  # (levels, B, G, K, 1) bool, the classes that are not in the softmax


class _Comparison(NamedTuple):
    """Products of both students' features with their prototypes, and the norms."""

    cosine: Tensor  # (2, B, G * K, N), 0 where dropped
    norms: Tensor  # (2, B, 1, N) of the features, 1e-8 at least
    prototypes: list[list[tuple[Tensor, Tensor]]]  # per level and student: of unit length (G * K, D), length (G * K, 1)


def _teach(
    maps: list[list[Tensor]],
    values: list[Tensor],
    slopes: Tensor,
    along: Tensor,
    comparison: _Comparison,
    cells: _Cells,
    level: int,
    student: int,
    detach_prototypes: bool,
) -> Tensor:
    at = cells.of_level[level]
    parts = GradientParts(
        slopes[student][..., at],
        along[student][..., at],
        *comparison.prototypes[level][student],
        cells.member[..., at],
        cells.share[level],
        cells.mask[..., at],
    )
    return teach(maps[level][student], values[level][student], parts, through_prototypes=not detach_prototypes)


def _arithmetic(maps: list[list[Tensor]]) -> torch.dtype:
    dtype = torch.float32
    for level in maps:
        for features in level:
            dtype = torch.promote_types(dtype, features.dtype)
    return dtype


def _read_cells(
    truth: Truth, sizes: list[tuple[int, ...]], num_classes: int, classes: ClassSet, dtype: torch.dtype
) -> _Cells:
    keep = _on_grids(truth.keep, sizes)
    if truth.regions is None:
        labels = _on_grids(truth.labels, sizes)
        groups, member = 1, labels == torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    else:
        inside = torch.cat([_on_grids(truth.regions[:, r], sizes) for r in range(truth.regions.shape[1])], dim=1)
        groups, member = inside.shape[1], torch.stack((~inside, inside), dim=2).flatten(1, 2)
    member = (member & keep).to(dtype)
    ends = accumulate((math.prod(size) for size in sizes), initial=0)
    of_level = [slice(*ends) for ends in pairwise(ends)]
    count = torch.stack([member[..., level].sum(dim=2, keepdim=True) for level in of_level])
    present = count > 0
    # Of all ranks, (levels, 1, G * K, 2): the samples that hold a class, and its cells.
    everywhere = all_reduce_sum(torch.cat((present, count), dim=3).sum(dim=1, keepdim=True))
    samples, kept = everywhere[..., :1], everywhere[..., 1].sum(dim=(1, 2))  # every cell counts in every group
    competing = present if classes == "sample" else (samples > 0).expand_as(present)
    return _Cells(
        of_level,
        member,
        bit_mask(keep, dtype),
        weight=world_size() / kept.clamp_(min=1),
        share=((count + 1e-6) * samples.clamp(min=1)).reciprocal_(),
        not_competing=~competing.view(len(sizes), len(member), groups, -1, 1),
    )


def _on_grids(voxels: Tensor, sizes: list[tuple[int, ...]]) -> Tensor:
    """`(B, *S)` sampled on the grids of all levels, `(B, 1, N)`."""
    return torch.cat([sample_centers(voxels, size).flatten(1) for size in sizes], dim=1).unsqueeze(1)


def _compare(features: list[list[Tensor]], cells: _Cells) -> _Comparison:
    """Prototypes (equation 14) and the cosines between features and them."""
    samples, classes, count = cells.member.shape
    cosine = cells.member.new_empty(2, samples, classes, count)
    norms = cells.member.new_empty(2, samples, 1, count)
    prototypes: list[list[tuple[Tensor, Tensor]]] = []
    for level, (at, pair) in enumerate(zip(cells.of_level, features, strict=True)):
        contribution = cells.member[..., at] * cells.share[level]
        prototypes.append([])
        for student, own in enumerate(pair):
            prototype = all_reduce_sum(sum_over_cells(contribution, own, cells.mask[..., at]))
            length = torch.linalg.vector_norm(prototype, dim=1, keepdim=True).clamp_min_(1e-8)
            unit = prototype / length
            prototypes[-1].append((unit, length))
            for (b, _, n), f in chunks(own, 1 if own.dtype == unit.dtype else CHUNKS):
                cosine[student, ..., at][b, :, n] = unit.expand(len(f), -1, -1) @ f.to(unit.dtype)
            torch.linalg.vector_norm(own, dim=1, keepdim=True, dtype=norms.dtype, out=norms[student, ..., at])
    norms = blank(norms, cells.mask).clamp_min_(1e-8)
    return _Comparison(blank(cosine, cells.mask).div_(norms), norms, prototypes)


def _divergences(comparison: _Comparison, cells: _Cells, alpha: float, order: Order) -> tuple[list[Tensor], Tensor]:
    """Both values (equation 16) of each level, `(2,)`, and their slopes with respect to the cosines.

    At dropped cells all cosines are 0: both students' maps are equal there, and add nothing.
    """
    groups = cells.not_competing.shape[2]
    scaled = (alpha * comparison.cosine).view(*comparison.cosine.shape[:2], groups, -1, comparison.cosine.shape[3])
    for at, absent in zip(cells.of_level, cells.not_competing, strict=True):
        # A finite fill: with -inf, a probability of 0 times a logarithm of -inf would be NaN.
        scaled[..., at].masked_fill_(absent, -1e9)
    own = scaled.log_softmax(dim=3)
    peer = own.flip(0)
    if order == "target_first":
        target = peer.exp()
        divergence = peer.sub_(own).mul_(target).sum(dim=3, keepdim=True)
        slopes = own.exp().sub_(target)
    else:
        response, ratio = own.exp(), own - peer
        divergence = (response * ratio).sum(dim=3, keepdim=True)
        slopes = ratio.sub_(divergence).mul_(response)
    values = []
    for at, weight, factor in zip(cells.of_level, cells.weight, alpha * cells.weight, strict=True):
        values.append(divergence[..., at].sum(dim=(1, 2, 3, 4)) * weight)
        slopes[..., at].mul_(factor)
    return values, slopes.flatten(2, 3)


def _along_features(comparison: _Comparison, slopes: Tensor) -> Tensor:
    """Factor of a cell's features in their gradient, `(2, B, 1, N)`: through the norm, unless that is clamped."""
    through_norm = (slopes * comparison.cosine).sum(dim=2, keepdim=True)
    return through_norm.div_(comparison.norms.square()).mul_(comparison.norms > 1e-8).neg_()
