r"""Class-aware feature-wise collaborative learning (CFCL) of CTRCL: align the class maps of two students' features.

Each student's features :math:`F` are turned into a map over the classes (category perception module, CPM):

.. math::
    p_l = \frac{1}{N_l} \sum_{n:\, l \in n}
          \frac{\sum_s F^n_s [Y^n_s = l]}{\sum_s [Y^n_s = l] + \epsilon}, \qquad
    R^n_{i,s} = \mathrm{softmax}_{i \in K^n}\bigl(-\alpha (1 - \cos(F^n_s, p_i))\bigr),

and the loss is the mean over the cells of :math:`KL` between the two students' :math:`R`, the peer's without gradient.
:math:`N_l` counts the samples of the batch that contain class :math:`l`; :math:`K^n` are the classes in sample n's
label, both at the resolution of the features.

Source: Wu et al., CTRCL, section III.C, equations 13-16; alpha = 20 as in PANet (Wang et al. 2019). Where the paper is
silent: features of unequal size are average-pooled to the coarser grid, labels are sampled nearest-exact (the cell's
center), cells of the ignore label are left out, and the gradient flows through the student's own prototypes.
In a distributed run the prototypes are those of the whole batch. All arithmetic is float32 (float64 for float64
features), because 20 * cos has an error of 0.03 in bfloat16. Units: nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_collab.core.checks import check_truth
from nnunet_collab.core.distributed import all_reduce_sum, global_mean
from nnunet_collab.core.pooling import average_pool
from nnunet_collab.core.types import Truth, region_truth
from nnunet_collab.losses.collaborative_kl import Order

ClassSet = Literal["sample", "batch"]

# Number of values in a slab of features, at least one sample. Few, so that no copy of a whole batch of wide maps is
# held; more on a GPU, where every operation has a launch cost.
SLAB_ELEMENTS, SLAB_ELEMENTS_CUDA = 2**20, 2**24


def class_aware_kl(
    student_features: Tensor,
    peer_features: Tensor,
    truth: Truth,
    *,
    num_classes: int,
    alpha: float = 20.0,
    order: Order = "target_first",
    classes: ClassSet = "sample",
    detach_prototypes: bool = False,
) -> Tensor:
    """CFCL for one student at one level (encoder or decoder); equation 16.

    Args:
        student_features: Features of the student, `(B, D, *s)`. Receives the gradient.
        peer_features: Features of the peer, `(B, D', *s')`; channels and size may differ. Detached here.
        truth: Truth at full resolution, `(B, *S)`.
        num_classes: Number of classes K, with the background.
        alpha: Factor of the cosine, > 0.
        order: Which map comes first in the Kullback-Leibler divergence.
        classes: Softmax over the classes of the `sample` (paper) or of the `batch`.
        detach_prototypes: If True, the gradient reaches the features at the cells only, not through the prototypes.

    Returns:
        Scalar; exactly 0 if no cell is kept, and 0 for samples that hold a single class.

    Raises:
        ValueError: If shapes disagree, `alpha <= 0`, or `order` or `classes` is unknown.
        TypeError: If `truth.keep` is not boolean.
    """
    check_features("class_aware_kl", student_features, peer_features, alpha, order, classes)
    check_spatial_axes("class_aware_kl", "labels", truth.labels, 1, student_features)
    check_truth("class_aware_kl", truth, student_features.shape[0])
    size = common_grid(student_features, peer_features)
    labels, keep = sample_centers(truth.labels, size), sample_centers(truth.keep, size)
    with torch.autocast(student_features.device.type, enabled=False):
        member = _membership(labels, keep, num_classes, student_features)
        student = average_pool(student_features, size).flatten(2)
        peer = average_pool(peer_features.detach(), size).flatten(2)
        present = member.sum(dim=2) > 0
        in_softmax = present if classes == "sample" else _anywhere(present).expand_as(present)
        log_r = _class_aware_log_map(student, member, in_softmax, alpha, detach_prototypes)
        with torch.no_grad():
            log_r_peer = _class_aware_log_map(peer, member, in_softmax, alpha, True)
        first, second = (log_r_peer, log_r) if order == "target_first" else (log_r, log_r_peer)
        divergence = (first.exp() * (first - second) * in_softmax.unsqueeze(2)).sum(dim=1)
        keep = keep.flatten(1)
        return global_mean((divergence * keep).sum(), keep.sum())


def region_class_aware_kl(
    student_features: Tensor,
    peer_features: Tensor,
    regions: Tensor,
    keep: Tensor,
    *,
    alpha: float = 20.0,
    order: Order = "target_first",
    classes: ClassSet = "sample",
    detach_prototypes: bool = False,
) -> Tensor:
    """CFCL for region-based training: each region is an independent two-class problem; mean over the regions.

    Args:
        student_features: Features of the student, `(B, D, *s)`. Receives the gradient.
        peer_features: Features of the peer, `(B, D', *s')`. Detached here.
        regions: One mask per region, `(B, R, *S)` bool.
        keep: Voxels that count, `(B, *S)` bool.
        alpha: Factor of the cosine, > 0.
        order: Which map comes first in the Kullback-Leibler divergence.
        classes: Softmax over the classes of the `sample` (paper) or of the `batch`.
        detach_prototypes: If True, the gradient does not flow through the prototypes.

    Returns:
        Scalar.

    Raises:
        ValueError: As in `class_aware_kl`, or if `regions` has no region.
        TypeError: If `keep` is not boolean.
    """
    if regions.ndim < 3 or regions.shape[1] < 1:
        raise ValueError(f"region_class_aware_kl: regions must be (B, R, *S) with R >= 1; got {tuple(regions.shape)}.")
    check_features("region_class_aware_kl", student_features, peer_features, alpha, order, classes)
    check_spatial_axes("region_class_aware_kl", "regions", regions, 2, student_features)
    whole = Truth(torch.zeros_like(regions[:, 0], dtype=torch.long), keep)
    check_truth("region_class_aware_kl", whole, student_features.shape[0])
    terms = [
        class_aware_kl(
            student_features,
            peer_features,
            region_truth(regions[:, r : r + 1], keep),
            num_classes=2,
            alpha=alpha,
            order=order,
            classes=classes,
            detach_prototypes=detach_prototypes,
        )
        for r in range(regions.shape[1])
    ]
    return torch.stack(terms).mean()


def common_grid(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """Spatial size of the coarser of two feature maps, axis by axis."""
    return tuple(min(m, n) for m, n in zip(a.shape[2:], b.shape[2:], strict=True))


def _class_aware_log_map(
    features: Tensor, member: Tensor, in_softmax: Tensor, alpha: float, detach_prototypes: bool
) -> Tensor:
    """Logarithm of R (equation 15), `(B, K, N)`; meaningless at classes outside `in_softmax`.

    Args:
        features: Features `(B, D, N)` of any floating dtype.
        member: `(B, K, N)` 1 where a kept cell has the class; in the arithmetic dtype, like the result.
        in_softmax: `(B, K)` bool, the classes that compete.
        alpha: Factor of the cosine.
        detach_prototypes: Whether the prototypes are constants.
    """
    products, norms, prototypes = _Comparison.apply(features, member, detach_prototypes)
    lengths = torch.linalg.vector_norm(prototypes, dim=1).clamp_min(1e-8)
    cosine = products / (norms.clamp_min(1e-8).unsqueeze(1) * lengths.view(1, -1, 1))
    # A finite fill: with -inf, a probability of 0 times a logarithm of -inf would be NaN. Without any class (nothing
    # kept) the map is uniform, and the caller's masks remove it.
    log_map: Tensor = (alpha * cosine).masked_fill(~in_softmax.unsqueeze(2), -1e9).log_softmax(dim=1)
    return log_map


class _Comparison(torch.autograd.Function):
    """Prototypes (equation 14), and the products and norms for their cosine with the features.

    The features are by far the largest tensors here: hundreds of channels, but few classes. With autograd's own
    operations they would be copied for the normalization, for float32 and once per use in the backward pass. Here they
    are read in slabs of a few samples, and the backward pass fills one gradient.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, member: Tensor, detach_prototypes: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Products `(B, K, N)` of features and prototypes, norms `(B, N)` of the features, prototypes `(K, D)`."""
        dtype = member.dtype
        count = member.sum(dim=2)
        samples = all_reduce_sum((count > 0).to(dtype).sum(dim=0)).clamp(min=1)
        # What one cell of sample b and class k contributes to prototype k.
        share = 1 / ((count + 1e-6) * samples)
        totals = torch.cat([m @ f.mT for _, f, m in _slabs(features, member)])
        prototypes = all_reduce_sum((totals * share.unsqueeze(2)).sum(dim=0))
        products = torch.cat([prototypes.expand(len(f), -1, -1) @ f for _, f, _ in _slabs(features, member)])
        norms = torch.cat([torch.linalg.vector_norm(f, dim=1) for _, f, _ in _slabs(features, member)])
        ctx.save_for_backward(features, member, share, prototypes, norms)
        ctx.detach_prototypes = detach_prototypes
        return products, norms, prototypes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient with respect to the features, through their cells and through the prototypes."""
        features, member, share, prototypes, norms = ctx.saved_tensors
        to_products, to_norms, to_prototypes = grads
        dtype = member.dtype
        if not ctx.detach_prototypes:
            for slab, f, _ in _slabs(features, member):
                to_prototypes = to_prototypes + (to_products[slab] @ f.mT).sum(dim=0)
            to_prototypes = all_reduce_sum(to_prototypes)
        along = to_norms / norms.clamp_min(torch.finfo(dtype).tiny)
        gradient = torch.empty_like(features)
        for slab, f, m in _slabs(features, member):
            part = torch.addcmul(prototypes.t().expand(len(f), -1, -1) @ to_products[slab], f, along[slab].unsqueeze(1))
            if not ctx.detach_prototypes:
                part.baddbmm_((to_prototypes * share[slab].unsqueeze(2)).mT, m)
            gradient[slab] = part
        return gradient, None, None


def _slabs(features: Tensor, member: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Iterate over slabs of samples: features `(b, D, N)` in the arithmetic dtype and membership `(b, K, N)`.

    Dropped cells read 0, because an inf or NaN there would survive a product with 0.
    """
    limit = SLAB_ELEMENTS_CUDA if features.is_cuda else SLAB_ELEMENTS
    step = max(1, limit // max(1, features[0].numel()))
    for start in range(0, len(features), step):
        slab = slice(start, start + step)
        m = member[slab]
        yield slab, features[slab].to(m.dtype).masked_fill(m.sum(dim=1, keepdim=True) == 0, 0), m


def _anywhere(present: Tensor) -> Tensor:
    """`(1, K)` bool: classes that occur in some sample of the batch, on any rank."""
    return all_reduce_sum(present.sum(dim=0, keepdim=True)) > 0


def _membership(labels: Tensor, keep: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """`(B, K, N)` in the arithmetic dtype: 1 where a kept cell has the class."""
    # Not one_hot, which on the CPU reads the smallest and the largest label first.
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    return ((labels.flatten(1).unsqueeze(1) == classes) & keep.flatten(1).unsqueeze(1)).to(
        torch.promote_types(like.dtype, torch.float32)
    )


def sample_centers(voxels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Nearest-exact sampling of `(B, *S)` to `(B, *size)`, for dtypes that `interpolate` does not take."""
    for axis, (old, new) in enumerate(zip(voxels.shape[1:], size, strict=True), start=1):
        if old % new == 0:
            step = old // new
            voxels = voxels[(slice(None),) * axis + (slice(step // 2, None, step),)]
        else:
            index = ((torch.arange(new, device=voxels.device) * 2 + 1) * old).div(2 * new, rounding_mode="floor")
            voxels = voxels.index_select(axis, index)
    return voxels


def check_spatial_axes(caller: str, name: str, truth: Tensor, leading: int, features: Tensor) -> None:
    """Raise unless the truth, without its leading axes, has as many axes as a feature map.

    Raises:
        ValueError: If not; the message names both shapes.
    """
    if truth.ndim - leading != features.ndim - 2:
        raise ValueError(
            f"{caller}: {name} must have as many spatial axes as the features {tuple(features.shape)}; "
            f"got {tuple(truth.shape)}."
        )


def check_features(caller: str, student: Tensor, peer: Tensor, alpha: float, order: str, classes: str) -> None:
    """Raise unless two feature maps can be compared, and the options are known.

    Raises:
        ValueError: If not; the message says what is wrong.
    """
    if student.ndim != peer.ndim or student.shape[0] != peer.shape[0] or student.ndim not in (4, 5):
        raise ValueError(
            f"{caller}: both features must be (B, D, *s) of the same batch and two or three spatial axes; "
            f"got student {tuple(student.shape)} and peer {tuple(peer.shape)}."
        )
    if alpha <= 0:
        raise ValueError(f"{caller}: alpha must be > 0; got {alpha}.")
    if order not in ("target_first", "student_first"):
        raise ValueError(f"{caller}: order must be 'target_first' or 'student_first'; got {order!r}.")
    if classes not in ("sample", "batch"):
        raise ValueError(f"{caller}: classes must be 'sample' or 'batch'; got {classes!r}.")
