"""Settings of LDC: three formulations, and each of their parts separately.

A part whose setting is null is that of the formulation:

- `sound` (default): student (strong view) and averaged teacher (weak view) agree on unlabeled images, and the sizes of
  the classes stay in bands. The paper's idea in a form that can be minimized.
- `paper_eq2`: the same with equation 2 as printed in place of the consistency loss.
- `official`: the released code. The student learns from labeled images alone, with an equality of global means whose
  multiplier is reset after every epoch, and a contrast of unrelated images. The optimizer, data and schedule of the
  release are not included; the students' settings apply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from nnunet_collab.core.settings import refuse_unused, require, setting
from nnunet_collab.losses.duality import Activation
from nnunet_collab.training.ema_trainer import TeacherSettings
from nnunet_collab.training.settings import CNN, StudentSettings

Formulation = Literal["sound", "paper_eq2", "official"]
Constraint = Literal["none", "size_bands", "global_mean"]
Contrast = Literal["off", "slices", "official_diagonal"]
MSEOn = Literal["prob", "logit"]
Weight = Annotated[float, Field(ge=0)]

LIVER = 0.9989 * math.pi * 0.1  # the released code's weight of the liver's Dice; the rest is the tumor's


class Recipe(NamedTuple):
    """The parts in which the formulations differ; see `LDCSettings`."""

    activation: Activation
    mse_on: MSEOn
    constraint: Constraint
    rho: float
    reset_each_epoch: bool
    contrast: Contrast
    contrast_weight: float
    ramp_up: float
    two_class_weights: tuple[float, float]


SOUND = Recipe(
    activation="softmax",
    mse_on="prob",
    constraint="size_bands",
    rho=1.0,
    reset_each_epoch=False,
    contrast="slices",
    contrast_weight=0.2,
    ramp_up=1.0,
    two_class_weights=(0.5, 0.5),
)
RECIPES: Mapping[Formulation, Recipe] = {
    "sound": SOUND,
    "paper_eq2": SOUND._replace(two_class_weights=(0.314, 0.685)),
    "official": Recipe(
        activation="sigmoid",
        mse_on="logit",
        constraint="global_mean",
        rho=0.0,
        reset_each_epoch=True,
        contrast="official_diagonal",
        contrast_weight=1.0,
        ramp_up=0.0,
        two_class_weights=(LIVER, 1 - LIVER),
    ),
}
# Settings without effect in a formulation; changing one is a mistake.
IDLE: Mapping[Formulation, tuple[str, ...]] = {
    "paper_eq2": ("dice", "squared_error", "mse_on"),
    "official": (
        "consistency_weight", "hard_target", "threshold", "size_source", "size_decay", "distance_weight", "slice_gap",
    ),
}  # fmt: skip


class LDCSettings(TeacherSettings):
    """Values that the paper does not give are ours or those of related code."""

    students: tuple[StudentSettings, ...] = setting(
        (CNN,), source='the paper\'s network: {"CNN": {"network": "cmaformer"}}'
    )
    formulation: Formulation = setting(
        "sound", "Form of the method: sound, paper_eq2 (equation 2 as printed) or official (the released code)."
    )
    activation: Activation | None = setting(
        None, "Activation in consistency and constraints. Regions are always sigmoid. null: that of the formulation."
    )

    # The objective on unlabeled images, or, `official`, on labeled ones; see losses.duality.
    cross_entropy: float = setting(
        0.3, "alpha, weight of the cross-entropy; in the official formulation binary.", ge=0, source="released code"
    )
    dice: float = setting(0.5, "Weight of Dice.", ge=0, source="released code")
    squared_error: float = setting(0.2, "Weight of the squared error.", ge=0, source="released code")
    mse_on: MSEOn | None = setting(None, "Values that the squared error compares. null: those of the formulation.")
    class_weights: tuple[Weight, ...] = setting(
        (),
        "beta, one weight per foreground class. None: equal; for two classes the paper's in paper_eq2, the code's in "
        "official.",
    )
    consistency_weight: float = setting(
        0.2,
        "Weight of the consistency, relative to nnU-Net's whole loss.",
        ge=0,
        source="not in the paper; as in Mean Teacher",
    )
    hard_target: bool = setting(False, "Whether the teacher's most likely class replaces its distribution.")
    threshold: float = setting(0.0, "Lowest confidence of a voxel that is used.", ge=0, lt=1)
    ramp_up: float | None = setting(
        None,
        "Time after start over which the weights of consistency and contrast rise. 0: no ramp. null: as in the "
        "formulation.",
        unit="share of the run",
        ge=0,
        le=1,
    )

    # Constraints.
    constraint_weight: float = setting(
        1.0,
        "Weight of the constraints' augmented Lagrangian, relative to nnU-Net's whole loss. 0: no constraints.",
        ge=0,
        source="not in the paper",
    )
    constraint: Constraint | None = setting(None, "Quantity that is constrained. null: that of the formulation.")
    size_source: Literal["labeled", "teacher"] = setting(
        "labeled", "Source of the sizes of the classes: random labeled crops, or the teacher."
    )
    size_decay: float = setting(0.99, "Decay of the running mean of the labeled crops' sizes.", ge=0, lt=1)
    tolerance: float | None = setting(
        None,
        "Half-width of the bands. null: 0.1 if the teacher gives the sizes; if labels do, it follows from the "
        "spread of the sizes in labeled crops, so that the truth itself violates a band in at most 5 % of the batches.",
        unit="share of the size",
        ge=0,
        lt=1,
    )
    norm_limit: float = setting(0.0, "Largest squared norm of the student's weights. 0: no limit.", ge=0)
    logit_limit: float = setting(0.0, "Limit of the logits: mean max(0, |logit| - limit) <= 0. 0: no limit.", ge=0)
    dual_rate: float = setting(0.01, "Step size of the multipliers.", ge=0, source="released code")
    multiplier_init: float = setting(0.0, "Multipliers at the start. At most multiplier_max.", ge=0)
    multiplier_max: float = setting(100.0, "Largest multiplier.", gt=0, source="not in the paper")
    dual_decay: float = setting(
        0.9,
        "Decay of the running mean of the residuals that the multipliers follow.",
        ge=0,
        lt=1,
        source="not in the paper",
    )
    rho: float | None = setting(
        None, "Penalty of the augmented Lagrangian. 0: plain Lagrangian. null: that of the formulation.", ge=0
    )
    reset_each_epoch: bool | None = setting(
        None,
        "Whether multipliers are reset after every epoch, as in the released code. null: as in the formulation.",
    )

    # Boundaries.
    distance_weight: float = setting(
        0.2,
        "Weight of the signed distance maps' squared error on labeled images. 0: the maps are not learned.",
        ge=0,
        source="not in the paper",
    )
    contrast: Contrast | None = setting(None, "Contrast of boundaries. null: that of the formulation.")
    contrast_weight: float | None = setting(None, "Weight of the contrast. null: that of the formulation.", ge=0)
    temperature: float = setting(0.07, "Temperature of the contrast.", gt=0)
    slice_gap: int = setting(
        1,
        "Slices of one volume at most this far apart are not negatives of each other. 0: all slices are.",
        unit="slices",
        ge=0,
        lt=2**31,
    )

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        require(len(self.students) == 1, "students", "must be one", [s.name for s in self.students])
        largest = f"must be in [0, multiplier_max], which is {self.multiplier_max}"
        require(self.multiplier_init <= self.multiplier_max, "multiplier_init", largest, self.multiplier_init)
        require(
            self.formulation != "official" or self.contrast != "slices",
            "contrast",
            "must be 'official_diagonal' or 'off' in the official formulation, which has neither teacher nor maps",
            self.contrast,
        )

        refuse_unused(self, IDLE.get(self.formulation, ()), f"in the formulation {self.formulation!r}")
        if (self.constraint or RECIPES[self.formulation].constraint) == "global_mean":
            refuse_unused(self, ("size_source", "size_decay", "tolerance"), "with constraint 'global_mean'")

    def recipe(self, *, regions: bool) -> Recipe:
        """The parts of the formulation, with the changes of the settings.

        Args:
            regions: Whether the labels are overlapping regions.
        """
        recipe = RECIPES[self.formulation]
        chosen: dict[str, Any] = {
            name: getattr(self, name) for name in Recipe._fields if getattr(self, name, None) is not None
        }
        return recipe._replace(**{**chosen, **({"activation": "sigmoid"} if regions else {})})

    def dice_weights(self, classes: int) -> tuple[float, ...]:
        """Weight beta of each foreground class.

        Args:
            classes: Number of foreground classes or regions.

        Raises:
            CollabError: If the number of weights differs from it.
        """
        rule = f"must have one weight for each of the {classes} foreground classes or regions, or be null"
        require(len(self.class_weights) in (0, classes), "class_weights", rule, list(self.class_weights))
        if self.class_weights:
            return self.class_weights
        return RECIPES[self.formulation].two_class_weights if classes == 2 else (1 / classes,) * classes
