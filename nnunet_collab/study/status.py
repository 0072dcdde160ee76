"""Progress of a study, read from the files of nnU-Net and of this package, never from a separate record."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_collab.core.files import write_atomically
from nnunet_collab.study.description import Description
from nnunet_collab.study.execution import State
from nnunet_collab.study.rounds import rounds_of
from nnunet_collab.study.runs import Places, Run, Training, training_of
from nnunet_collab.study.step import FINAL, Step, pending
from nnunet_collab.study.steps import final_training

_MEAN = ("mean", "mean of classes")  # row of a table of `evaluate`
HEAD = ("run", "trainer", "steps", "state", "Dice")


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        run: The run.
        steps: Number of training steps done, over all folds.
        of: Total number of training steps.
        open: Steps that are not done yet.
        dice: Mean Dice of each of its models, 0 to 1; of test cases, or nnU-Net's of the validation cases of all folds.
    """

    run: Run
    steps: int
    of: int
    open: list[Step]
    dice: list[float]

    @property
    def state(self) -> str:
        """The state in one or two words."""
        if not self.open:
            return "done"
        if "train_fold" in self.open[0].name:
            return "training" if self.steps else "not begun"
        if self.open[0].name.startswith(("round", "finish")):
            return "pseudo labels"
        return "trained"


def progress_of(study: Description, places: Places, run: Run, steps: Sequence[Step]) -> Progress:
    """Read the progress from the disk."""
    each = study.steps_of(run.arm)
    trainings = [training_of(study, places, run)]
    if run.arm.self_train is not None:
        trainings = rounds_of(study, places, run).trainings()
    folds = [training.fold(training.own, fold) for training in trainings for fold in training.folds]
    made = sum(min(each, _steps_made(folder, study, each)) for folder in folds)
    final = final_training(study, places, run)
    dice = [value for model in run.models if (value := _dice(places, final, model.name)) is not None]
    return Progress(run, made, each * len(folds), pending(steps), dice)


def table(found: Sequence[Progress], state: State) -> str:
    """One line per run."""
    failed = {failure.run for failure in state.failures}
    lines = [HEAD]
    for one in found:
        name = one.run.name
        now = "FAILED" if name in failed else state.working.get(name, one.state)
        dice = " ".join(f"{value:.3f}" for value in one.dice) if not one.open else ""
        lines.append((name, one.run.arm.trainer, f"{one.steps}/{one.of}", now, dice))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(rows) + "\n"


def write_table(path: Path, text: str) -> None:
    """Write the table atomically."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _steps_made(fold: Path, study: Description, each: int) -> int:
    if (fold / FINAL).is_file():
        return each
    curves = _json(fold / "curves.json")
    return len(curves.get("epochs") or ()) * study.iterations_per_epoch


def _dice(places: Places, training: Training, model: str) -> float | None:
    if places.images is None:
        summaries = list(map(_json, training.files(model, "validation/summary.json")))
        values = [summary["foreground_mean"]["Dice"] for summary in summaries if "foreground_mean" in summary]
        return sum(values) / len(values) if values else None
    try:
        with open(places.predictions / f"{model}.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if (row["statistic"], row["class"]) == _MEAN]
        return float(rows[0]["dice"])
    except (OSError, KeyError, IndexError, ValueError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
