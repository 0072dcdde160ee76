"""The constraints of LDC: their residuals, their share of the loss, and their multipliers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from nnunet_collab.core.distributed import all_reduce_sum, world_size
from nnunet_collab.losses.duality import (
    activate,
    augmented_lagrangian,
    class_fractions,
    logit_excess,
    mean_excess,
    size_band,
)
from nnunet_collab.methods.ldc.multipliers import Multipliers, RunningMean
from nnunet_collab.methods.ldc.settings import LDCSettings, Recipe

# Share of batches in which the truth violates a band, if mean sizes are normally distributed. On real label maps, whose
# sizes are skewed, it is up to 3 %, so the promise of at most 5 % holds.
LEVEL = 0.01
KNOWN_AFTER = 20  # number of batches with labeled crops at random places
TEACHERS_TOLERANCE = 0.1  # [I]


class Constraints:
    """Residuals of one batch, their augmented Lagrangian, and the ascent of the multipliers.

    Args:
        settings: Settings of the method.
        recipe: `settings.recipe(...)`.
        classes: Number of foreground classes or regions, the last channels of all predictions.
        first: Channel of the first one, 0 for regions and else 1.
        device: Device of the state.
    """

    def __init__(self, settings: LDCSettings, recipe: Recipe, classes: int, first: int, device: torch.device) -> None:
        self.settings, self.recipe, self.first = settings, recipe, first
        names = []
        if recipe.constraint == "size_bands":
            names = [f"size_{side}_{k + first}" for side in ("upper", "lower") for k in range(classes)]
        names += ["norm"] * (settings.norm_limit > 0) + ["logits"] * (settings.logit_limit > 0)
        self.multipliers = Multipliers(
            names,
            ["global_mean"] * (recipe.constraint == "global_mean"),
            rate=settings.dual_rate,
            largest=settings.multiplier_max,
            start=settings.multiplier_init,
            decay=settings.dual_decay,
            device=device,
        )
        self.sizes = RunningMean(classes, settings.size_decay, device)
        self.squared_sizes = RunningMean(classes, settings.size_decay, device)
        # Both bounds of all classes share the level (Bonferroni).
        self.deviations = NormalDist().inv_cdf(1 - LEVEL / (2 * max(1, classes)))
        self.residuals: Tensor | None = None  # residuals of the current step

    def measure_sizes(self, masks: Tensor, at_random: Tensor) -> None:
        """Update the running mean of the sizes from labeled crops at random places. Other crops are biased.

        Args:
            masks: Masks of fully annotated crops, `(B_l, K, *S)` bool.
            at_random: `(B_l,)` bool, False for crops that are centered on foreground.
        """
        fractions = masks.flatten(2).float().mean(dim=2) * at_random.unsqueeze(1)
        count = all_reduce_sum(at_random.sum().float())
        for mean, values in ((self.sizes, fractions), (self.squared_sizes, fractions.square())):
            mean.update(all_reduce_sum(values.sum(dim=0)) / count.clamp_min(1), count > 0)

    def half_widths(self, sizes: Tensor, samples: int) -> Tensor:
        """Half-widths of the bands, `(K,)`.

        Args:
            sizes: Sizes in the middle of the bands, `(K,)`.
            samples: Number of crops of all ranks whose mean size is compared.
        """
        if self.settings.tolerance is not None:
            return self.settings.tolerance * sizes
        if self.settings.size_source == "teacher":  # the teacher sees the same crops
            return TEACHERS_TOLERANCE * sizes
        spread = (self.squared_sizes.value - self.sizes.value.square()).clamp_min(0).sqrt()
        widths = self.deviations * spread / math.sqrt(samples)
        # Too few batches for an estimate of the spread: until then any prediction is inside of the bands.
        return torch.where(self.sizes.updates >= KNOWN_AFTER, widths, torch.ones_like(widths))

    def fractions(self, logits: Tensor) -> Tensor:
        """`(K,)` mean probability of the foreground of all ranks."""
        return class_fractions(activate(logits, self.recipe.activation))[self.first :]

    def value(
        self,
        logits: Tensor,
        *,
        sizes: Tensor,
        labeled: tuple[Tensor, Tensor, Tensor],
        weights: Iterable[Tensor],
        ramp: float = 1.0,
    ) -> Tensor:
        """The augmented Lagrangian of all constraints, scalar; 0 without any.

        Args:
            logits: Logits whose class sizes are constrained, `(B, C, *S)`.
            sizes: Wanted sizes, `(K,)`.
            labeled: Logits and truth `(B_l, C, *S)` of the labeled samples, and `keep` `(B_l, *S)`.
            weights: Weights of the student.
            ramp: Factor of the penalty rho at this iteration.
        """
        s, parts = self.settings, []
        with torch.autocast(logits.device.type, enabled=False):
            if self.recipe.constraint == "size_bands":
                fractions = self.fractions(logits)
                sizes = sizes.to(fractions)
                widths = self.half_widths(sizes, len(logits) * world_size())
                parts.append(size_band(fractions, sizes, widths.to(fractions)))
            if s.norm_limit > 0:
                parts.append(torch.stack([w.float().square().sum() for w in weights]).sum().view(1) - s.norm_limit)
            if s.logit_limit > 0:
                parts.append(logit_excess(logits, s.logit_limit).view(1))
            if self.recipe.constraint == "global_mean":
                own, truth, keep = labeled
                parts.append(mean_excess(activate(own, self.recipe.activation), truth, keep).view(1))
            residuals = torch.cat(parts) if parts else torch.zeros(0, device=logits.device)
            self.residuals = residuals.detach()
            m = self.multipliers
            return augmented_lagrangian(residuals, m.values, m.equality, rho=ramp * self.recipe.rho)

    def after_step(self) -> None:
        """Update the multipliers with the residuals of the step that was taken."""
        if self.residuals is not None:
            self.multipliers.step(self.residuals)

    def curves(self) -> dict[str, float]:
        """Values for the log: multipliers, distances from the KKT conditions, and the wanted sizes."""
        found = {f"multipliers/{name}": value for name, value in self.multipliers.as_plain().items()}
        found |= {f"distance from KKT/{name}": value for name, value in self.multipliers.kkt().items()}
        if self.recipe.constraint == "size_bands" and self.settings.size_source == "labeled":
            sizes = enumerate(self.sizes.value.tolist(), self.first)
            found |= {f"sizes asked for/class {number}": size for number, size in sizes}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Multipliers, running residuals, sizes and their spread."""
        return {
            "multipliers": self.multipliers.state_dict(),
            "sizes": self.sizes.state_dict(),
            "squared_sizes": self.squared_sizes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.multipliers.load_state_dict(state["multipliers"])
        self.sizes.load_state_dict(state["sizes"])
        self.squared_sizes.load_state_dict(state["squared_sizes"])
