"""Each student's own optimizer, schedule and gradient clipping, with one gradient scaler for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from nnunet_collab.core.schedules import poly_with_warmup
from nnunet_collab.networks.group import StudentGroup
from nnunet_collab.networks.student import Student
from nnunet_collab.training.settings import StudentSettings, TrainingSettings


class StudentOptimizers:
    """Steps every learning student after one common backward pass.

    Args:
        group: The students; frozen ones get no optimizer.
        settings: Settings of the training: students and length of the run.
        scaler: Gradient scaler of mixed precision, or None.
    """

    def __init__(self, group: StudentGroup, settings: TrainingSettings, scaler: GradScaler | None) -> None:
        self.settings = settings
        self.scaler = scaler
        self.students = {s.name: group[s.name] for s in settings.students if not s.frozen}
        self.optimizers = {s.name: _make_optimizer(s, self.students[s.name]) for s in settings.students if not s.frozen}

    def set_learning_rates(self, iteration: int) -> None:
        """Set every learning rate for this iteration of the whole run."""
        for name, rate in self.learning_rates(iteration).items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate

    def learning_rates(self, iteration: int) -> dict[str, float]:
        """Learning rate of each student at this iteration."""
        epochs, per_epoch = self.settings.epochs, self.settings.iterations_per_epoch
        rates = {}
        for student in self.settings.students:
            if student.name in self.optimizers:
                by_epoch = student.lr_per == "epoch"
                now, total = (iteration // per_epoch, epochs) if by_epoch else (iteration, epochs * per_epoch)
                factor = poly_with_warmup(now, total, warmup=round(student.warmup * total), power=student.poly_power)
                rates[student.name] = student.lr * factor
        return rates

    def zero_grad(self) -> None:
        """Reset the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """One backward pass of the total loss."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def clip(self) -> dict[str, Tensor]:
        """Unscale and clip each student's gradient, without waiting for the device.

        Returns:
            Norm of each student's gradient before clipping, on the device.
        """
        norms = {}
        for student in self.settings.students:
            if student.name not in self.optimizers:
                continue
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizers[student.name])
            parameters = [p for p in self.students[student.name].parameters() if p.grad is not None]
            limit = student.grad_clip if student.grad_clip > 0 else float("inf")
            norms[student.name] = torch.nn.utils.clip_grad_norm_(parameters, limit)
        return norms

    def scale(self, device: torch.device) -> Tensor:
        """The gradient scaler's factor, a scalar on the device; 1 without a scaler."""
        one = torch.ones((), device=device)
        return one if self.scaler is None else self.scaler.scale(one)

    def step(self, norms: Mapping[str, float]) -> list[str]:
        """Step each student whose gradient is finite.

        Args:
            norms: Norm of each student's gradient, from `clip`, read by the host.

        Returns:
            Names of the students that were not stepped.
        """
        left = [name for name in self.optimizers if not math.isfinite(norms[name])]
        for name, optimizer in self.optimizers.items():
            if name not in left:
                optimizer.step()  # not by the scaler: it would read again whether the gradient is finite
        if self.scaler is not None:
            self.scaler.update()
        return left

    def discard(self, scale: float) -> None:
        """Take no step, because the loss is not finite. The scaler's factor does not change: it is not the cause.

        Args:
            scale: Factor of the gradient scaler.
        """
        if self.scaler is not None:
            self.scaler.update(scale)

    def state_dict(self) -> dict[str, Any]:
        """State of every optimizer, by student."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])


def _make_optimizer(settings: StudentSettings, student: Student) -> torch.optim.Optimizer:
    parameters = [p for p in student.parameters() if p.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
        )
    beta1, beta2 = settings.betas
    return torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, betas=(beta1, beta2))
