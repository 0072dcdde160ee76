"""The runs of a study (one arm with one seed each), the models they publish, and all paths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nnunet_collab.core.settings import VARIABLE
from nnunet_collab.study.description import Arm, Description


class TrainerFacts(Protocol):
    """Facts about an arm's trainer with its settings; see `training.inspection.Inspected`."""

    @property
    def settings(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def published(self) -> list[str]: ...  # noqa: D102
    @property
    def labeled_batch_size(self) -> int: ...  # noqa: D102
    @property
    def patch_size(self) -> list[int]: ...  # noqa: D102
    @property
    def needs_unlabeled(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Places:
    """Absolute paths of everything a study reads and writes.

    Attributes:
        study: Folder of the study.
        dataset: Full name of the dataset.
        raw: Folder of the dataset in nnUNet_raw.
        preprocessed: Folder of the dataset in nnUNet_preprocessed.
        results: Folder of the dataset in nnUNet_results.
        images: Images of the test cases, or None.
        labels: Labels of the test cases, or None.
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
        """Folder with the segmentations and the table of every model."""
        return self.study / "predictions"

    @property
    def logs(self) -> Path:
        """Folder with the output of the commands, one file for each."""
        return self.study / "logs"


@dataclass(frozen=True)
class Training:
    """Trainings of all folds on one dataset, in nnU-Net's words.

    Attributes:
        results: nnUNet_results.
        dataset: Full name of the dataset.
        configuration: Name of the configuration.
        plans: Name of the plans.
        folds: The folds.
        trainer: Value of `-tr` of nnUNetv2_train.
        own: Trainer name under which nnU-Net stores the training.
        models: Trainer names of the models that it publishes; (`own`,) for nnU-Net's trainers.
        variables: Environment variables of the training.
    """

    results: Path
    dataset: str
    configuration: str
    plans: str
    folds: tuple[int | str, ...]
    trainer: str
    own: str
    models: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """`<Trainer>__<plans>__<configuration>` of the training or a model."""
        return self.results / self.dataset / f"{name}__{self.plans}__{self.configuration}"

    def fold(self, name: str, fold: int | str) -> Path:
        """Folder of a fold of the training or a model."""
        return self.folder(name) / f"fold_{fold}"

    def files(self, name: str, file: str) -> list[Path]:
        """A file of every fold of the training or a model."""
        return [self.fold(name, fold) / file for fold in self.folds]


@dataclass(frozen=True)
class Model:
    """A model, which nnU-Net's commands find under a trainer's name.

    Attributes:
        name: `<Trainer>_<run>_<Student>`, or `<Trainer>_<run>` for the mean of the students.
        student: Name of the student; empty for the mean of the students.
    """

    name: str
    student: str


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        name: Arm and seed, such as `fixmatch0`; part of the names of nnU-Net's folders and of the logs.
        arm: Its arm.
        seed: Seed of the training.
        settings: Value of `nnUNet_collab_settings`.
        models: Models that are evaluated.
        recorded: All settings, as plans.json of a training records them.
        stored_as: Trainer name under which nnU-Net stores the training, if it is not arm and seed that name it; its
            settings then come from the environment.
    """

    name: str
    arm: Arm
    seed: int
    settings: Mapping[str, Any]
    models: tuple[Model, ...]
    recorded: Mapping[str, Any]
    stored_as: str = ""

    @property
    def trainer(self) -> str:
        """Trainer name under which nnU-Net stores the training itself."""
        return self.stored_as or f"{self.arm.trainer}_{self.name}"

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of its training."""
        return {} if self.stored_as else {VARIABLE: json.dumps(self.settings)}


def settings_of(study: Description, arm: Arm, seed: int) -> dict[str, Any]:
    """Value of `nnUNet_collab_settings` for a run: settings of the study, of the arm, and those that the study sets."""
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
        facts: Facts about the arm's trainer with the settings from `settings_of`.
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


def training_of(study: Description, places: Places, run: Run) -> Training:
    """The training of a run; of its round 0 if the arm has self_train."""
    return Training(
        results=places.results.parent,
        dataset=places.dataset,
        configuration=study.configuration,
        plans=study.plans,
        folds=tuple(study.folds),
        trainer=run.arm.trainer,
        own=run.trainer,
        models=tuple(model.name for model in run.models),
        variables=run.variables,
    )
