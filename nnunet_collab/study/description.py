"""What a study file says: the data, the arms, and what all arms have in common. Unknown keys are refused.

Everything that can be judged without looking at the disk or at a trainer is judged here.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nnunet_collab.core.errors import CollabError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Set by the study, so that they are the same for all arms, or tell the runs apart.
OWN_SETTINGS = ("run_name", "seed", "epochs", "iterations_per_epoch", "validate_ensemble")

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    """A table of the file; every key is declared, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TestFolder(_Table):
    """Held-out cases. A relative path starts at the raw dataset's folder.

    Attributes:
        images: Folder like imagesTs.
        labels: Folder like labelsTs.
    """

    __test__ = False  # pytest takes every class of this name for a collection of tests

    images: Text = "imagesTs"
    labels: Text = "labelsTs"


class Slurm(_Table):
    """What `--slurm` needs to know.

    Attributes:
        options: Words of `sbatch`, e.g. `--gres=gpu:1`.
        setup: Lines of shell before the command, e.g. `source venv/bin/activate`.
        at_once: Most tasks of the array that run at the same time; None leaves that to the cluster.
    """

    options: list[Annotated[str, Field(pattern=r"^--?[A-Za-z][^\n]*$")]] = []
    setup: list[Annotated[str, Field(pattern=r"^[^\n]*$")]] = []
    at_once: Count | None = None


class Arm(_Table):
    """One method of the comparison.

    Attributes:
        name: Letters and digits that end in a letter: a run is called by it and the seed, `fixmatch0`.
        trainer: Name of the trainer.
        settings: Of the trainer; a key replaces the same key of the study's `settings`.
        seeds: Instead of the study's.
        steps: Instead of the study's; to be named in `differs`.
        differs: What this arm has another value of than the baseline, among `checks.COMPARED`.
        ensemble: Whether the mean of several published students is evaluated beside each of them.
        postprocessing: Instead of the study's.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]*[A-Za-z]$")]
    trainer: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    settings: dict[str, Any] = {}
    seeds: Seeds | None = None
    steps: Count | None = None
    differs: list[str] = []
    ensemble: bool = False
    postprocessing: bool | None = None


class Description(_Table):
    """A study file.

    Attributes:
        name: Letters, digits, `_` and `-`; the study's folder is `study_<name>`.
        dataset: nnU-Net's id, or the full name.
        configuration: E.g. `2d`.
        plans: Plans identifier.
        folds: Each is trained; the test cases are predicted with all folds of a run together.
        steps: Of every training.
        iterations_per_epoch: `steps` must be a multiple of it.
        seeds: Of every arm that names none.
        baseline: Name of the arm that the others are tested against.
        settings: Of all arms.
        test: Cases to predict and evaluate; None compares on the validation cases.
        postprocessing: Whether each model is also evaluated with nnU-Net's own postprocessing.
        slurm: For `--slurm`.
        arms: At least one.
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
        """Its own, or the study's."""
        return arm.steps if arm.steps is not None else self.steps

    def postprocesses(self, arm: Arm) -> bool:
        """Whether the arm has rows with postprocessing."""
        return self.postprocessing if arm.postprocessing is None else arm.postprocessing


def read_description(path: Path) -> Description:
    """Read and check a study file.

    Raises:
        CollabError: If it cannot be read, a key is unknown, missing or has the wrong type, or its values contradict
            each other. All problems of keys and types are told at once.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CollabError(f"{path}: a study must be a readable TOML file; {error}. Check the path.") from error
    except tomllib.TOMLDecodeError as error:
        raise CollabError(f"{path}: a study must be valid TOML; {error}. Mend that line.") from error
    try:
        description = Description.model_validate(content)
    except ValidationError as error:
        # Lists of which every member is at fault count as empty, too; that is said only of those that are.
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
        return f"{place}: unknown key. Valid are: {', '.join(_keys_beside(error['loc']))}."
    if error["type"] == "missing":
        return f"{place}: required, but not there. Add it."
    return f"{place}: {error['msg'].removeprefix('Value error, ')}; got {error['input']!r}. Correct it."


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    tables: dict[str, type[_Table]] = {"arms": Arm, "test": TestFolder, "slurm": Slurm}
    return list((tables[str(location[0])] if len(location) > 1 else Description).model_fields)


def _contradictions(study: Description) -> list[str]:
    """What the file says that cannot be, as sentences."""
    names = [arm.name for arm in study.arms]
    problems = [
        f"arms: each must have a name of its own; got {name!r} twice. Rename one."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    # nnU-Net's folders do not tell upper from lower case on every disk.
    alike = sorted({name for name in names if [other.casefold() for other in names].count(name.casefold()) > 1})
    if alike and not problems:
        problems.append(f"arms: names must differ in more than upper and lower case; got {', '.join(alike)}. Rename.")
    if study.baseline not in names:
        problems.append(f"baseline: must be one of the arms, {', '.join(names)}; got {study.baseline!r}. Correct it.")
    if "all" in study.folds and study.test is None:
        problems.append("folds: 'all' validates on the training cases, so there must be [test]; there is none. Add it.")
    problems += _settings_problems("settings", study.settings)
    for arm in study.arms:
        problems += _settings_problems(f"arm {arm.name!r}, settings", arm.settings)
        problems += _arm_problems(study, arm)
    return problems


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
            f"{where}: postprocessing is chosen on validation cases, so it can be judged on others alone: it needs "
            "[test], and folds that are numbers. Add them, or set postprocessing = false."
        )
    return problems


def _settings_problems(where: str, settings: dict[str, Any]) -> list[str]:
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        return [f"{where}: must be numbers, texts, lists and tables; {error}. Correct it."]
    own = [name for name in OWN_SETTINGS if name in settings]
    instead = "Write steps, iterations_per_epoch, seeds, ensemble and names of arms in the study instead."
    return [f"{where}: {', '.join(own)} is set by the study. {instead}"] if own else []


def plain(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
