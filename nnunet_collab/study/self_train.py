"""One self-training with any trainer: the work of the command `nnunet_collab self_train`.

It is conducted like a study with a single run, without test cases and without a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_json
from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.pseudo_labels import MARK, pseudo_labeled
from nnunet_collab.core.settings import differences
from nnunet_collab.study.checks import claim_folder, find_places, read_plans
from nnunet_collab.study.conduct import Study, conduct_one
from nnunet_collab.study.description import Arm, Description
from nnunet_collab.study.rounds import Result, Rounds, rounds_of
from nnunet_collab.study.rounds_check import check_rounds, labels_alone, told
from nnunet_collab.study.runs import Model, Run
from nnunet_collab.study.self_training import SelfTraining
from nnunet_collab.study.step import FINAL

RECORD = "self_train.json"
_MAY_CHANGE = ("rounds", "min_gain", "finish")  # what is done already stays as it is


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        name: Name of the self-training; part of the names of datasets and folders.
        dataset: Id or full name of the dataset with true labels.
        configuration: Name of the configuration.
        plans: Name of the plans.
        folds: The folds.
        trainer: Value of `-tr` of nnUNetv2_train.
        options: Options of the rounds.
    """

    name: str
    dataset: str
    configuration: str
    plans: str
    folds: tuple[int | str, ...]
    trainer: str
    options: SelfTraining


@dataclass(frozen=True)
class Stored:
    """How nnU-Net stores a training.

    Attributes:
        own: Trainer name of its own folder.
        models: Trainer name of each of its models.
        needs_unlabeled: Whether it learns from unlabeled images.
    """

    own: str
    models: tuple[str, ...]
    needs_unlabeled: bool = False


@dataclass(frozen=True)
class SelfTrain:
    """A self-training that has been checked.

    Attributes:
        study: The study with a single run.
        rounds: Its rounds.
        record: What must not change when it continues.
    """

    study: Study
    rounds: Rounds
    record: dict[str, Any]

    def result(self) -> Result | None:
        """The model with which it ends; None while something is left to do."""
        return self.rounds.steps(self.study.device)[1]


def describe_study(request: Request) -> Description:
    """The study with one arm that a request amounts to.

    Raises:
        CollabError: If a name or the folds are not valid.
    """
    if "__" in request.name:
        raise CollabError(f"--name: must not have two underscores in a row; got {request.name!r}. Rename it.")
    try:
        arm = Arm(name="rounds", trainer=request.trainer, seeds=[0], self_train=request.options)
        return Description(
            name=request.name,
            dataset=request.dataset,
            configuration=request.configuration,
            plans=request.plans,
            folds=list(request.folds),
            steps=1,  # the trainer decides
            iterations_per_epoch=1,
            baseline=arm.name,
            arms=[arm],
        )
    except ValueError as error:
        raise CollabError(f"self_train: options must be valid; found: {error}. Correct them.") from error


def check_self_train(request: Request, folder: Path | None, device: str, stored: Any) -> SelfTrain:
    """Check everything that can be checked before a training; nothing is written.

    Args:
        request: What the user asks for.
        folder: Folder of predictions and logs; None: `self_train_<name>` in the current folder.
        device: Value of nnU-Net's `-device`.
        stored: Function (trainer, plans, configuration) -> `Stored`.

    Raises:
        CollabError: For the reasons of `find_places` and `check_rounds`; or if the folder belongs to another
            self-training.
    """
    described = describe_study(request)
    places = find_places(described, folder or Path(f"self_train_{request.name}"))
    names: Stored = stored(request.trainer, read_plans(described, places.preprocessed), request.configuration)
    if names.needs_unlabeled:
        raise CollabError(f"-tr: {labels_alone(request.trainer)}")
    models = tuple(Model(name, name.removeprefix(f"{names.own}_")) for name in names.models)
    run = Run(request.name, described.arms[0], 0, {}, models, {}, stored_as=names.own)
    rounds = rounds_of(described, places, run)
    check_rounds(rounds, "self_train")
    options = request.options.model_dump(mode="json", exclude=set(_MAY_CHANGE))
    record = {"trainer": request.trainer, "stored_as": names.own, **options}
    before = json_object_or_empty(places.study / RECORD)
    if before and (different := differences(record, before)):
        raise CollabError(
            f"{places.study}: a self-training continues with the options it began with; different: "
            f"{'; '.join(different)}. Use them again, or name another folder with -o and another --name."
        )
    return SelfTrain(Study(places.study / RECORD, described, places, [run], device), rounds, record)


def conduct_self_train(work: SelfTrain) -> int:
    """Do all steps that are not done yet, and print the result.

    Returns:
        Exit status: 0; 1 if a step failed; 143 or 130 if a signal ended it.
    """
    claim_folder(work.study.described, work.study.places.study)
    write_json(work.study.places.study / RECORD, work.record)
    print(*told(work.rounds), sep="\n", flush=True)
    status = conduct_one(work.study, work.rounds.name)
    if status == 0:
        print(f"\n{summary(work)}", end="")
    return status


def summary(work: SelfTrain) -> str:
    """A table of the rounds, where the result is, and how to predict with it."""
    result = work.result()
    lines = [*_aligned(_table(work.rounds, result)), *_warnings(work.rounds)]
    if result is None:
        return "\n".join([*lines, "Not finished: start the same command again to go on."]) + "\n"
    training, teacher = result.training, work.rounds.teacher
    what = f"round {result.number}" + (", trained further on the true labels alone" if result.finished else "")
    if result.number == 0:
        what = "round 0: no round of pseudo labels raised the validation Dice"
    folds = " ".join(map(str, training.folds))
    model = f"-d {int(training.dataset[7:10])} -c {training.configuration} -p {training.plans} -tr {teacher} -f {folds}"
    lines += [
        f"result   {training.folder(teacher)} ({what})",
        f"predict  nnUNetv2_predict -i INPUT -o OUTPUT {model}",
    ]
    return "\n".join(lines) + "\n"


def _table(rounds: Rounds, result: Result | None) -> list[Sequence[str]]:
    """Head and one line per round that was begun: dataset, number of pseudo labels, validation Dice."""
    lines: list[Sequence[str]] = [("round", "dataset", "pseudo labels", "validation Dice", "")]
    for number, training in enumerate(rounds.trainings()):
        facts = json_object_or_empty(rounds.raw.with_name(training.dataset) / "dataset.json")
        count = len(pseudo_labeled(facts)) if MARK in facts else 0
        trained = all(path.is_file() for path in training.files(training.own, FINAL))
        if not (trained or count):
            continue
        title = str(number) if number <= rounds.options.rounds else "finish"
        dice = rounds.dice(training) if trained else None
        chosen = "result" if result is not None and result.training == training else ""
        lines.append((title, training.dataset, str(count or "-"), "-" if dice is None else f"{dice:.4f}", chosen))
    return lines


def _warnings(rounds: Rounds) -> list[str]:
    """A line for each round in which a class has no pseudo label, or agreement says nothing."""
    lines = []
    for number in range(1, rounds.options.rounds + 1):
        mark = json_object_or_empty(rounds.raw.with_name(rounds.dataset(number)) / "dataset.json").get(MARK, {})
        if absent := mark.get("absent_classes"):
            lines.append(
                f"Warning: no pseudo label of round {number} has {listed(absent)}; the unlabeled images teach nothing "
                "about it, and the network may forget it."
            )
        if mark.get("all_identical"):
            lines.append(
                f"Warning: the predictions that were compared in round {number} are identical, so their agreement says "
                "nothing about stability. The best checkpoint is perhaps the last one: compare folds, or train longer."
            )
    return lines


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
