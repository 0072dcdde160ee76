"""Build the students of a run: blueprints, taps, initial weights, and a test on one empty patch."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import StudentOutput
from nnunet_collab.networks.blueprint import Blueprint, build_network, is_unet, unet_encoder_stage
from nnunet_collab.networks.group import StudentEnsemble, StudentGroup
from nnunet_collab.networks.pretrained import PretrainedUnavailable, load_imagenet_weights
from nnunet_collab.networks.student import Student
from nnunet_collab.training.settings import StudentSettings

REQUIRE_PRETRAINED = "nnUNet_collab_require_pretrained"


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
) -> StudentGroup:
    """The students for training, on `device`, tested on one empty patch.

    The feature maps of the given levels are tapped, and pooled to a common size.

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
    encoder_sizes = {
        s.name: _encoder_size(s, networks[s.name], shape)
        for s in students
        if "encoder" in levels and "encoder" in _fixed_taps(s, networks[s.name])
    }
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
        origin = _load_start_weights(s, network, log)
        student = Student(s.name, network, taps, frozen=bool(s.frozen), origin=origin)
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
    taps = dict(getattr(network, "taps", {}))
    if is_unet(network):
        taps["decoder"] = f"decoder.stages.{len(network.decoder.stages) - 1}"  # type: ignore[union-attr, arg-type]
    chosen = {"encoder": settings.encoder_tap, "decoder": settings.decoder_tap}
    return {**taps, **{level: name for level, name in chosen.items() if name}}


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


def _load_start_weights(settings: StudentSettings, network: nn.Module, log: Callable[[str], None]) -> str:
    """Load the initial weights, and return where they come from."""
    origin = "random initialization"
    if settings.frozen:
        _load_published(settings, network)
        origin = f"frozen, from {settings.frozen}"
    elif settings.pretrained:
        try:
            origin = load_imagenet_weights(network)
        except PretrainedUnavailable as error:
            if os.environ.get(REQUIRE_PRETRAINED, "").lower() in ("1", "true", "t"):
                raise
            log(
                f"WARNING: student {settings.name} starts from RANDOM weights, not from ImageNet: {error} "
                f"(Set {REQUIRE_PRETRAINED}=1 to make this an error.)"
            )
    log(f"student {settings.name}: {origin}")
    return origin


def _load_published(settings: StudentSettings, network: nn.Module) -> None:
    path = Path(settings.frozen)
    path = path / "checkpoint_final.pth" if path.is_dir() else path
    try:
        weights = checkpoints.read(path)["network_weights"]
        checkpoints.require_finite(f"checkpoint {path}", weights)
        network.load_state_dict(weights)
    except (CollabError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CollabError(
            f"student {settings.name!r}: setting 'frozen' must name the fold folder of a model with the same "
            f"network; loading {path} failed: {error}"
        ) from error
