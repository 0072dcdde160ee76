"""The study file: the data, the arms, and the common values of all arms. Unknown keys are refused.

This module checks everything that can be checked without the disk and without a trainer.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nnunet_collab.core.errors import CollabError
from nnunet_collab.study.self_training import SelfTraining

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Set by the study, because they must be equal for all arms, or unique for each run.
OWN_SETTINGS = ("run_name", "seed", "epochs", "iterations_per_epoch", "validate_ensemble")

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    """A table of the file. Every key is declared, and values are not converted to another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TestFolder(_Table):
    """Held-out cases. Relative paths start at the raw dataset's folder.

    Attributes:
        images: Folder like imagesTs.
        labels: Folder like labelsTs.
    """

    __test__ = False  # pytest would collect a class of this name as tests

    images: Text = "imagesTs"
    labels: Text = "labelsTs"


class Slurm(_Table):
    """Options of `--slurm`.

    Attributes:
        options: Options of `sbatch`, e.g. `--gres=gpu:1`.
        setup: Lines of shell before the command, e.g. `source venv/bin/activate`.
        at_once: Largest number of tasks of the array that run at the same time; None: no limit.
    """

    options: list[Annotated[str, Field(pattern=r"^--?[A-Za-z][^\n]*$")]] = []
    setup: list[Annotated[str, Field(pattern=r"^[^\n]*$")]] = []
    at_once: Count | None = None


class Arm(_Table):
    """One method of the comparison.

    Attributes:
        name: Letters and digits, with a letter at the end: name and seed form the name of a run, such as `fixmatch0`.
        trainer: Name of the trainer.
        settings: Settings of the trainer; a key replaces the same key of the study's `settings`.
        seeds: Seeds instead of the study's.
        steps: Number of steps instead of the study's; name it in `differs`.
        differs: Properties in which this arm differs from the baseline, from `checks.COMPARED`.
        ensemble: Whether the mean of several published students is evaluated, besides each of them.
        postprocessing: Value instead of the study's.
        self_train: Rounds of pseudo labels after the training; the arm is the model that they end with.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]*[A-Za-z]$")]
    trainer: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    settings: dict[str, Any] = {}
    seeds: Seeds | None = None
    steps: Count | None = None
    differs: list[str] = []
    ensemble: bool = False
    postprocessing: bool | None = None
    self_train: SelfTraining | None = None


class Description(_Table):
    """A study file.

    Attributes:
        name: Letters, digits, `_` and `-`; the study's folder is `study_<name>`.
        dataset: Id or full name of the dataset in nnU-Net.
        configuration: Name of the configuration, e.g. `2d`.
        plans: Plans identifier.
        folds: Folds to train; the test cases are predicted with all folds of a run together.
        steps: Number of steps of every training.
        iterations_per_epoch: Iterations per epoch; `steps` must be a multiple of it.
        seeds: Seeds of every arm without its own.
        baseline: Name of the arm against which the others are tested.
        settings: Settings of all arms.
        test: Cases to predict and evaluate; None compares on the validation cases.
        postprocessing: Whether each model is also evaluated with nnU-Net's own postprocessing.
        slurm: Options of `--slurm`.
        arms: The arms, at least one.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    dataset: str
    configuration: Annotated[str, Field(pattern=r"^[A-Za-z0-9]\w*$")]
    plans: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]*$")] = "nnUNetPlans"
    folds: list[Any] = [0]
    steps: Count
    iterations_per_epoch: Count = 250
    seeds: Seeds = [0, 1, 2]
    baseline: str
    settings: dict[str, Any] = {}
    test: TestFolder | None = None
    postprocessing: bool = False
    slurm: Slurm = Slurm()
    arms: Annotated[list[Arm], Field(min_length=1)]

    @field_validator("dataset", mode="before")
    @classmethod
    def _id_or_name(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("folds")
    @classmethod
    def _numbers_or_all(cls, folds: list[Any]) -> list[Any]:
        numbers = all(type(fold) is int and fold >= 0 for fold in folds) and len(set(folds)) == len(folds)
        if folds != ["all"] and not (folds and numbers):
            raise ValueError("must be distinct numbers from 0, or ['all']")
        return folds

    def seeds_of(self, arm: Arm) -> list[int]:
        """Its own, or the study's."""
        return arm.seeds if arm.seeds is not None else self.seeds

    def steps_of(self, arm: Arm) -> int:
        """Of each of its trainings: its own, or the study's."""
        return arm.steps if arm.steps is not None else self.steps

    def first_id_of(self, arm: Arm, index: int) -> int:
        """Id of the first dataset of pseudo labels of an arm's seed, counted from 0; 0 without self_train."""
        return arm.self_train.to + index * arm.self_train.rounds if arm.self_train else 0

    def postprocesses(self, arm: Arm) -> bool:
        """Whether the arm has rows with postprocessing."""
        return self.postprocessing if arm.postprocessing is None else arm.postprocessing


def read_description(path: Path) -> Description:
    """Read and check a study file.

    Raises:
        CollabError: If it cannot be read, a key is unknown, missing or has the wrong type, or its values contradict
            each other. All problems of keys and types are reported together.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CollabError(f"{path}: a study must be a readable TOML file; {error}. Check the path.") from error
    except tomllib.TOMLDecodeError as error:
        raise CollabError(f"{path}: a study must be valid TOML; {error}. Fix that line.") from error
    try:
        description = Description.model_validate(content)
    except ValidationError as error:
        # A list in which every entry is wrong counts as empty, too. Report that only for lists that are empty.
        found = [one for one in error.errors() if one["type"] != "too_short" or not one["input"]]
        problems = "\n".join(f"- {_told(one)}" for one in found)
        raise CollabError(f"{path}: every key must be known and have its type; found:\n{problems}") from error
    for problem in _contradictions(description):
        raise CollabError(f"{path}: {problem}")
    return description


def _told(error: Any) -> str:
    """One problem in words: where it is, what was found, and what is valid."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key. Valid keys: {', '.join(_keys_beside(error['loc']))}."
    if error["type"] == "missing":
        return f"{place}: required, but missing. Add it."
    return f"{place}: {error['msg'].removeprefix('Value error, ')}; got {error['input']!r}. Correct it."


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    tables: dict[str, type[_Table]] = {"arms": Arm, "test": TestFolder, "slurm": Slurm}
    if "self_train" in location[:-1]:
        return list(SelfTraining.model_fields)
    return list((tables[str(location[0])] if len(location) > 1 else Description).model_fields)


def _contradictions(study: Description) -> list[str]:
    """Contradictions in the file, as sentences."""
    names = [arm.name for arm in study.arms]
    problems = [
        f"arms: names must be unique; got {name!r} twice. Rename one."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    # Some disks do not distinguish upper and lower case in nnU-Net's folders.
    alike = sorted({name for name in names if [other.casefold() for other in names].count(name.casefold()) > 1})
    if alike and not problems:
        problems.append(f"arms: names must differ in more than upper and lower case; got {', '.join(alike)}. Rename.")
    if study.baseline not in names:
        problems.append(f"baseline: must be one of the arms, {', '.join(names)}; got {study.baseline!r}. Correct it.")
    if "all" in study.folds and study.test is None:
        problems.append("folds: 'all' validates on the training cases, so [test] is required; it is missing. Add it.")
    problems += _settings_problems("settings", study.settings)
    for arm in study.arms:
        problems += _settings_problems(f"arm {arm.name!r}, settings", arm.settings)
        problems += _arm_problems(study, arm)
    return problems + _shared_ids(study)


def _arm_problems(study: Description, arm: Arm) -> list[str]:
    where, problems = f"arm {arm.name!r}", []
    seeds, steps = study.seeds_of(arm), study.steps_of(arm)
    if len(set(seeds)) < len(seeds):
        problems.append(f"{where}: seeds must be distinct; got {list(seeds)}. Remove one.")
    if steps % study.iterations_per_epoch:
        below = steps - steps % study.iterations_per_epoch
        nearest = " or ".join(str(n) for n in (below, below + study.iterations_per_epoch) if n)
        problems.append(
            f"{where}: steps must be a multiple of iterations_per_epoch, {study.iterations_per_epoch}; got {steps}. "
            f"Set {nearest}, or another iterations_per_epoch."
        )
    if study.postprocesses(arm) and (study.test is None or "all" in study.folds):
        problems.append(
            f"{where}: postprocessing is chosen on validation cases, so it must be evaluated on other cases: it needs "
            "[test], and folds that are numbers. Add them, or set postprocessing = false."
        )
    return problems


def _shared_ids(study: Description) -> list[str]:
    """Ids of datasets that two arms with self_train would write."""
    owner: dict[int, str] = {}
    for arm in study.arms:
        last = study.first_id_of(arm, len(study.seeds_of(arm))) if arm.self_train else 0
        for number in range(arm.self_train.to, last) if arm.self_train else ():
            if owner.setdefault(number, arm.name) != arm.name:
                return [
                    f"arms: every arm with self_train writes datasets of its own, one per round and seed; {arm.name!r} "
                    f"and {owner[number]!r} would both write {number}. Set another self_train.to."
                ]
    return []


def _settings_problems(where: str, settings: dict[str, Any]) -> list[str]:
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        return [f"{where}: must be numbers, texts, lists and tables; {error}. Correct it."]
    own = [name for name in OWN_SETTINGS if name in settings]
    instead = "Write steps, iterations_per_epoch, seeds, ensemble and names of arms in the study instead."
    return [f"{where}: {', '.join(own)} is set by the study. {instead}"] if own else []


def plain(text: str) -> str:
    """The text in a form that a file name may contain."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
