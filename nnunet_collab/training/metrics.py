"""Pseudo Dice on validation patches, per student, and the agreement between students."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_collab.core.types import Truth

Counts = npt.NDArray[np.float64]


def predicted_masks(logits: Tensor, truth: Truth) -> Tensor:
    """`(B, C, *S)` bool: predicted mask of each foreground class or region, without ignored voxels."""
    if truth.regions is not None:
        masks = logits > 0
    else:
        classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
        masks = logits.argmax(dim=1, keepdim=True) == classes
    return masks & truth.keep.unsqueeze(1)


def true_masks(truth: Truth, num_outputs: int) -> Tensor:
    """`(B, C, *S)` bool: true mask of each foreground class or region, without ignored voxels."""
    labels, keep = truth.labels, truth.keep
    if truth.regions is not None:
        return truth.regions & keep.unsqueeze(1)
    classes = torch.arange(1, num_outputs, device=labels.device).view(1, -1, *[1] * (labels.ndim - 1))
    return (labels.unsqueeze(1) == classes) & keep.unsqueeze(1)


def overlap_counts(predicted: Tensor, true: Tensor) -> Counts:
    """`(2, C)`: voxels in both masks, and voxels in one plus voxels in the other."""
    axes = [0, *range(2, true.ndim)]
    both = (predicted & true).sum(dim=axes)
    either = predicted.sum(dim=axes) + true.sum(dim=axes)
    return torch.stack([both, either]).cpu().numpy().astype(np.float64)


def dice(counts: Counts) -> Counts:
    """Dice per class from summed `overlap_counts`; NaN for a class that is neither present nor predicted."""
    both, either = counts
    ratio: Counts = np.divide(2 * both, either, out=np.full_like(both, np.nan), where=either > 0)
    return ratio


def agreement_counts(masks: Mapping[str, Tensor]) -> Counts:
    """`overlap_counts` of the predictions of the first two students: their Dice is their agreement."""
    first, second = list(masks.values())[:2]
    return overlap_counts(first, second)
