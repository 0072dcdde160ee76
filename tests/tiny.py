"""Networks, plans, batches and trainers small enough for unit tests, in nnU-Net's own form."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

import nnunet_collab.networks.segformer as segformer_module
import nnunet_collab.training.trainer as trainer_module
from nnunet_collab.core.files import write_json
from nnunet_collab.core.settings import change
from nnunet_collab.networks.blueprint import make_blueprint
from nnunet_collab.networks.mix_transformer import MitVariant
from nnunet_collab.training.students import build_students

STRIDES_2D = [[1, 1], [2, 2], [2, 2], [2, 2]]
STRIDES_3D = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]]  # thick slices
FEATURES = (4, 6, 8, 8)

CLASSES = {"background": 0, "ring": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}
LABELS = {
    "plain": CLASSES,
    "ignore": {**CLASSES, "ignore": 3},
    "regions": REGIONS,
    "regions_ignore": {**REGIONS, "ignore": 3},
}


def unet(strides=STRIDES_2D, *, residual=False):
    """The `architecture` entry of a plans file: a PlainConvUNet, or a ResidualEncoderUNet."""
    dims, stages = len(strides[0]), len(strides)
    name = "residual_unet.ResidualEncoderUNet" if residual else "unet.PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.{name.replace('residual_', '')}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(FEATURES[:stages]),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims for _ in strides],
            "strides": copy.deepcopy(strides),
            ("n_blocks_per_stage" if residual else "n_conv_per_stage"): [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(strides, patch_size):
    """One entry of `configurations` in a plans file."""
    return {
        "data_identifier": f"nnUNetPlans_{len(patch_size)}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "spacing": [1.0] * len(patch_size),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": unet(strides),
    }


def make_plans():
    """Plans of a tiny dataset: 2d, 3d_fullres, and a cascade."""
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "continue_training": False,
        "configurations": {
            "2d": configuration(STRIDES_2D, (32, 32)),
            "3d_fullres": configuration(STRIDES_3D, (4, 32, 32)),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def make_dataset_json(kind="plain"):
    """dataset.json with plain classes, an ignore label, regions, or both."""
    content = {"channel_names": {"0": "MRI"}, "labels": LABELS[kind], "numTraining": 4, "file_ending": ".nii.gz"}
    return {**content, "regions_class_order": [1, 2]} if "regions" in kind else content


def shrink_segformer(monkeypatch):
    """Make b0 a Mix Transformer of 20 000 parameters that still has every kind of layer."""
    variant = MitVariant((8, 8, 16, 16), (1, 2, 2, 2), (1, 1, 1, 1), 16)
    monkeypatch.setattr(segformer_module, "VARIANTS", {"b0": variant})


def build_tiny_students(*settings, strides=STRIDES_2D, patch=(32, 32), residual=False, deep_supervision=True, log=None):
    """Students as the trainer builds them, for images of one channel and three classes."""
    planned = unet(strides, residual=residual)
    torch.manual_seed(0)
    return build_students(
        settings,
        {s.name: make_blueprint(s.name, s.network, s.arch, planned, patch) for s in settings},
        input_channels=1,
        num_outputs=3,
        patch_size=patch,
        deep_supervision=deep_supervision,
        device=torch.device("cpu"),
        log=[].append if log is None else log.append,
    )


def make_trainer(
    trainer_class, folder, monkeypatch, *, kind="plain", changes=None, configuration="2d", plans=None, initialize=True
):
    """A trainer after `initialize`, on the CPU, whose students are the planned UNet and a shrunk SegFormer."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(Path(folder, name)))
    monkeypatch.setattr(trainer_module, "infer_dataset_class", lambda _: None)
    shrink_segformer(monkeypatch)
    changes = {"students": {"Transformer": {"network": "segformer_b0"}}, **(changes or {})}
    settings = change(trainer_class.settings, changes, "test")
    trainer_class = type(trainer_class.__name__, (trainer_class,), {"settings": settings})
    trainer = trainer_class(plans or make_plans(), configuration, 0, make_dataset_json(kind), torch.device("cpu"))
    if not initialize:
        return trainer
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    return trainer


def make_batch(trainer, kind="plain", seed=0, count=2):
    """A batch as nnU-Net's loader delivers it, with a list of targets if deep supervision is on."""
    generator = torch.Generator().manual_seed(seed)
    patch = trainer.configuration_manager.patch_size
    image = torch.randn((count, 1, *patch), generator=generator)
    blocks = torch.randint(
        0, 4 if "ignore" in kind else 3, (count, 1, *[max(1, n // 4) for n in patch]), generator=generator
    )
    labels = torch.nn.functional.interpolate(blocks.float(), size=tuple(patch), mode="nearest").to(torch.int16)
    full = labels
    if "regions" in kind:
        channels = (
            [labels > 0, labels == 2] if kind == "regions" else [(labels > 0) & (labels < 3), labels == 2, labels == 3]
        )
        full = torch.cat(channels, dim=1)
    scales = trainer._get_deep_supervision_scales()
    if scales is None:
        return {"data": image, "target": full}
    return {"data": image, "target": [_every_nth(full, scale) for scale in scales]}


def make_views(trainer, count=None, seed=1):
    """The unlabeled part of a batch as `TwoStreams` delivers it: correlated views, and a border that is left out."""
    generator = torch.Generator().manual_seed(seed)
    patch = trainer.configuration_manager.patch_size
    count = trainer.unlabeled_crops_per_batch() if count is None else count
    weak = torch.randn((count, 1, *patch), generator=generator)
    strong = [weak * 1.5 + 0.1 * torch.randn(weak.shape, generator=generator) for _ in range(trainer.strong_views)]
    where = torch.zeros((count, 1, *patch), dtype=torch.int16)
    where[..., :2] = -1
    return {"views": torch.cat([weak, *strong], dim=1), "learn_mask": where}


def make_semi_supervised_batch(trainer, kind="plain", seed=0):
    """A batch of labeled and unlabeled samples."""
    labeled = make_batch(trainer, kind, seed, count=trainer.labeled_per_batch)
    centered = torch.arange(trainer.labeled_per_batch) >= round(trainer.labeled_per_batch * 0.67)
    return {**labeled, **make_views(trainer, seed=seed + 1), "centered": centered}


def finish_run(trainer, fold="fold_0", files=("checkpoint_final.pth", "checkpoint_best.pth")):
    """Write what a training leaves behind (plans, dataset, fingerprint, checkpoints) and return the fold's folder."""
    run = Path(trainer.output_folder_base)
    write_json(run / "plans.json", trainer.plans_manager.plans)
    write_json(run / "dataset.json", trainer.dataset_json)
    (run / "dataset_fingerprint.json").write_text('{"spacings": []}')
    (run / fold).mkdir(exist_ok=True)
    for file in files:
        trainer.save_checkpoint(str(run / fold / file))
    return run / fold


def _every_nth(tensor, scale):
    return tensor[(slice(None), slice(None), *[slice(None, None, round(1 / s)) for s in scale])].contiguous()
