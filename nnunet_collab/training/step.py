"""Read the numbers of one training step from the device, once, and undo what a skipped step has changed.

Reading a number makes the host wait for the device. So a step reads once, after its backward pass: the values of the
terms for the log, and everything that decides whether the step is taken. Up to there only the running statistics of
batch normalization have changed, by the forward pass. They are restored if the step is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nnunet_collab.core.distributed import world_size
from nnunet_collab.core.types import Term

IMAGES = {
    "data": "keys",
    "views": "keys_unlabeled",
}  # image entries of a batch -> entries with the names of their cases


class RunningStatistics:
    """Copies of a network's buffers before it is trained on a batch.

    Args:
        network: The network. Only the statistics of modules in training mode change.
    """

    def __init__(self, network: nn.Module) -> None:
        modules = (module for module in network.modules() if module.training)
        self.buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
        self.before = [buffer.clone() for buffer in self.buffers]

    def finite(self, device: torch.device) -> Tensor:
        """Scalar bool: whether the buffers are finite now."""
        floating = [buffer for buffer in self.buffers if buffer.is_floating_point() and buffer.numel()]
        if not floating:
            return torch.ones((), dtype=torch.bool, device=device)
        return torch.stack(torch._foreach_norm(floating, float("inf"))).isfinite().all()

    def restore(self) -> None:
        """Restore the copies."""
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)


class Reading(NamedTuple):
    """The numbers of one step.

    Attributes:
        terms: Values of the loss terms.
        norms: Norm of each student's gradient, by name.
        scale: Factor of the gradient scaler; 1 without one.
        usable: Whether everything except the norms is finite, on every rank.
        culprits: What is not finite on this rank: `student/term`, images by the names of their cases, and so on.
    """

    terms: list[float]
    norms: dict[str, float]
    scale: float
    usable: bool
    culprits: list[str]


def read_step(
    batch: Mapping[str, Any],
    terms: Sequence[Term],
    norms: Mapping[str, Tensor],
    statistics: RunningStatistics,
    further: Mapping[str, Tensor],
    scale: Tensor,
) -> Reading:
    """Read all numbers of a step. Waits for the device once.

    Args:
        batch: The batch; its images `(B, C, *S)` are checked.
        terms: Terms of the loss.
        norms: Norms of the gradients, scalars by student.
        statistics: Copies of the statistics from before the forward pass.
        further: Other tensors that must be finite, by name.
        scale: Factor of the gradient scaler, a scalar on the device.
    """
    device = scale.device
    values = torch.stack([term.value.detach().float() for term in terms])
    images = {key: batch[key].to(device).flatten(1).isfinite().all(dim=1) for key in IMAGES if key in batch}
    others = {name: tensor.detach().isfinite().all() for name, tensor in further.items()}
    others["running statistics"] = statistics.finite(device)
    flags = torch.cat([values.isfinite(), *images.values(), torch.stack(list(others.values()))])
    usable = flags.all().float()
    if world_size() > 1:
        dist.all_reduce(usable, op=dist.ReduceOp.MIN)
    numbers = [values, *(norm.view(1) for norm in norms.values()), scale.view(1), usable.view(1), flags]
    read = iter(torch.cat([part.detach().float() for part in numbers]).tolist())
    return Reading(
        [next(read) for _ in terms],
        {name: next(read) for name in norms},
        next(read),
        bool(next(read)),
        [name for name, finite in zip(_names(batch, terms, images, others), read, strict=True) if not finite],
    )


def cases_of(batch: Mapping[str, Any]) -> list[str]:
    """Names of the cases of a batch, in its order, without repetition."""
    return list(dict.fromkeys(str(case) for key in IMAGES.values() for case in batch.get(key, ())))


def _names(
    batch: Mapping[str, Any], terms: Sequence[Term], images: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> list[str]:
    names = [f"{term.student}/{term.name}" for term in terms]
    for key, samples in images.items():
        cases = batch.get(IMAGES[key], [f"sample {number} of {key}" for number in range(len(samples))])
        names += [f"the image of {case}" for case in cases]
    return [*names, *others]
