"""Checks of shapes and dtypes, shared by losses and networks.

Shapes and dtypes are checked on every call, which takes no measurable time. Values are not checked, because reading
them stalls the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_collab.core.types import Truth


def check_same_shape(caller: str, **tensors: Tensor) -> None:
    """Raise if the named tensors differ in shape.

    Raises:
        ValueError: If the shapes differ; the message names every argument and its shape.
    """
    if len({tuple(t.shape) for t in tensors.values()}) > 1:
        got = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"{caller}: shapes must be equal; got {got}.")


def check_truth(caller: str, truth: Truth, batch_size: int, spatial: tuple[int, ...] | None = None) -> None:
    """Raise unless `truth` holds one label and one boolean per voxel of the batch.

    Args:
        caller: Public name of the calling function; it starts the message.
        truth: The truth to check.
        batch_size: Expected number of samples.
        spatial: Expected spatial shape, or None if only labels and keep must agree.

    Raises:
        ValueError: If a shape differs.
        TypeError: If `keep` is not boolean or `labels` is not an integer tensor.
    """
    labels, keep = truth.labels, truth.keep
    expected = (batch_size, *(labels.shape[1:] if spatial is None else spatial))
    if tuple(labels.shape) != expected:
        raise ValueError(f"{caller}: labels have one value per voxel, so {expected}; got {tuple(labels.shape)}.")
    check_mask(caller, "keep", keep, expected)
    if labels.dtype is not torch.int64:
        raise TypeError(f"{caller}: labels must be torch.int64; got {labels.dtype}. Convert with labels.long().")


def check_mask(caller: str, name: str, mask: Tensor, expected: tuple[int, ...]) -> None:
    """Raise unless a mask of voxels is boolean and has the expected shape.

    Masks of integers are refused, because `~` and `&` mean something else for them, without an error.

    Args:
        caller: The caller's public name; it starts the message.
        name: The argument's name.
        mask: What to check.
        expected: Its shape.

    Raises:
        ValueError: If the shape differs.
        TypeError: If the mask is not boolean.
    """
    if tuple(mask.shape) != tuple(expected):
        raise ValueError(f"{caller}: {name} has one value per voxel, so {tuple(expected)}; got {tuple(mask.shape)}.")
    if mask.dtype is not torch.bool:
        raise TypeError(f"{caller}: {name} must be torch.bool (True = use the voxel); got {mask.dtype}.")


def check_keep(caller: str, keep: Tensor, logits: Tensor) -> None:
    """Raise unless `keep` holds one boolean per voxel of logits `(B, C, *S)`; see `check_mask`."""
    check_mask(caller, "keep", keep, (logits.shape[0], *logits.shape[2:]))
