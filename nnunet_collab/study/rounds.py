"""Self-training in rounds: train, predict the unlabeled images, keep the stable predictions as labels, train again.

Round 0 is the training on true labels. Round `n` trains from scratch on a dataset of its own, which has the true labels
and the pseudo labels that the models of round `n - 1` gave. The rounds end when the validation Dice no longer gains.
The validation cases are those of round 0, and have true labels. Everything is read from the disk, so that an
interrupted self-training continues where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.nnunet_folders import UNLABELED
from nnunet_collab.core.pseudo_labels import MARK
from nnunet_collab.study.description import Description
from nnunet_collab.study.runs import Places, Run, Training, training_of
from nnunet_collab.study.self_training import SelfTraining
from nnunet_collab.study.step import (
    FINAL,
    Command,
    Step,
    all_predicted,
    hidden,
    into,
    newer_than,
    pending,
    predict_words,
    train_step,
)

PROCESSES = min(8, os.cpu_count() or 1)  # for preprocessing and comparing


@dataclass(frozen=True)
class Member:
    """Predictions of the unlabeled images.

    Attributes:
        name: Name of their folder.
        folds: Folds that predict together.
        checkpoint: Name of the checkpoint file.
    """

    name: str
    folds: tuple[int | str, ...]
    checkpoint: str


@dataclass(frozen=True)
class Result:
    """The model with which a self-training ends.

    Attributes:
        training: Its training.
        number: Its round; 0 is the training on the true labels alone.
        finished: Whether it was trained further on the true labels alone.
        dice: Mean Dice of its validation cases, 0 to 1; None if it is not known (yet).
    """

    training: Training
    number: int
    finished: bool
    dice: float | None


@dataclass(frozen=True)
class Rounds:
    """A self-training.

    Attributes:
        name: Letters, digits, `_` and `-`; part of the names of datasets and folders.
        first: Training of round 0.
        options: Options of the self-training.
        first_id: Id of the dataset of round 1.
        raw: Folder of the raw dataset with true labels.
        preprocessed: Folder of the same dataset, preprocessed.
        work: Folder of the predictions.
    """

    name: str
    first: Training
    options: SelfTraining
    first_id: int
    raw: Path
    preprocessed: Path
    work: Path

    @property
    def teacher(self) -> str:
        """Name of the model that makes the pseudo labels, and whose validation counts."""
        return self.first.models[-1]

    @property
    def validates(self) -> bool:
        """Whether there are validation cases that are not trained on; fold `all` has none."""
        return self.first.folds != ("all",)

    def dataset(self, number: int) -> str:
        """Full name of the dataset of a round."""
        if number == 0:
            return self.first.dataset
        return f"Dataset{self.first_id + number - 1:03d}_{self.first.dataset[11:]}_{self.name}_round{number}"

    def training(self, number: int) -> Training:
        """The training of a round."""
        return replace(self.first, dataset=self.dataset(number))

    def finishing(self) -> Training:
        """The last training, on the true labels alone. Its plans have another name, so that it has its own folders."""
        return replace(self.first, plans=f"{self.first.plans}_{self.name}_finish")

    def trainings(self) -> list[Training]:
        """The trainings that there may be."""
        last = [self.finishing()] if self.options.finish else []
        return [*(self.training(number) for number in range(self.options.rounds + 1)), *last]

    def predictions(self) -> list[Member]:
        """The predictions in each round: of the members, then those that become pseudo labels."""
        folds, checkpoints = self.first.folds, self.options.checkpoints
        if self.options.compares_folds(len(folds)):
            return [*(Member(f"fold_{fold}", (fold,), FINAL) for fold in folds), Member("ensemble", folds, FINAL)]
        return [Member(Path(name).stem, folds, name) for name in checkpoints]

    def dice(self, training: Training) -> float | None:
        """Mean over the folds of nnU-Net's Dice of the validation cases; None without a validation."""
        summaries = map(json_object_or_empty, training.files(self.teacher, "validation/summary.json"))
        values = [one.get("foreground_mean", {}).get("Dice") for one in summaries]
        known = [float(value) for value in values if isinstance(value, (int, float))]
        return sum(known) / len(known) if known and self.validates else None

    def steps(self, device: str, *, ahead: bool = False) -> tuple[list[Step], Result | None]:
        """The steps so far, and the result.

        Whether a round follows depends on the validation of the one before. So the steps end with the first round that
        is not trained, and there is no result then.

        Args:
            device: Value of nnU-Net's `-device`.
            ahead: Go on as if every round that is not trained will gain, for a list of all commands.
        """
        steps: list[Step] = []
        best = Result(self.first, 0, False, None)
        for number in range(self.options.rounds + 1):
            steps += self._round(number, device)
            training = self.training(number)
            if pending(steps):
                if not ahead:
                    return steps, None
                best = Result(training, number, False, None)
                continue
            dice = self.dice(training)
            if best.dice is not None and dice is not None and not dice > best.dice + self.options.min_gain:
                break
            best = Result(training, number, False, dice)
        if not self.options.finish or best.number == 0:
            return steps, best
        steps += self._finish(best, device)
        if pending(steps) and not ahead:
            return steps, None
        dice = None if pending(steps) else self.dice(self.finishing())
        worse = best.dice is not None and dice is not None and dice < best.dice
        return steps, best if worse else Result(self.finishing(), best.number, True, dice)

    def _round(self, number: int, device: str) -> list[Step]:
        steps = [] if number == 0 else [*self._predict(number, device), self._label(number), self._preprocess(number)]
        needs = (steps[-1].name,) if steps else ()
        training = self.training(number)
        prefix = f"round_{number}_"
        return steps + [train_step(training, fold, device, prefix=prefix, needs=needs) for fold in training.folds]

    def _predict(self, number: int, device: str) -> list[Step]:
        """Predict the unlabeled images with the models of the round before."""
        teachers = self.training(number - 1)
        trained = tuple(f"round_{number - 1}_train_fold_{fold}" for fold in teachers.folds)
        images, steps = self.raw / UNLABELED, []
        for member in self.predictions():
            target = self._folder(number, member)
            words = predict_words(teachers, self.teacher, member.folds, images, hidden(target), device)
            chosen = () if member.checkpoint == FINAL else ("-chk", member.checkpoint)
            done = all_predicted(images, target, teachers.files(self.teacher, member.checkpoint))
            steps.append(
                Step(
                    f"round_{number}_predict_{member.name}",
                    f"round {number}: prediction of {UNLABELED} with {member.name}",
                    into(target, Command((*words, *chosen))),
                    _either(done, self._is_labeled(number)),  # afterwards they may be removed, to save space
                    trained,
                )
            )
        return steps

    def _label(self, number: int) -> Step:
        *members, ensemble = (self._folder(number, member) for member in self.predictions())
        share = self.options.share_of(number)
        kept = ("--threshold", str(self.options.threshold)) if share is None else ("--share", str(share))
        name = self.dataset(number)
        words = ("nnunet_collab", "pseudo_label", "-d", self.first.dataset, "-p", self.first.plans)
        target = ("--to", str(int(name[7:10])), "--name", name[11:], "--round", str(number), *kept)
        sources = ("--ensemble", str(ensemble), "--members", *map(str, members), "-np", str(PROCESSES))
        return Step(
            f"round_{number}_pseudo_labels",
            f"round {number}: pseudo labels, {name}",
            (Command((*words, *target, *sources)),),
            self._is_labeled(number),
            tuple(f"round_{number}_predict_{member.name}" for member in self.predictions()),
        )

    def _preprocess(self, number: int) -> Step:
        name = self.dataset(number)
        return Step(
            f"round_{number}_preprocess",
            f"round {number}: preprocessing of {name}",
            *self._preprocessed(name, self.first.plans, self.raw.with_name(name) / "dataset.json"),
            (f"round_{number}_pseudo_labels",),
        )

    def _finish(self, best: Result, device: str) -> list[Step]:
        """Train the best round's model further on the true labels alone."""
        last, own = self.finishing(), self.first
        move = ("nnUNetv2_move_plans_between_datasets", "-s", own.dataset, "-t", own.dataset)
        plans = Command((*move, "-sp", own.plans, "-tp", last.plans))
        before = tuple(f"round_{best.number}_train_fold_{fold}" for fold in own.folds)
        commands, done = self._preprocessed(own.dataset, last.plans, self.preprocessed / f"{own.plans}.json", plans)
        steps = [Step("finish_preprocess", "finish: preprocessing of the true labels", commands, done, before)]
        for fold in own.folds:
            start = best.training.fold(self.teacher, fold) / FINAL
            steps.append(
                train_step(last, fold, device, prefix="finish_", start=start, needs=("finish_preprocess", *before))
            )
        return steps

    def _preprocessed(
        self, dataset: str, plans: str, source: Path, *before: Command
    ) -> tuple[tuple[Command, ...], Callable[[], bool]]:
        """Commands that preprocess a dataset and then mark it as complete; and whether the mark is there."""
        configuration = self.first.configuration
        mark = str(self.preprocessed.with_name(dataset) / f"{plans}_{configuration}.complete")
        words = ("nnUNetv2_preprocess", "-d", str(int(dataset[7:10])), "-plans_name", plans, "-c", configuration)
        make = Command((*words, "-np", str(PROCESSES)))
        commands = (Command(("rm", "-f", mark)), *before, make, Command(("touch", mark)))
        return commands, newer_than([Path(mark)], [source])

    def _is_labeled(self, number: int) -> Callable[[], bool]:
        """Whether the dataset of a round is written as asked, after the training of its teachers."""
        file = self.raw.with_name(self.dataset(number)) / "dataset.json"
        wanted: dict[str, Any] = {
            "of": self.first.dataset,
            "round": number,
            "share": self.options.share_of(number),
            "threshold": self.options.threshold,
            "members": [member.name for member in self.predictions()[:-1]],
        }
        teachers = self.training(number - 1)
        newer = newer_than([file], teachers.files(self.teacher, self.predictions()[-1].checkpoint))

        def is_done() -> bool:
            mark = json_object_or_empty(file).get(MARK)
            return isinstance(mark, dict) and all(mark.get(key) == value for key, value in wanted.items()) and newer()

        return is_done

    def _folder(self, number: int, member: Member) -> Path:
        return self.work / f"round_{number}" / member.name


def rounds_of(study: Description, places: Places, run: Run) -> Rounds:
    """The self-training of a run whose arm has `self_train`."""
    options = run.arm.self_train
    if options is None:
        raise ValueError(f"rounds_of: the arm of {run.name} has no self_train")
    return Rounds(
        name=run.name,
        first=training_of(study, places, run),
        options=options,
        first_id=study.first_id_of(run.arm, study.seeds_of(run.arm).index(run.seed)),
        raw=places.raw,
        preprocessed=places.preprocessed,
        work=places.study / "self_training" / run.name,
    )


def _either(*checks: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: any(check() for check in checks)
