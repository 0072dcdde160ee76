"""nnU-Net's `-pretrained_weights`, which names a checkpoint for its single network, for the students of a run.

nnU-Net does not pass the argument to trainers, so it is read from the command line. The file is read here first,
without running its code, and loaded as `start_from` does. nnU-Net then loads it once more, into what `network` of the
trainer is at that moment; that is `nothing()`, since the names of one network are not those of a group of students.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.start_files import StartFile, read_start_file
from nnunet_collab.training.settings import TrainingSettings

FLAG = "-pretrained_weights"


def read_flag(arguments: Sequence[str], settings: TrainingSettings) -> dict[str, StartFile]:
    """The file to start from of each student that learns; empty without the argument, and with `--val`.

    Args:
        arguments: Those of nnUNetv2_train.
        settings: Of the trainer. One student takes the only network of the file, or that of its name; several students
            take those of their names.

    Raises:
        CollabError: If the argument is given with `--c`; if the file cannot be used; if no student fits; or if the
            weights of one have another source, too.
    """
    file = _value(arguments)
    if file is None or "--val" in arguments:
        return {}
    if "--c" in arguments:
        raise CollabError(
            f"{FLAG} and --c: cannot be used together: a continued training has the weights of its own checkpoint. "
            f"Leave one out."
        )
    if Path(file).is_dir():
        raise CollabError(
            f"{FLAG} {file}: must be a file, since nnU-Net reads it, too; it is a folder. Name its "
            f"checkpoint_final.pth, or set 'start_from' of the student to the folder."
        )
    try:
        found = read_start_file(Path(file))
    except CollabError as error:
        raise CollabError(f"{FLAG}: {error}") from error
    learners = [s for s in settings.students if not s.teachers]
    if len(learners) == 1:
        found.of(learners[0].name)
        taking = learners
    else:
        taking = [s for s in learners if s.name in found.students]
    if not taking:
        held = ", ".join(filter(None, found.students))
        raise CollabError(
            f"{FLAG} {file}: must hold weights for one of the students {', '.join(s.name for s in learners)}; it holds "
            f"{f'those of {held}' if held else 'a single network'}. Set 'start_from' of each student that shall start "
            f"from a file, and leave {FLAG} out."
        )
    twice = [f"{s.name}.{name}" for s in taking for name in ("start_from", "pretrained") if getattr(s, name)]
    if twice:
        raise CollabError(
            f"{FLAG}: the weights of a student must come from one source; also set: {', '.join(twice)}. Leave out one."
        )
    return {s.name: found for s in taking}


def nothing() -> nn.Module:
    """A network without weights, into which nnU-Net loads nothing."""
    return nn.Identity()


def _value(arguments: Sequence[str]) -> str | None:
    """The value of the argument, as argparse reads it: after a space or an equals sign; the last one counts."""
    value = None
    for index, word in enumerate(arguments):
        if word == FLAG and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif word.startswith(f"{FLAG}="):
            value = word.partition("=")[2]
    return value
