"""LDC's distance of a prediction from a target, according to the formulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from nnunet_collab.losses.duality import consistency_loss, paper_equation_2
from nnunet_collab.methods.ldc.settings import LDCSettings, Recipe


def objective(settings: LDCSettings, recipe: Recipe, class_weights: Tensor) -> Callable[..., Tensor]:
    """The consistency on unlabeled images; in the formulation `official` the loss on labeled ones.

    Args:
        settings: Settings of the method.
        recipe: The parts of the formulation.
        class_weights: `(K,)` weights of the foreground classes or regions.

    Returns:
        Function of logits `(B, C, *S)`, target `(B, C, *S)`, keep `(B, *S)` bool, and as keyword `used`, see
        `losses.duality`.
    """
    if settings.formulation == "paper_eq2":
        return partial(
            paper_equation_2,
            activation=recipe.activation,
            class_weights=class_weights,
            cross_entropy=settings.cross_entropy,
        )
    return partial(
        consistency_loss,
        activation=recipe.activation,
        class_weights=class_weights,
        cross_entropy=settings.cross_entropy,
        dice=settings.dice,
        squared_error=settings.squared_error,
        mse_on=recipe.mse_on,
        dice_per_sample=settings.formulation == "official",
    )
