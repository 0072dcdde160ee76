"""Trainings of the demo for each method: small networks and short runs, a few minutes on two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# One optimizer for all networks.
_OPTIMIZER = {
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.01,
    "warmup": 0.05,
    "lr_per": "iteration",
    "grad_clip": 1.0,
}
_CNN = {"arch": {"features_per_stage": [16, 32, 64, 64, 64]}, **_OPTIMIZER}
_TRANSFORMER = {"network": "segformer_b0", **_OPTIMIZER}
_LENGTH = {"epochs": 18, "iterations_per_epoch": 25, "val_iterations_per_epoch": 5, "batch_size": 8}


@dataclass(frozen=True)
class Training:
    """One training of the demo.

    Attributes:
        trainer: Name of the trainer.
        students: Names of the students, which are published as `<trainer>_<student>`.
        settings: Settings of the trainer.
    """

    trainer: str
    students: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One choice of `--method`.

    Attributes:
        training: Training of the method.
        labeled: Number of cases with labels, one of them for validation if there are few.
        unlabeled: Number of cases without labels.
        baseline: Training on the labeled cases alone, or None.
    """

    training: Training
    labeled: int = 20
    unlabeled: int = 0
    baseline: Training | None = None


def _training(trainer: str, students: Mapping[str, Any], **settings: Any) -> Training:
    return Training(trainer, tuple(students), {**_LENGTH, "validate_ensemble": False, "students": students, **settings})


def _with_few_labels(trainer: str, students: Mapping[str, Any], **settings: Any) -> Method:
    batch = {"batch_size": 4}  # labeled samples; the method has as many unlabeled ones on top
    return Method(
        _training(trainer, students, **batch, **settings),
        labeled=2,  # with three training cases, the labels alone are enough on this phantom
        unlabeled=20,
        baseline=_training("SupervisedTrainer", {"CNN": _CNN}, **batch),
    )


_ONE = {"CNN": _CNN}
_PAIR = {"CNN": _CNN, "Transformer": _TRANSFORMER}
# A run of 450 iterations is short. So weights that rise over a published run of 30 000 iterations are larger and rise
# faster, and the decay is below the usual 0.99, with which the teacher would lag far behind. The values were chosen on
# other phantoms than those of the demo.
_SHORT_RAMP = {"ramp_up": 0.3}
_SHORT_TEACHER = {"ema_decay": 0.95, **_SHORT_RAMP}

METHODS: dict[str, Method] = {
    "ctrcl": Method(_training("CTRCLTrainer", _PAIR)),
    "cross_teaching": _with_few_labels("CrossTeachingTrainer", _PAIR),
    "cps": _with_few_labels("CPSTrainer", {"CNN1": _CNN, "CNN2": _CNN}, pseudo_weight=1.0, **_SHORT_RAMP),
    "mean_teacher": _with_few_labels("MeanTeacherTrainer", _ONE, consistency_weight=2.0, **_SHORT_TEACHER),
    "uamt": _with_few_labels("UAMTTrainer", _ONE, consistency_weight=2.0, **_SHORT_TEACHER),
    "fixmatch": _with_few_labels("FixMatchTrainer", _ONE, tau=0.8, **_SHORT_RAMP),
    "unimatch": _with_few_labels("UniMatchTrainer", _ONE, tau=0.8, **_SHORT_RAMP),
    "crossmatch": _with_few_labels("CrossMatchTrainer", _ONE, tau=0.8, **_SHORT_RAMP),
    "crln": _with_few_labels(
        "CRLNTrainer", _ONE, tau=0.8, rectify_from_iteration=100, contrast_weight=0.2, **_SHORT_RAMP
    ),
    "ldc": _with_few_labels("LDCTrainer", _ONE, **_SHORT_TEACHER),
    "cmaformer": Method(
        _training("CMAformerTrainer", {"CMAformer": {"arch": {"features": [8, 16, 32, 64, 64, 64]}, **_OPTIMIZER}})
    ),
}
