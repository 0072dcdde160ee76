"""A teacher whose weights are an exponential moving average of the students'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from nnunet_collab.core.types import StudentOutput
from nnunet_collab.networks.group import StudentGroup
from nnunet_collab.networks.perturbation import PerturbedPass


class EMATeacher:
    """Mean teacher (Tarvainen and Valpola 2017): averages of all weights, never trained itself.

    After update number t (from 1) the weights are `d * teacher + (1 - d) * student` with `d = min(1 - 1 / t, decay)`:
    the first update copies the student, so the random initial weights have no effect. Buffers (running statistics of
    batch normalization) are copied, not averaged. The teacher predicts in evaluation mode, without dropout.

    It is outside of the trained module, so optimizers, gradient clipping and DistributedDataParallel do not see it.
    It is equal on every rank, because the students are.

    Args:
        group: The students, with their initial weights.
        decay: Largest decay, in [0, 1).
    """

    def __init__(self, group: StudentGroup, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = AveragedModel(group, multi_avg_fn=self._average)
        self.average.requires_grad_(False).eval()
        for student in self.group:
            student.set_deep_supervision(False)

    @property
    def group(self) -> StudentGroup:
        """The averaged networks."""
        return cast(StudentGroup, self.average.module)

    def update(self, group: StudentGroup) -> None:
        """Update the averages. Call it after the optimizers took their step, and not after a skipped step."""
        self.updates += 1
        self.average.update_parameters(group)

    @torch.no_grad()
    def __call__(self, image: Tensor, perturbed_passes: Sequence[PerturbedPass] = ()) -> dict[str, StudentOutput]:
        """Every averaged student's output on `(B, C_in, *S)`, by name; for `perturbed_passes` see `Student.forward`."""
        outputs: dict[str, StudentOutput] = self.group(image, perturbed_passes)
        return outputs

    def state_dict(self) -> dict[str, Any]:
        """Averages and the number of updates."""
        return {"updates": self.updates, "weights": self.group.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.updates = state["updates"]
        self.average.n_averaged.fill_(self.updates)
        self.group.load_state_dict(state["weights"])

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], number: Tensor | int) -> None:
        # Not used in the first update, which copies.
        decay = min(1 - 1 / self.updates, self.decay)
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)
