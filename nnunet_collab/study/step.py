"""Steps: commands that belong together, and the check on disk whether they are done. Those of nnU-Net's own commands.

Only its results decide whether a step is done: they exist, are complete, and are not older than its inputs. Commands of
nnU-Net that write file by file write to a hidden folder, which is renamed when the command has ended. So a folder with
its final name is complete. nnU-Net's own `--continue_prediction` would keep a half-written file.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.nnunet_folders import case_images
from nnunet_collab.study.runs import Training

FINAL = "checkpoint_final.pth"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        words: Program and arguments.
        variables: Environment variables that it needs besides those of nnU-Net.
    """

    words: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """The command as a line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*variables, shlex.join(self.words)])


@dataclass(frozen=True)
class Step:
    """Commands that belong together. Unless the step is done, all of them run again.

    Attributes:
        name: Unique name within the run; also the name of the log.
        title: Title for the user.
        commands: Commands in order.
        is_done: Function that checks the disk.
        needs: Names of the steps on which it depends; if one of them must run, this one must run, too.
    """

    name: str
    title: str
    commands: tuple[Command, ...]
    is_done: Callable[[], bool]
    needs: tuple[str, ...] = ()


def pending(steps: Sequence[Step]) -> list[Step]:
    """The steps that must run, in order."""
    found: dict[str, Step] = {}
    for step in steps:
        if any(name in found for name in step.needs) or not step.is_done():
            found[step.name] = step
    return list(found.values())


def train_step(
    training: Training,
    fold: int | str,
    device: str,
    *,
    prefix: str = "",
    start: Path | None = None,
    needs: tuple[str, ...] = (),
) -> Step:
    """Training of one fold, with its validation.

    Args:
        training: The training.
        fold: The fold.
        device: Value of nnU-Net's `-device`.
        prefix: Start of the step's name.
        start: Checkpoint whose weights the training starts from; it does so until it has a checkpoint of its own.
        needs: Names of the steps on which it depends.
    """
    words = ("nnUNetv2_train", training.dataset, training.configuration, str(fold), "-tr", training.trainer)
    own = training.fold(training.own, fold)
    folders = [training.fold(model, fold) for model in training.models]

    def is_done() -> bool:
        checkpoints = [folder / FINAL for folder in (own, *folders)]
        summaries = [folder / "validation" / "summary.json" for folder in folders]
        return newer_than([*checkpoints, *summaries], [own / FINAL])() and all(map(_is_json, summaries))

    # With --c a training continues, or starts if there is none, or repeats an interrupted validation.
    begun = start is None or any(not _is_cut(path) for path in own.glob("checkpoint_*.pth"))
    first = ("--c",) if begun else ("-pretrained_weights", str(start))
    command = Command((*words, "-p", training.plans, *first, "-device", device), training.variables)
    # nnU-Net's own trainers write checkpoints in place: a kill at that moment leaves a part, which --c would load.
    damaged = [str(path) for path in sorted(own.glob("checkpoint_*.pth")) if _is_cut(path)]
    commands = (Command(("rm", "-f", *damaged)), command) if damaged else (command,)
    title = f"{prefix.replace('_', ' ').strip()}: training of fold {fold}" if prefix else f"training of fold {fold}"
    return Step(f"{prefix}train_fold_{fold}", title, commands, is_done, needs)


def predict_words(
    training: Training, model: str, folds: Iterable[int | str], images: Path, target: Path, device: str
) -> tuple[str, ...]:
    """Words of nnUNetv2_predict."""
    words = ("nnUNetv2_predict", "-d", training.dataset, "-c", training.configuration, "-p", training.plans)
    return (*words, "-tr", model, "-f", *map(str, folds), "-i", str(images), "-o", str(target), "-device", device)


def all_predicted(images: Path, target: Path, made_of: Sequence[Path]) -> Callable[[], bool]:
    """Whether every image has a segmentation in the folder that is not older than its inputs."""

    def is_done() -> bool:
        facts = json_object_or_empty(target / "dataset.json")
        ending = str(facts.get("file_ending", ""))
        cases = case_images(images, ending)
        complete = bool(ending and cases) and all((target / f"{case}{ending}").is_file() for case in cases)
        return complete and newer_than([target], made_of)()

    return is_done


def hidden(target: Path) -> Path:
    """The folder that commands fill before it is renamed to `target`."""
    return target.with_name(f".{target.name}.partial")


def into(target: Path, *commands: Command) -> tuple[Command, ...]:
    """Commands that fill `hidden(target)`, then rename it."""
    partial = str(hidden(target))
    remove = Command(("rm", "-rf", partial, str(target)))
    return (remove, Command(("mkdir", "-p", partial)), *commands, Command(("mv", partial, str(target))))


def newer_than(made: Iterable[Path], made_of: Iterable[Path]) -> Callable[[], bool]:
    """Whether all files exist, and none is older than its inputs."""
    results, sources = list(made), list(made_of)

    def is_done() -> bool:
        try:
            oldest = min(path.stat().st_mtime_ns for path in results)
            return all(path.stat().st_mtime_ns <= oldest for path in sources)
        except FileNotFoundError:
            return False

    return is_done


def _is_cut(path: Path) -> bool:
    """Whether the end of a checkpoint, a zip file, is missing."""
    try:
        with path.open("rb") as file:
            begins = file.read(2)
        return not begins or (begins == b"PK" and not zipfile.is_zipfile(path))
    except OSError:  # removed in this moment by a training that runs
        return False


def _is_json(path: Path) -> bool:
    """Whether nnU-Net, which writes the file in place, has written it completely."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
