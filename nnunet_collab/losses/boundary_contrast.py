r"""Losses of boundaries: contrast of the vectors of a student and a teacher (InfoNCE), and errors of distance maps.

With unit vectors h, teacher t, student s and temperature T,

.. math:: L = -\frac{1}{N} \sum_i \log \frac{\exp(h^t_i \cdot h^s_i / T)}{\sum_j \exp(h^t_i \cdot h^s_j / T)},

where j runs over all images or slices of the batch of all ranks, with i itself (Zheng et al., equation 4, does not say
so; InfoNCE and SimCVD include it). Neighboring slices of one volume look alike; those at most `gap` slices away are
left out of the sum.

`diagonal_contrast` is what the released code computes instead: logits of labeled image b against those of the
unrelated unlabeled image b, in the order in which the loader drew them.

Float32 whatever autocast says (float64 for float64 vectors). The teacher never receives a gradient. Range [0, inf);
exactly 0 for a single image, which has no negatives, and for an empty batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.core.checks import check_keep, check_same_shape
from nnunet_collab.core.distributed import concatenate_over_ranks, global_mean


def boundary_contrast(
    student: Tensor, teacher: Tensor, *, slices: int = 1, gap: int = 0, temperature: float = 0.07
) -> Tensor:
    """InfoNCE between student and teacher (see the module's docstring), mean over the images or slices of all ranks.

    Args:
        student: Unit vectors, `(N, E)`, the slices of a volume one after the other; receives the gradient.
        teacher: Unit vectors of the same images or slices, `(N, E)`; detached here.
        slices: Number of slices per volume, equal on all ranks; 1 for images.
        gap: Slices of the same volume at most this far apart are not negatives of each other.
        temperature: Temperature T.

    Raises:
        ValueError: If shapes disagree, or N is not a multiple of `slices`.
    """
    check_same_shape("boundary_contrast", student=student, teacher=teacher)
    if slices < 1 or len(student) % slices:
        raise ValueError(
            f"boundary_contrast: the number of vectors must be a multiple of {slices} slices; got {len(student)}."
        )
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(student.dtype, torch.float32)
        everyone, first = concatenate_over_ranks(student.to(dtype))
        own = torch.arange(first, first + len(student), device=student.device)
        similarity = teacher.detach().to(dtype) @ everyone.t() / temperature
        other = torch.arange(len(everyone), device=student.device)
        distance = (own.unsqueeze(1) - other).abs()
        same_volume = own.unsqueeze(1) // slices == other // slices
        excluded = same_volume & (distance > 0) & (distance <= gap)
        similarity = similarity.masked_fill(excluded, float("-inf"))
        # The sum over an empty batch has a gradient; its mean would be NaN.
        total = F.cross_entropy(similarity, own, reduction="sum")
        return global_mean(total, torch.tensor(len(student), device=student.device))


def diagonal_contrast(labeled: Tensor, unlabeled: Tensor, *, temperature: float = 0.07) -> Tensor:
    """InfoNCE of whole logit maps; the positive of labeled image b is unlabeled image b. This rank's samples only.

    Args:
        labeled: `(B, C, *S)` logits; receives the gradient.
        unlabeled: `(B, C, *S)` logits; detached here.
        temperature: Temperature T.

    Raises:
        ValueError: If shapes disagree.
    """
    check_same_shape("diagonal_contrast", labeled=labeled, unlabeled=unlabeled)
    with torch.autocast(labeled.device.type, enabled=False):
        dtype = torch.promote_types(labeled.dtype, torch.float32)
        a, b = (F.normalize(z.to(dtype).flatten(1), dim=1) for z in (labeled, unlabeled.detach()))
        total = F.cross_entropy(a @ b.t() / temperature, torch.arange(len(a), device=a.device), reduction="sum")
        return global_mean(total, torch.tensor(len(a), device=a.device))


def distance_error(maps: Tensor, truth: Tensor, keep: Tensor) -> Tensor:
    """Mean squared error of signed distance maps. Samples with ignored voxels are left out: their boundary is unknown.

    Args:
        maps: `(B, K, *s)`, receives the gradient; brought to the size of the truth.
        truth: `(B, K, *S)`.
        keep: `(B, *S)` bool; where no sample is kept whole, the error is 0 with zero gradient.

    Raises:
        ValueError: If shapes disagree.
        TypeError: If `keep` is not boolean.
    """
    if maps.shape[:2] != truth.shape[:2] or maps.ndim != truth.ndim:
        raise ValueError(
            f"distance_error: maps and truth must have the same samples, channels and number of axes; "
            f"got {tuple(maps.shape)} and {tuple(truth.shape)}."
        )
    check_keep("distance_error", keep, truth)
    with torch.autocast(maps.device.type, enabled=False):
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        if maps.shape != truth.shape:
            maps = F.interpolate(maps, truth.shape[2:], mode="bilinear" if maps.ndim == 4 else "trilinear")
        annotated = keep.flatten(1).all(dim=1)
        errors = (maps - truth).square().flatten(1).sum(dim=1)
        return global_mean((errors * annotated).sum(), annotated.sum() * truth[0].numel())
