"""Common parts of the benchmarks: a trainer for synthetic batches, without datasets, folders or logs."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nnunet_collab.methods.ctrcl import CTRCLSettings, CTRCLTrainer
from nnunet_collab.networks.blueprint import make_blueprint
from nnunet_collab.networks.teacher import EMATeacher
from nnunet_collab.training.compilation import compile_students
from nnunet_collab.training.ema_trainer import TeacherTrainer
from nnunet_collab.training.guard import NonFiniteGuard
from nnunet_collab.training.mixing import MixingTrainer
from nnunet_collab.training.optimization import StudentOptimizers
from nnunet_collab.training.pseudo_label_curves import PseudoLabelCurves
from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer
from nnunet_collab.training.semi_supervised_settings import SemiSupervisedSettings
from nnunet_collab.training.settings import CNN, TRANSFORMER, TrainingSettings
from nnunet_collab.training.students import build_students
from nnunet_collab.training.supervision import supervised_loss
from nnunet_collab.training.trainer import CollabTrainer

# `2d` and `3d`: like nnU-Net's plans for ACDC, the latter with 16 slices.
SCALES = {
    "2d": {"patch": (256, 224), "batch": 14, "features": [32, 64, 128, 256, 512, 512]},
    "3d": {"patch": (16, 256, 224), "batch": 2, "features": [32, 64, 128, 256, 320, 320]},
    "2d_batch4": {"patch": (256, 224), "batch": 4, "features": [32, 64, 128, 256, 512, 512]},
    "2d_batch2": {"patch": (256, 224), "batch": 2, "features": [32, 64, 128, 256, 512, 512]},
    "2d_small": {"patch": (160, 160), "batch": 8, "features": [16, 32, 64, 128, 128, 128]},
    "2d_tiny": {"patch": (128, 128), "batch": 8, "features": [16, 32, 64, 64, 64, 64]},
    "3d_tiny": {"patch": (32, 64, 64), "batch": 4, "features": [16, 32, 64, 64, 64, 64]},
    "3d_small": {"patch": (8, 96, 96), "batch": 2, "features": [16, 32, 64, 96, 96, 96]},
    # The network and the batch of SSL4MIS and of the published program of CrossMatch, half of it labeled.
    "2d_published_acdc": {"patch": (256, 256), "batch": 24, "features": [16, 32, 64, 128, 256]},
    # nnU-Net's networks for ACDC on a small patch: ratios of operations do not depend on its size.
    "2d_counted": {"patch": (64, 64), "batch": 4, "features": [32, 64, 128, 256, 512, 512]},
    "3d_counted": {"patch": (8, 32, 32), "batch": 2, "features": [32, 64, 128, 256, 320, 320]},
    "smoke": {"patch": (64, 64), "batch": 4, "features": [4, 8, 8, 8, 8, 8]},  # only to check that it runs
}
CLASSES = 4  # unless --classes says otherwise


class _Labels:
    """The part of nnU-Net's LabelManager that a step needs."""

    has_regions = False
    ignore_label = None

    def __init__(self, classes: int) -> None:
        self.num_segmentation_heads = classes


def arguments(description: str | None, short: str | None = None) -> argparse.Namespace:
    """Command line of every benchmark; `short` is the help of a flag `--short`, which only some have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", choices=SCALES, default="2d_small", help="small ones are for the CPU")
    parser.add_argument("--transformer", default="segformer_b0", help="network of the Transformer student")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=10, help="measured steps of each variant")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them, not measured")
    parser.add_argument("--compile", action="store_true", help="torch.compile, as nnU-Net does on CUDA")
    parser.add_argument("--classes", type=int, default=CLASSES, help="with the background")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    if short:
        parser.add_argument("--short", action="store_true", help=short)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return args


def hardware(device: str, threads: int) -> str:
    """One line for the head of a table."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {threads} threads"
    return f"{name}, torch {torch.__version__}"


def head(args: argparse.Namespace) -> str:
    """One line over a table: what ran, and on what."""
    what = f"{args.scale} {SCALES[args.scale]}, {args.classes} classes, {args.transformer}"
    return f"{hardware(args.device, args.threads)}; {what}"


def planned_architecture(scale: str) -> dict[str, Any]:
    """The `architecture` entry of nnU-Net's plans."""
    features = SCALES[scale]["features"]
    three = len(SCALES[scale]["patch"]) == 3
    dims = "3d" if three else "2d"
    flat, full = ([1, 2, 2], [2, 2, 2]) if three else ([2, 2], [2, 2])
    strides = [[1] * len(flat), flat, flat, full, flat, flat][: len(features)]
    kernels = [[1, 3, 3] if three and i < 2 else [3] * len(flat) for i in range(len(features))]
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": len(features),
            "features_per_stage": features,
            "conv_op": f"torch.nn.modules.conv.Conv{dims}",
            "kernel_sizes": kernels,
            "strides": strides,
            "n_conv_per_stage": [2] * len(features),
            "n_conv_per_stage_decoder": [2] * (len(features) - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def make_trainer(
    args: argparse.Namespace, settings: TrainingSettings, trainer_class: type[CollabTrainer] = CTRCLTrainer
) -> Any:
    """A trainer that can run `train_step`, and nothing else."""
    scale = SCALES[args.scale]
    trainer: Any = object.__new__(trainer_class)
    trainer.device = torch.device(args.device)
    trainer.settings = settings
    trainer.is_ddp = False
    trainer.iteration = 0
    trainer.label_manager = _Labels(args.classes)
    trainer.grad_scaler = torch.amp.GradScaler("cuda") if args.device == "cuda" else None
    trainer.guard = NonFiniteGuard(settings.max_bad_steps, print)
    planned = planned_architecture(args.scale)
    blueprints = {s.name: make_blueprint(s.name, s.network, s.arch, planned, scale["patch"]) for s in settings.students}
    trainer.group = build_students(
        settings.students,
        blueprints,
        input_channels=1,
        num_outputs=args.classes,
        patch_size=scale["patch"],
        deep_supervision=settings.deep_supervision,
        device=trainer.device,
        log=lambda line: None,
        levels=trainer_class.feature_levels,
    )
    if args.compile:
        compile_students(trainer.group, lambda line: None)
    trainer.network = trainer.group.train()
    loss = _nnunet_loss(len(planned["arch_kwargs"]["strides"]) - 1)
    trainer.supervised = supervised_loss(loss if settings.deep_supervision else loss.loss)
    trainer.optimizers = StudentOptimizers(trainer.group, settings, trainer.grad_scaler)
    return trainer


def make_semi_supervised_trainer(
    args: argparse.Namespace, settings: SemiSupervisedSettings, trainer_class: type[SemiSupervisedTrainer]
) -> Any:
    """A trainer of a method with unlabeled images; half of the batch is labeled."""
    trainer = make_trainer(args, settings, trainer_class)
    trainer.labeled_per_batch = trainer.unlabeled_per_batch = SCALES[args.scale]["batch"] // 2
    trainer.pseudo_label_curves = PseudoLabelCurves(regions=False)
    if isinstance(trainer, MixingTrainer):
        trainer.mixes = trainer.settings.cutmix_probability > 0
        trainer.mixes_second_batch = trainer.mixes and trainer.settings.mixing == "second_batch"
    if isinstance(trainer, TeacherTrainer):
        trainer.has_teacher = trainer.averages(trainer.settings)
    if isinstance(trainer, TeacherTrainer) and trainer.has_teacher:
        trainer.teacher = EMATeacher(trainer.group, trainer.settings.ema_decay)
    return trainer


def make_semi_supervised_batch(args: argparse.Namespace, trainer: SemiSupervisedTrainer) -> dict[str, Any]:
    """One batch as `TwoStreams` delivers it."""
    labeled, generator = make_batch(args), torch.Generator().manual_seed(1)
    count, patch = trainer.unlabeled_crops_per_batch(), SCALES[args.scale]["patch"]
    views = torch.randn(count, 1 + trainer.strong_views, *patch, generator=generator)
    half = slice(None, trainer.labeled_per_batch)
    target = [t[half] for t in labeled["target"]]
    return {
        "data": labeled["data"][half],
        "target": target if trainer.settings.deep_supervision else target[0],
        "views": views.to(args.device),
        "learn_mask": torch.zeros(count, 1, *patch, dtype=torch.int16, device=args.device),
    }


def _nnunet_loss(outputs: int) -> DeepSupervisionWrapper:
    """nnUNetTrainer._build_loss, for plain classes."""
    loss = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    weights = [0.5**i for i in range(outputs - 1)] + [0.0]
    return DeepSupervisionWrapper(loss, [w / sum(weights) for w in weights])


def pair_settings(args: argparse.Namespace, **changes: Any) -> CTRCLSettings:
    """Settings of a CNN and a Transformer."""
    students = (CNN, replace(TRANSFORMER, network=args.transformer))
    return replace(CTRCLSettings(students=students), **changes)


def make_batch(args: argparse.Namespace) -> dict[str, Any]:
    """One batch as nnU-Net's loader delivers it, with blobs for labels and a list for deep supervision."""
    scale = SCALES[args.scale]
    patch, batch = scale["patch"], scale["batch"]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 1, *patch, generator=generator)
    coarse = torch.randint(0, args.classes, (batch, 1, *[max(1, n // 16) for n in patch]), generator=generator).float()
    strides = planned_architecture(args.scale)["arch_kwargs"]["strides"]
    sizes, size = [], list(patch)
    for stage in strides[:-1]:
        size = [n // s for n, s in zip(size, stage, strict=True)]
        sizes.append(tuple(size))
    target = [torch.nn.functional.interpolate(coarse, s, mode="nearest").short() for s in sizes]
    return {"data": image.to(args.device), "target": [t.to(args.device) for t in target]}


def alternate(steps: Mapping[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each step; variants alternate, so that a slow moment of the machine affects all of them.

    With one CPU thread, CPU time is measured, which does not include other work on the machine.
    """
    device: str = args.device
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.warm_up + args.rounds):
        for name, step in steps.items():
            _synchronize(device)
            start = clock()
            step()
            _synchronize(device)
            if turn >= args.warm_up:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def flop(step: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products of a step, forward and backward."""
    with CountFlop() as counter:
        step()
    return counter.total


class CountFlop(TorchDispatchMode):
    """Adds up what torch's own table says of each operation; torch's FlopCounterMode stumbles over hooks of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def line(name: str, ratio: float, bar: float | None) -> str:
    """A ratio, and whether it meets its bar."""
    verdict = "" if bar is None else (": met" if ratio <= bar else ": MISSED")
    return f"{name} = {ratio:.3f}{verdict}"


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
