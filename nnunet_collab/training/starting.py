"""Initial weights of the students: random, from a checkpoint, from ImageNet, or those of frozen teachers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.ensemble import EnsembleNetwork
from nnunet_collab.networks.pretrained import PretrainedUnavailable, load_imagenet_weights
from nnunet_collab.networks.start_files import StartFile, read_start_file, weights_for
from nnunet_collab.networks.start_weights import start
from nnunet_collab.training.settings import StudentSettings

REQUIRE_PRETRAINED = "nnUNet_collab_require_pretrained"
RANDOM = "random initialization"


class Origin(NamedTuple):
    """Where a student's initial weights come from.

    Attributes:
        text: For the log, the checkpoint and the plans.
        lines: What else the log must say.
    """

    text: str
    lines: Sequence[str] = ()


def load_start_weights(
    students: Sequence[StudentSettings], networks: Mapping[str, nn.Module], given: Mapping[str, StartFile]
) -> dict[str, Origin]:
    """Load the initial weights of all students.

    Args:
        students: Their settings.
        networks: Their networks, by name; not wrapped.
        given: By student, the file of nnU-Net's `-pretrained_weights`; see `training.pretrained_flag`.

    Returns:
        The origin of each student's weights, by name.

    Raises:
        CollabError: If weights cannot be loaded although they must; the message lists all such students.
    """
    origins, faults = {}, []
    for s in students:
        try:
            origins[s.name] = _load(s, networks[s.name], given.get(s.name))
        except CollabError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise CollabError("\n".join(["the initial weights of several students cannot be loaded:", *map(str, faults)]))
    return origins


def _load(settings: StudentSettings, network: nn.Module, given: StartFile | None) -> Origin:
    if settings.teachers:
        _load_teachers(settings, network)
        return Origin(f"frozen, from {', '.join(settings.teachers)}")
    if settings.start_from:
        where = f"student {settings.name!r}, setting 'start_from'"
        try:
            file = read_start_file(Path(settings.start_from).expanduser())
        except CollabError as error:
            raise CollabError(f"{where}: {error}") from error
        return _start(where, settings.name, network, file)
    if given is not None:
        return _start(f"student {settings.name!r}, -pretrained_weights", settings.name, network, given)
    if isinstance(settings.pretrained, str):
        return Origin(load_imagenet_weights(network, Path(settings.pretrained).expanduser()))
    return _load_imagenet(settings.name, network) if settings.pretrained else Origin(RANDOM)


def _start(where: str, student: str, network: nn.Module, file: StartFile) -> Origin:
    try:
        weights = weights_for(file, student, network)
    except CollabError as error:
        raise CollabError(f"{where}: {error}") from error
    fit = start(f"{where}: {file.path} ({file.kind})", network, weights)
    text = f"started from {file.path} ({file.kind}; SHA-256 {file.digest}...): {fit.summary()}"
    return Origin(text, [f"student {student}: not taken from {file.path.name}: {line}" for line in fit.left_out()])


def _load_imagenet(student: str, network: nn.Module) -> Origin:
    try:
        return Origin(load_imagenet_weights(network))
    except PretrainedUnavailable as error:
        if os.environ.get(REQUIRE_PRETRAINED, "").lower() in ("1", "true", "t"):
            raise
        warning = (
            f"WARNING: student {student} starts from RANDOM weights, not from ImageNet: {error} "
            f"(Set {REQUIRE_PRETRAINED}=1 to make this an error.)"
        )
        return Origin(RANDOM, [warning])


def _load_teachers(settings: StudentSettings, network: nn.Module) -> None:
    members = network.members if isinstance(network, EnsembleNetwork) else [network]
    faults = []
    for folder, member in zip(settings.teachers, members, strict=True):
        path = Path(folder)
        path = path / "checkpoint_final.pth" if path.is_dir() else path
        try:
            weights = checkpoints.read(path)["network_weights"]
            checkpoints.require_finite(f"checkpoint {path}", weights)
            member.load_state_dict(weights)
        except (CollabError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"loading {path} failed: {error}")
    if faults:
        raise CollabError(
            f"student {settings.name!r}: setting 'frozen' must name the fold folder of a model with the same "
            f"network; " + "\n".join(faults)
        )
