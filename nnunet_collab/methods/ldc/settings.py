"""Settings of LDC: three formulations, and every part of them by itself.

Parts whose setting is None are those of the formulation:

- `sound` (default): student (strong view) and averaged teacher (weak view) agree on unlabeled images, the sizes of the
  classes stay in bands. The paper's idea in a form that can be minimized.
- `paper_eq2`: the same with equation 2 as printed in place of the consistency loss.
- `official`: the released code. Labeled images alone are learned from, with an equality of global means whose
  multiplier is forgotten after every epoch, and a contrast of unrelated images. Its optimizer, data and schedule are
  not part of it; the students' settings are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from nnunet_collab.core.settings import refuse_unused, require
from nnunet_collab.losses.duality import Activation
from nnunet_collab.training.ema_trainer import TeacherSettings
from nnunet_collab.training.settings import CNN, StudentSettings

Formulation = Literal["sound", "paper_eq2", "official"]
Constraint = Literal["none", "size_bands", "global_mean"]
Contrast = Literal["off", "slices", "official_diagonal"]
MSEOn = Literal["prob", "logit"]

LIVER = 0.9989 * math.pi * 0.1  # the released code's weight of the liver's Dice; the tumour's is the rest


class Recipe(NamedTuple):
    """The parts that formulations differ in; see `LDCSettings`."""

    activation: Activation
    mse_on: MSEOn
    constraint: Constraint
    rho: float
    reset_each_epoch: bool
    contrast: Contrast
    contrast_weight: float
    ramp_up: float
    two_class_weights: tuple[float, float]


SOUND = Recipe("softmax", "prob", "size_bands", 1.0, False, "slices", 0.2, 1.0, (0.5, 0.5))
RECIPES: Mapping[Formulation, Recipe] = {
    "sound": SOUND,
    "paper_eq2": SOUND._replace(two_class_weights=(0.314, 0.685)),
    "official": Recipe("sigmoid", "logit", "global_mean", 0.0, True, "official_diagonal", 1.0, 0.0, (LIVER, 1 - LIVER)),
}
# Settings that a formulation has no use for; a changed one would be a mistake.
IDLE: Mapping[Formulation, tuple[str, ...]] = {
    "paper_eq2": ("dice", "squared_error", "mse_on"),
    "official": (
        "consistency_weight", "hard_target", "threshold", "size_source", "size_decay", "distance_weight", "slice_gap",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LDCSettings(TeacherSettings):
    """[I]: the paper gives no value; what stands here is ours or that of related code."""

    students: tuple[StudentSettings, ...] = (CNN,)  # the paper's network: {"CNN": {"network": "cmaformer"}}
    formulation: Formulation = "sound"
    activation: Activation | None = None  # of consistency and constraints; regions are always sigmoid

    # The objective on unlabeled images, or, `official`, on labeled ones; see losses.duality.
    cross_entropy: float = 0.3  # alpha, released code; in the official formulation binary
    dice: float = 0.5
    squared_error: float = 0.2
    mse_on: MSEOn | None = None
    # beta of the foreground classes; none: equal; for two classes the paper's in `paper_eq2`, the code's in `official`
    class_weights: tuple[float, ...] = ()
    consistency_weight: float = 0.2  # [I] as in Mean Teacher, beside nnU-Net's whole loss
    hard_target: bool = False  # the teacher's likeliest class instead of its distribution
    threshold: float = 0.0  # confidence from which on a voxel is used
    ramp_up: float | None = None  # share of the run over which consistency and contrast gain weight; 0: no ramp

    # Constraints.
    constraint_weight: float = 1.0  # [I] of their augmented Lagrangian, beside nnU-Net's whole loss; 0: off
    constraint: Constraint | None = None
    size_source: Literal["labeled", "teacher"] = "labeled"  # of the sizes: random labeled crops, or the teacher
    size_decay: float = 0.99  # of the running mean of the labeled crops' sizes
    tolerance: float = 0.1  # half-width of the bands, as a share of the size
    norm_limit: float = 0.0  # largest squared norm of the student's weights; 0: none
    logit_limit: float = 0.0  # mean of max(0, |logit| - limit) <= 0; 0: none
    dual_rate: float = 0.01  # step of the multipliers, released code
    multiplier_init: float = 0.0
    multiplier_max: float = 100.0  # [I] bound of the multipliers
    dual_decay: float = 0.9  # [I] of the running mean of the residuals that the multipliers follow
    rho: float | None = None  # penalty of the augmented Lagrangian; 0: plain
    reset_each_epoch: bool | None = None  # the released code loses its multiplier after every epoch

    # Boundaries.
    distance_weight: float = 0.2  # [I] of the signed distance maps' squared error, labeled images; 0: not learned
    contrast: Contrast | None = None
    contrast_weight: float | None = None
    temperature: float = 0.07
    slice_gap: int = 1  # neighboring slices so near are no negatives; 0: all are

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        require(len(self.students) == 1, "students", "must be one", [s.name for s in self.students])
        for name in (
            "cross_entropy", "dice", "squared_error", "consistency_weight", "norm_limit", "logit_limit", "dual_rate",
            "rho", "distance_weight", "contrast_weight", "slice_gap", "constraint_weight",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value >= 0, name, "must be >= 0", value)
        for name in ("size_decay", "dual_decay", "threshold", "tolerance"):
            value = getattr(self, name)
            require(0 <= value < 1, name, "must be in [0, 1)", value)
        for name in ("temperature", "multiplier_max"):
            require(getattr(self, name) > 0, name, "must be > 0", getattr(self, name))
        largest = f"must be in [0, multiplier_max], which is {self.multiplier_max}"
        require(0 <= self.multiplier_init <= self.multiplier_max, "multiplier_init", largest, self.multiplier_init)
        share = "must be a share of the run, in [0, 1]"
        require(self.ramp_up is None or 0 <= self.ramp_up <= 1, "ramp_up", share, self.ramp_up)
        require(all(w >= 0 for w in self.class_weights), "class_weights", "must be >= 0", list(self.class_weights))
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
        """The parts of the formulation, changed as the settings say.

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
            classes: Their number, or that of the regions.

        Raises:
            CollabError: If there are weights for another number.
        """
        rule = f"must have one weight for each of the {classes} foreground classes or regions, or none at all"
        require(len(self.class_weights) in (0, classes), "class_weights", rule, list(self.class_weights))
        if self.class_weights:
            return self.class_weights
        return RECIPES[self.formulation].two_class_weights if classes == 2 else (1 / classes,) * classes
