"""Build the students of a run: blueprints, taps, initial weights, and a test on one empty patch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import StudentOutput
from nnunet_collab.networks.blueprint import Blueprint, build_network, is_unet, unet_encoder_stage
from nnunet_collab.networks.group import StudentEnsemble, StudentGroup
from nnunet_collab.networks.primus_entry import is_primus, primus_taps
from nnunet_collab.networks.start_files import StartFile
from nnunet_collab.networks.student import Student
from nnunet_collab.training.settings import StudentSettings
from nnunet_collab.training.starting import Origin, load_start_weights


def build_ensemble(
    blueprints: dict[str, Blueprint], input_channels: int, num_outputs: int, *, regions: bool
) -> StudentEnsemble:
    """The students for prediction; the caller loads their weights."""
    students = [
        Student(name, build_network(blueprint, input_channels, num_outputs, deep_supervision=False), {})
        for name, blueprint in blueprints.items()
    ]
    for student in students:
        student.release()  # prediction needs no feature maps and no perturbation
    return StudentEnsemble(students, regions=regions)


def build_students(
    students: Sequence[StudentSettings],
    blueprints: dict[str, Blueprint],
    *,
    input_channels: int,
    num_outputs: int,
    patch_size: Sequence[int],
    deep_supervision: bool,
    device: torch.device,
    log: Callable[[str], None],
    levels: Collection[str] = ("encoder", "decoder"),
    given: Mapping[str, StartFile] | None = None,
    weights_from: Mapping[str, str] | None = None,
) -> StudentGroup:
    """The students for training, on `device`, tested on one empty patch.

    The feature maps of the given levels are tapped, and pooled to a common size. Their initial weights are loaded (see
    `training.starting`), unless `weights_from` is given: the record of a checkpoint, whose weights will be loaded.

    Parameters that the loss cannot reach (nnU-Net's head of lowest resolution, an unused branch of a foreign network)
    are frozen, so that every parameter that learns has a gradient in every step, as distributed training demands.

    Raises:
        CollabError: If a network cannot be built, a tap does not exist, weights cannot be loaded although they must, or
            a network cannot process the patch.
    """
    networks = {
        s.name: build_network(
            blueprints[s.name], input_channels, num_outputs, deep_supervision=deep_supervision and not s.frozen
        ).to(device)
        for s in students
    }
    shape = (1, input_channels, *patch_size)
    _refuse_ensembles_with_maps(students, levels)
    encoder_sizes = {
        s.name: _encoder_size(s, networks[s.name], shape)
        for s in students
        if "encoder" in levels and "encoder" in _fixed_taps(s, networks[s.name])
    }
    if weights_from is None:
        origins = load_start_weights(students, networks, given or {})
    else:
        origins = {s.name: Origin(weights_from.get(s.name, "a checkpoint")) for s in students}
    built = []
    for s in students:
        network = networks[s.name]
        taps = _fixed_taps(s, network)
        if "encoder" not in taps and is_unet(network):
            peers = [size for name, size in encoder_sizes.items() if name != s.name]
            strides = blueprints[s.name]["arch_kwargs"]["strides"]
            stage = unet_encoder_stage(strides, patch_size, peers[0]) if peers else len(strides) - 1
            taps["encoder"] = f"encoder.stages.{stage}"
        taps = {level: name for level, name in taps.items() if level in levels}
        for line in (*origins[s.name].lines, f"student {s.name}: {origins[s.name].text}"):
            log(line)
        student = Student(s.name, network, taps, frozen=bool(s.frozen), origin=origins[s.name].text)
        _try_out(student, torch.zeros(shape, device=device), num_outputs, log)
        built.append(student)
    _pool_to_coarser_grids(built, torch.zeros(shape, device=device))
    return StudentGroup(built)


def _pool_to_coarser_grids(students: Sequence[Student], image: torch.Tensor) -> None:
    """Give the students' maps one common size per level: the smaller one along each axis."""
    outputs = [_forward(student, image) for student in students]
    for level in sorted({level for student in students for level in student.taps}):
        maps = [getattr(output, level) for output in outputs]
        sizes = [tuple(feature.shape[2:]) for feature in maps if feature is not None]
        if len(set(sizes)) > 1:
            smallest = tuple(min(axis) for axis in zip(*sizes, strict=True))
            for student in students:
                if level in student.taps:
                    student.pool_tap(level, smallest)


def _fixed_taps(settings: StudentSettings, network: nn.Module) -> dict[str, str]:
    """Taps named by the settings or by the network; the encoder tap of a UNet depends on the other student."""
    taps = primus_taps(network) if is_primus(network) else dict(getattr(network, "taps", {}))
    if is_unet(network):
        taps["decoder"] = f"decoder.stages.{len(network.decoder.stages) - 1}"  # type: ignore[union-attr, arg-type]
    chosen = {"encoder": settings.encoder_tap, "decoder": settings.decoder_tap}
    return {**taps, **{level: name for level, name in chosen.items() if name}}


def _refuse_ensembles_with_maps(students: Sequence[StudentSettings], levels: Collection[str]) -> None:
    """Raise if feature maps are wanted of a teacher that is several networks: their mean has no meaning."""
    several = [s.name for s in students if len(s.teachers) > 1]
    if several and levels:
        raise CollabError(
            f"student {', '.join(several)}: setting 'frozen' must name one folder in this method, which compares "
            f"feature maps; an ensemble has none in common. Name one folder, or choose a method that compares "
            f"predictions alone."
        )


def _encoder_size(settings: StudentSettings, network: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    student = Student(settings.name, network, {"encoder": _fixed_taps(settings, network)["encoder"]})
    output = _forward(student, torch.zeros(shape, device=next(network.parameters()).device))
    student.release()
    return tuple(_checked_map(student, output, "encoder", len(shape)).shape[2:])


def _forward(student: Student, image: torch.Tensor) -> StudentOutput:
    try:
        return student.probe(image)
    except (RuntimeError, ValueError, AssertionError, IndexError, AttributeError) as error:
        raise CollabError(
            f"student {student.name!r}: its network must accept the patch of {list(image.shape[2:])} voxels with "
            f"{image.shape[1]} channels; error: {error}. Set patch_size to a size it accepts, or change the network."
        ) from error


def _try_out(student: Student, image: torch.Tensor, num_outputs: int, log: Callable[[str], None]) -> None:
    """Check shapes on one empty patch, and freeze the parameters that no loss reaches."""
    output = _forward(student, image)
    expected = (image.shape[0], num_outputs, *image.shape[2:])
    if not isinstance(output.logits, torch.Tensor) or tuple(output.logits.shape) != expected:
        raise CollabError(
            f"student {student.name!r}: its network must return logits of shape {expected}; got "
            f"{_described(output.logits)}. Choose a network that predicts at full resolution."
        )
    for level in student.taps:
        _checked_map(student, output, level, image.ndim)
    if student.frozen:
        return
    student.eval()
    trial = student(image)
    # All outputs with a weight in nnU-Net's deep supervision: every one but the lowest resolution.
    sum(logits.float().sum() for logits in (trial.logits, *trial.auxiliary[:-1])).backward()
    student.train()
    unused = [name for name, p in student.network.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in student.network.named_parameters():
        parameter.grad = None
        if name in unused:
            parameter.requires_grad_(False)
    if unused:
        log(f"student {student.name}: no loss reaches {len(unused)} parameters, which stay as they are: {unused}")


def _checked_map(student: Student, output: StudentOutput, level: str, axes: int) -> torch.Tensor:
    """The feature map of a level. A tapped layer may exist but not be called, or return something else."""
    feature: object = getattr(output, level)
    if not isinstance(feature, torch.Tensor) or feature.ndim != axes:
        raise CollabError(
            f"student {student.name!r}: the {level} tap {student.taps[level]!r} must give a map with {axes} axes "
            f"(B, D, *s); got {_described(feature)}. Tap another layer."
        )
    return feature


def _described(output: object) -> str:
    return str(tuple(output.shape)) if isinstance(output, torch.Tensor) else type(output).__name__
