"""Shape checks shared by losses and networks.

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
    if tuple(keep.shape) != expected:
        raise ValueError(f"{caller}: keep has one value per voxel, so {expected}; got {tuple(keep.shape)}.")
    if keep.dtype is not torch.bool:
        raise TypeError(f"{caller}: keep must be torch.bool (True = use the voxel); got {keep.dtype}.")
    if labels.dtype is not torch.int64:
        raise TypeError(f"{caller}: labels must be torch.int64; got {labels.dtype}. Convert with labels.long().")
