"""Average pooling of feature maps to any coarser grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def average_pool(features: Tensor, size: tuple[int, ...]) -> Tensor:
    """Average-pool `(B, D, *s)` to `(B, D, *size)`, in float32 or higher. At equal size the input is returned."""
    if tuple(features.shape[2:]) == size:
        return features
    dtype = torch.promote_types(features.dtype, torch.float32)
    factors = [old // new for old, new in zip(features.shape[2:], size, strict=True)]
    if any(new * factor != old for old, new, factor in zip(features.shape[2:], size, factors, strict=True)):
        adaptive = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
        return adaptive(features.to(dtype), size)  # type: ignore[arg-type]
    if features.dtype == dtype and features.device.type == "cpu":
        return (F.avg_pool2d if len(size) == 2 else F.avg_pool3d)(features, factors)
    # The same result, but deterministic on CUDA and without a float32 copy of the whole map.
    for axis, factor in reversed(list(enumerate(factors, start=2))):
        features = features.unflatten(axis, (-1, factor))  # type: ignore[no-untyped-call]
    inner = tuple(range(3, 3 + 2 * len(size), 2))
    return features.mean(dim=inner, dtype=dtype)
