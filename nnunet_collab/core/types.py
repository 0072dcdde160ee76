"""The tensors that students, losses and the trainer hand to each other.

Shapes: `B` samples, `C` classes or regions, `D` feature channels, `*S` two or three spatial axes of the patch,
`*s` those of a feature map.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StudentOutput(NamedTuple):
    """What a student hands over in one training forward.

    Attributes:
        logits: `(B, C, *S)` at full resolution.
        encoder: `(B, D_E, *s)` output of the encoder (F_E of CTRCL, equation 1), or None if not tapped.
        decoder: `(B, D_D, *s)` last feature map before the classifier (F_D), or None if not tapped.
        auxiliary: Deep-supervision logits of falling resolution, full resolution excluded; empty without them.
        maps: Further feature maps that a method taps, `(B, D_i, *s_i)` each, in the order it names them.
        teaching: `(B_t, C, *S)` logits, without gradient, of samples that only teach; `logits`, `decoder`, `auxiliary`
            are without these. None if there are none.
    """

    logits: Tensor
    encoder: Tensor | None
    decoder: Tensor | None
    auxiliary: tuple[Tensor, ...] = ()
    maps: tuple[Tensor, ...] = ()
    teaching: Tensor | None = None


class Truth(NamedTuple):
    """The truth of a batch at full resolution: exclusive classes, or overlapping regions.

    Attributes:
        labels: `(B, *S)` int64 in `[0, C)`; voxels of the ignore label hold 0, and so do all voxels where there are
            regions.
        keep: `(B, *S)` bool, False where the label is to be ignored.
        regions: `(B, R, *S)` bool, or None for exclusive classes.
    """

    labels: Tensor
    keep: Tensor
    regions: Tensor | None = None


def region_truth(regions: Tensor, keep: Tensor) -> Truth:
    """Overlapping regions as independent two-class problems: class 1 inside the region, class 0 outside.

    Args:
        regions: `(B, R, *S)` bool, one mask per region.
        keep: `(B, *S)` bool.

    Returns:
        Truth of `B * R` samples, in the order of `losses.collaborative_kl.as_two_classes`.
    """
    labels = (regions & keep.unsqueeze(1)).flatten(0, 1).long()
    return Truth(labels, keep.unsqueeze(1).expand_as(regions).flatten(0, 1))


class Term(NamedTuple):
    """One summand of the total loss.

    Attributes:
        student: Name of the one student that this term teaches.
        name: What it is, e.g. `supervised`; `student/name` is its key in logs.
        weight: Factor in the total.
        value: Scalar float32 tensor.
    """

    student: str
    name: str
    weight: float
    value: Tensor
