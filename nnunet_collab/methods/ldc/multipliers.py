"""Lagrange multipliers and running means: the state of constrained training.

Multipliers are not parameters: an optimizer would descend, but they must ascend. They are kept on the device, so that
no step waits for them; they are equal on all ranks, and they are part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_collab.core.distributed import all_reduce_sum, world_size


class RunningMean:
    """Mean of all values at first, then their exponential moving average.

    Value number t has the weight `1 - min(1 - 1 / t, decay)`, so the first value replaces the initial one. With
    `decay` 0 only the last value counts.

    Args:
        length: Length of the vectors that are averaged.
        decay: Decay in [0, 1), one number, or one per entry, `(length,)`.
        device: Device of the tensors.
    """

    def __init__(self, length: int, decay: float | Tensor, device: torch.device) -> None:
        self.decay = torch.as_tensor(decay, dtype=torch.float32, device=device)
        self.value = torch.zeros(length, dtype=torch.float32, device=device)
        self.updates = torch.zeros((), dtype=torch.float32, device=device)

    @torch.no_grad()
    def update(self, value: Tensor, valid: Tensor | bool = True) -> None:
        """Add a value `(length,)` if the scalar `valid` is True."""
        valid = torch.as_tensor(valid, device=self.value.device)
        updates = self.updates + valid
        decay = torch.minimum(1 - 1 / updates.clamp_min(1), self.decay)
        mean = decay * self.value + (1 - decay) * value.detach().to(self.value)
        self.value = torch.where(valid, mean, self.value)
        self.updates = updates

    def state_dict(self) -> dict[str, Tensor]:
        """Mean and number of values."""
        return {"value": self.value.clone(), "updates": self.updates.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.value = state["value"].to(self.value)
        self.updates = state["updates"].to(self.updates)


class Multipliers:
    """Projected dual ascent: multiplier <- clip(multiplier + rate * mean residual).

    Multipliers of inequalities stay in [0, largest] and follow the running mean of their residual; those of equalities
    stay in [-largest, largest] and follow the residual itself.

    Args:
        inequalities: Names of the constraints g <= 0.
        equalities: Names of the constraints h = 0; in all vectors they come after the inequalities.
        rate: Step size of the ascent.
        largest: Bound of all multipliers.
        start: Initial value of all multipliers.
        decay: Decay of the running means of the inequalities' residuals.
        device: Device of the tensors.
    """

    def __init__(
        self,
        inequalities: Sequence[str],
        equalities: Sequence[str],
        *,
        rate: float,
        largest: float,
        start: float,
        decay: float,
        device: torch.device,
    ) -> None:
        self.names = [*inequalities, *equalities]
        self.rate, self.largest, self.start = rate, largest, start
        of_kind = [False] * len(inequalities) + [True] * len(equalities)
        self.equality = torch.tensor(of_kind, dtype=torch.bool, device=device)
        decays = torch.where(self.equality, 0.0, torch.full_like(self.equality, decay, dtype=torch.float32))
        self.residuals = RunningMean(len(self.names), decays, device)
        self.values = torch.full((len(self.names),), start, dtype=torch.float32, device=device)

    def reset(self) -> None:
        """Reset, as the released code does in every epoch."""
        self.values = torch.full_like(self.values, self.start)

    @torch.no_grad()
    def step(self, residuals: Tensor) -> None:
        """One ascent step. Call it after the optimizers took their step, and not after a skipped step.

        Args:
            residuals: Residuals of that step, `(J,)`. All ranks use the mean, so that rounding cannot make them differ.
        """
        mean = all_reduce_sum(residuals.detach().to(self.values)) / world_size()
        self.residuals.update(mean)
        lowest = torch.where(self.equality, -self.largest, 0.0).to(self.values)
        ascended = self.values + self.rate * self.residuals.value
        self.values = torch.maximum(ascended, lowest).clamp_max(self.largest)

    def kkt(self) -> dict[str, float]:
        """Largest distance of the running residuals from each Karush-Kuhn-Tucker condition, over all constraints.

        `primal` max(0, g) or |h|, `dual` max(0, -multiplier) of inequalities, `slackness` |multiplier g| of
        inequalities. The projection keeps `dual` at 0. Without constraints all are 0.
        """
        g, free = self.residuals.value, self.equality
        violated = torch.where(free, g.abs(), g.clamp_min(0))
        negative = torch.where(free, 0.0, self.values.clamp_max(0).abs())  # abs: no -0.0 in the log
        slack = torch.where(free, 0.0, (self.values * g).abs())
        worst = [float(v.max()) if len(v) else 0.0 for v in (violated, negative, slack)]
        return dict(zip(("primal", "dual", "slackness"), worst, strict=True))

    def as_plain(self) -> dict[str, float]:
        """Every multiplier by the name of its constraint."""
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def state_dict(self) -> dict[str, object]:
        """Multipliers and running residuals."""
        return {"values": self.values.clone(), "residuals": self.residuals.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what `state_dict` returned."""
        self.values = state["values"].to(self.values)  # type: ignore[attr-defined]
        self.residuals.load_state_dict(state["residuals"])  # type: ignore[arg-type]
