"""The runs of a study, an arm with a seed each, the models they publish, and where all of it lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nnunet_collab.core.settings import VARIABLE
from nnunet_collab.study.description import Arm, Description


class TrainerFacts(Protocol):
    """What must be known of an arm's trainer with its settings; see `training.inspection.Inspected`."""

    @property
    def settings(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def published(self) -> list[str]: ...  # noqa: D102
    @property
    def labeled_batch_size(self) -> int: ...  # noqa: D102
    @property
    def patch_size(self) -> list[int]: ...  # noqa: D102


@dataclass(frozen=True)
class Places:
    """Absolute paths of everything a study reads and writes.

    Attributes:
        study: The study's folder.
        dataset: Full name of the dataset.
        raw: Its folder in nnUNet_raw; likewise the next two.
        preprocessed: As `raw`.
        results: As `raw`.
        images: Of the test cases, or None.
        labels: Likewise.
    """

    study: Path
    dataset: str
    raw: Path
    preprocessed: Path
    results: Path
    images: Path | None
    labels: Path | None

    @property
    def predictions(self) -> Path:
        """A folder of segmentations and a table for every model."""
        return self.study / "predictions"

    @property
    def logs(self) -> Path:
        """What the commands print, a file for each."""
        return self.study / "logs"


@dataclass(frozen=True)
class Model:
    """What nnU-Net's commands call by a trainer's name.

    Attributes:
        name: `<Trainer>_<run>_<Student>`, or `<Trainer>_<run>` for the mean of the students.
        student: Its student, or empty for their mean.
    """

    name: str
    student: str


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        name: Arm and seed, `fixmatch0`; nnU-Net's folders and the logs are called by it.
        arm: Its arm.
        seed: Of the training.
        settings: For `nnUNet_collab_settings`.
        models: That are evaluated.
        recorded: All settings, as plans.json of a training records them.
    """

    name: str
    arm: Arm
    seed: int
    settings: Mapping[str, Any]
    models: tuple[Model, ...]
    recorded: Mapping[str, Any]

    @property
    def trainer(self) -> str:
        """Under which nnU-Net keeps the training itself."""
        return f"{self.arm.trainer}_{self.name}"

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of its training."""
        return {VARIABLE: json.dumps(self.settings)}


def settings_of(study: Description, arm: Arm, seed: int) -> dict[str, Any]:
    """What `nnUNet_collab_settings` says for a run: the study's settings, the arm's, and what the study decides."""
    return {
        **study.settings,
        **arm.settings,
        "run_name": f"{arm.name}{seed}",
        "seed": seed,
        "epochs": study.steps_of(arm) // study.iterations_per_epoch,
        "iterations_per_epoch": study.iterations_per_epoch,
        "validate_ensemble": arm.ensemble,
    }


def make_run(study: Description, arm: Arm, seed: int, facts: TrainerFacts) -> Run:
    """The run of an arm with a seed.

    Args:
        study: Its study.
        arm: Its arm.
        seed: Its seed.
        facts: Of the arm's trainer with `settings_of` these.
    """
    settings = settings_of(study, arm, seed)
    name = settings["run_name"]
    trainer = f"{arm.trainer}_{name}"
    models = [Model(f"{trainer}_{student}", student) for student in facts.published]
    if arm.ensemble and len(models) > 1:
        models.append(Model(trainer, ""))
    return Run(name, arm, seed, settings, tuple(models), facts.settings)


def results_folder(places: Places, study: Description, trainer: str) -> Path:
    """`<Trainer>__<plans>__<configuration>` of a model or a training."""
    return places.results / f"{trainer}__{study.plans}__{study.configuration}"
