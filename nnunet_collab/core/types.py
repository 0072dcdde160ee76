"""The tensors that students, losses and the trainer exchange.

Shapes: `B` samples, `C` classes or regions, `D` feature channels, `*S` two or three spatial axes of the patch,
`*s` the spatial axes of a feature map.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StudentOutput(NamedTuple):
    """Output of a student in a forward pass of training.

    Attributes:
        logits: Logits at full resolution, `(B, C, *S)`.
        encoder: Output of the encoder (F_E of CTRCL, equation 1), `(B, D_E, *s)`, or None if it is not used.
        decoder: Last feature map before the classifier (F_D), `(B, D_D, *s)`, or None if it is not used.
        auxiliary: Deep-supervision logits from high to low resolution, without full resolution; empty without deep
            supervision.
        maps: Other feature maps that a method uses, `(B, D_i, *s_i)` each, in the order in which it names them.
        teaching: Logits without gradient of samples that only teach, `(B_t, C, *S)`; `logits`, `decoder` and
            `auxiliary` do not contain these samples. None if there are none.
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
        labels: Labels in `[0, C)`, `(B, *S)` int64; 0 at voxels of the ignore label, and 0 everywhere if there are
            regions.
        keep: Voxels to use, `(B, *S)` bool; False where the label is ignored.
        regions: Region masks, `(B, R, *S)` bool, or None for exclusive classes.
    """

    labels: Tensor
    keep: Tensor
    regions: Tensor | None = None


def region_truth(regions: Tensor, keep: Tensor) -> Truth:
    """Overlapping regions as independent two-class problems: class 1 inside the region, class 0 outside.

    Args:
        regions: One mask per region, `(B, R, *S)` bool.
        keep: Voxels to use, `(B, *S)` bool.

    Returns:
        Truth of `B * R` samples, in the order of `losses.collaborative_kl.as_two_classes`.
    """
    labels = (regions & keep.unsqueeze(1)).flatten(0, 1).long()
    return Truth(labels, keep.unsqueeze(1).expand_as(regions).flatten(0, 1))


class Term(NamedTuple):
    """One summand of the total loss.

    Attributes:
        student: Name of the student that this term trains.
        name: Name of the term, e.g. `supervised`; its key in logs is `student/name`.
        weight: Factor of the term in the total loss.
        value: Value of the term, scalar float32 tensor.
    """

    student: str
    name: str
    weight: float
    value: Tensor
