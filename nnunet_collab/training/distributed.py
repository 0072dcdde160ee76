"""What nnU-Net takes for granted about distributed runs (one machine, CUDA, nccl), made general."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from nnunet_collab.networks.group import StudentGroup


def local_device(requested: torch.device, scaler: GradScaler | None) -> tuple[torch.device, GradScaler | None]:
    """The device of this process. nnU-Net uses the GPU whose number is the global rank of the process.

    Args:
        requested: Device that the trainer was asked to use; only its type matters.
        scaler: nnU-Net's gradient scaler; it is used on CUDA only.
    """
    if requested.type != "cuda":
        return requested, None
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", dist.get_rank() % torch.cuda.device_count()))), scaler


def wrap(group: StudentGroup, device: torch.device) -> nn.Module:
    """All students in one DistributedDataParallel; every parameter that learns is used in every step.

    Batch normalization is synchronized on CUDA. Torch cannot do so on the CPU: each process has its own statistics.
    """
    module: nn.Module = group
    if device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(group)  # type: ignore[no-untyped-call]
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)
