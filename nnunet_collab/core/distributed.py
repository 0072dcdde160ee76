"""Sums over all processes of a distributed run. In a single process they return their input.

DistributedDataParallel averages the gradients of the ranks' losses. A mean over the voxels of the *whole* batch is
therefore written, on each rank, as `world_size * local_sum / global_count`: its average over the ranks is the global
mean.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes in the training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among all processes of the training."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in the order of the ranks. A value may be any object that can be pickled."""
    if world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, value)
    return everyone


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # The loss of each rank depends on the summands of all ranks, so the gradients of all losses are added.
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Element-wise sum over all ranks, differentiable; the tensor itself in a single process."""
    if world_size() == 1:
        return tensor
    return _SumOverRanks.apply(tensor)  # type: ignore[no-any-return]


def global_mean(local_sum: Tensor, local_count: Tensor) -> Tensor:
    """Mean over the batch of all ranks; 0 if the total count is 0.

    Args:
        local_sum: Sum over the elements of this rank; it carries the gradient.
        local_count: Number of elements of this rank.

    Returns:
        The share of this rank. The average over the ranks, which DistributedDataParallel takes, is the global mean.
    """
    count = all_reduce_sum(local_count.detach().to(local_sum.dtype))
    return world_size() * local_sum / count.clamp(min=1)


def global_share(part: Tensor, whole: Tensor) -> Tensor:
    """Sum of `part` / sum of `whole` over all ranks, without gradient; 0 if the whole is 0.

    Args:
        part: Count of this rank, a scalar.
        whole: The same.
    """
    some, of = all_reduce_sum(torch.stack([part, whole]).detach().float()).unbind()
    return some / of.clamp(min=1)


def concatenate_over_ranks(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, differentiable, and the index of the first row of this rank.

    Args:
        tensor: `(n, *)`; n may differ between ranks.
    """
    if world_size() == 1:
        return tensor, 0
    rank = dist.get_rank()
    counts = torch.zeros(world_size(), device=tensor.device)
    counts[rank] = len(tensor)
    rows = [int(n) for n in all_reduce_sum(counts)]
    first = sum(rows[:rank])
    before, after = (tensor.new_zeros(n, *tensor.shape[1:]) for n in (first, sum(rows[rank + 1 :])))
    # The rows of all other ranks are 0, so the sum is the concatenation.
    return all_reduce_sum(torch.cat([before, tensor, after])), first
