"""One semi-supervised step on a given batch, alone or as one of two processes that share it.

    python ddp_semi_supervised.py batches.pt alone.pt
    torchrun --standalone --nproc_per_node=2 ddp_semi_supervised.py batches.pt shared.pt

The first makes the batches: those of the two-stream loader, changed so that the halves differ in what is left out.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ddp_gradients import mean_over_processes
from drawing import Everything, class_by_class
from e2e_nnunet import DATASETS
from e2e_semi_supervised import SMALL_CMAFORMER
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_collab.core.settings import VARIABLE
from nnunet_collab.losses import positive_supervision
from nnunet_collab.methods import bcp
from nnunet_collab.methods.crossmatch import CrossMatchSettings
from nnunet_collab.training.cutmix import box_masks
from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer

# Nothing random, and gradients as they are.
UNCLIPPED = {"grad_clip": 0}
SEGFORMER = {"network": "segformer_b0", "grad_clip": 0, "arch": {"drop_path": 0.0, "head_dropout": 0.0}}
TEACHING = {"students": {"CNN": UNCLIPPED, "Transformer": SEGFORMER}, "ramp_up": 0, "pseudo_weight": 1.0}
MATCHING = {"students": {"CNN": UNCLIPPED}, "cutmix_probability": 0.0}
# The teacher is not the student, see `set_apart`. UA-MT leaves some voxels out; its ramp begins at exp(-5).
AVERAGING = {"students": {"CNN": UNCLIPPED}, "ramp_up": 0, "consistency_weight": 1.0, "noise": 0.0}
CERTAIN = {**AVERAGING, "ramp_up": 1, "consistency_weight": math.exp(5), "mc_passes": 2, "entropy_threshold_start": 0.9}
CROSSING = {**TEACHING, "students": {"CNN1": UNCLIPPED, "CNN2": UNCLIPPED}}
CMAFORMER = {"students": {"CMAformer": {"grad_clip": 0, "arch": SMALL_CMAFORMER}}}
# Each process draws the voxels of CRLN's contrast from its own; two have other ones than one does: see CONTRASTING.
RECTIFYING = {**MATCHING, "tau": 0.3, "tau_weak": 0.2, "rectify_from_iteration": 0, "noise": 0.0, "contrast_weight": 0}
CONTRASTING = {**RECTIFYING, "contrast_weight": 1.0}  # everything is drawn, negatives from images that all have
DUAL = {"students": {"CNN": UNCLIPPED}, "ramp_up": 0, "multiplier_init": 0.5}
# Each process draws the box and the pairs of BCP for itself: see `same_box` and `every_second`.
PASTING = {"students": {"CNN": UNCLIPPED}, "start": 0.0}
SELF_TRAINING = {**PASTING, "cutmix_probability": 0.0}
# Name -> trainer, kind of labels, configuration, settings.
CASES = {
    "cross teaching": ("CrossTeachingTrainer", "plain", "2d", TEACHING),
    "cross teaching, ce": ("CrossTeachingTrainer", "regions", "3d_fullres", {**TEACHING, "pseudo_loss": "ce"}),
    "cps": ("CPSTrainer", "plain", "2d", CROSSING),
    "mean teacher": ("MeanTeacherTrainer", "plain", "2d", AVERAGING),
    "uamt": ("UAMTTrainer", "plain", "2d", CERTAIN),
    "uamt, regions": ("UAMTTrainer", "regions", "3d_fullres", CERTAIN),
    "fixmatch": ("FixMatchTrainer", "plain", "2d", {**MATCHING, "tau": 0.3}),
    "unimatch": ("UniMatchTrainer", "plain", "2d", {**MATCHING, "tau": 0.3, "feature_drop": 0.0}),
    "cmaformer": ("CMAformerTrainer", "plain", "2d", CMAFORMER),
    "crossmatch": ("CrossMatchTrainer", "plain", "2d", {**MATCHING, "tau": 0.3}),
    "crossmatch, regions": ("CrossMatchTrainer", "regions", "3d_fullres", {**MATCHING, "tau": 0.55}),
    "crln": ("CRLNTrainer", "plain", "2d", RECTIFYING),
    "crln, concatenation": ("CRLNTrainer", "plain", "3d_fullres", {**RECTIFYING, "rectification": "concatenation"}),
    "crln, middle": ("CRLNTrainer", "plain", "2d", {**RECTIFYING, "context_crop": 0.5}),
    "crln, contrast": ("CRLNTrainer", "plain", "2d", CONTRASTING),
    "ldc": ("LDCTrainer", "plain", "2d", DUAL),
    "ldc, regions": ("LDCTrainer", "regions", "3d_fullres", {**DUAL, "logit_limit": 0.1}),
    "ldc, official": ("LDCTrainer", "plain", "2d", {**DUAL, "formulation": "official", "contrast": "off"}),
    "bcp": ("BCPTrainer", "plain", "2d", PASTING),
    "bcp, one way": ("BCPTrainer", "plain", "2d", {**PASTING, "both_ways": False, "batch_size": 4}),
    "bcp, regions": ("BCPTrainer", "regions", "3d_fullres", PASTING),
    "bcp, labels alone": ("BCPTrainer", "plain", "2d", {**PASTING, "unlabeled_weight": 0, "batch_size": 4}),
    "self-training": ("SelfTrainingTrainer", "plain", "2d", {**SELF_TRAINING, "threshold": 0.3}),
    "self-training, regions": ("SelfTrainingTrainer", "regions", "3d_fullres", SELF_TRAINING),
}
BATCH_SIZE = 2  # labeled samples, and as many unlabeled ones


def make_trainer(name, kind, configuration, changes):
    os.environ[VARIABLE] = json.dumps({"batch_size": BATCH_SIZE, "epochs": 1, "iterations_per_epoch": 1, **changes})
    trainer = get_trainer_from_args(str(DATASETS[kind]), configuration, 0, name, device=torch.device("cpu"))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.network.train()
    if name == "CRLNTrainer":
        strengthen_relations(trainer)
    if hasattr(trainer, "teacher"):
        set_apart(trainer)
    return trainer


@torch.no_grad()
def set_apart(trainer):
    """A teacher that took in other students than these: it disagrees, and its next update is an average."""
    trainer.teacher.update(trainer.group)
    torch.manual_seed(1)
    for parameter in trainer.teacher.group.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def strengthen_relations(trainer):
    """Maps that tell the classes apart; those of first weights are so small that the gradient of mu is rounding."""
    for group in (trainer.group, trainer.teacher.group):
        torch.manual_seed(0)
        for name, parameter in group.named_parameters():
            if "heads.interaction" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))


def same_box(size, share, device):
    """In place of `copy_paste.draw_inside`: in the middle of the patch."""
    corners = [[round(length * (1 - share) / 2), round(length * (1 + share) / 2)] for length in size]
    return box_masks(torch.tensor([corners], device=device), size)


def every_second(count):
    """In place of `copy_paste.halves`: so the halves of a process are parts of those of the whole batch."""
    return torch.arange(0, count, 2), torch.arange(1, count, 2)


def neighbors(count):
    """In place of `cutmix.draw_partners`: samples 0 and 1, 2 and 3, ..., which are in one process."""
    return torch.arange(count) ^ 1


def make_batch(trainer):
    """A batch whose second unlabeled sample, if there is one, has far fewer voxels that count."""
    batch = next(trainer.get_dataloaders()[0])
    if "learn_mask" in batch:
        batch["learn_mask"][1, ..., batch["learn_mask"].shape[-1] // 5 :] = -1
    if getattr(trainer.settings, "contrast_weight", 0):
        for values in (batch["data"], *batch["target"]):
            values[1] = values[0]
    return {name: values for name, values in batch.items() if not name.startswith("keys")}


def half(batch):
    """This process's samples of each kind."""
    if not dist.is_initialized():
        return batch

    def own(values):
        return values.chunk(dist.get_world_size())[dist.get_rank()]

    return {
        name: [own(one) for one in values] if isinstance(values, list) else own(values)
        for name, values in batch.items()
    }


def of_all_processes(values):
    everyone = [values]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, values)
    return everyone


def main(batches_file, output):
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    CrossMatchSettings.drop_rates = property(lambda _: (0.0, 0.0))
    positive_supervision._draw = class_by_class(Everything(negatives=4))
    bcp.draw_inside, bcp.halves, bcp.draw_partners = same_box, every_second, neighbors
    batches = torch.load(batches_file, weights_only=True) if dist.is_initialized() else {}
    results = {}
    for name, case in CASES.items():
        trainer = make_trainer(*case)
        if not dist.is_initialized():
            batches[name] = make_batch(trainer)
        step = trainer.train_step(half(batches[name]))
        gradients = {n: p.grad.clone() for n, p in trainer.group.named_parameters() if p.requires_grad}
        means = mean_over_processes({"loss": step["loss"], **step["terms"]})
        learns_from_unlabeled = isinstance(trainer, SemiSupervisedTrainer)
        curves = trainer.pseudo_label_curves.finish_epoch() if learns_from_unlabeled else {}
        own = {"gradients": gradients, "curves": curves, "states": of_all_processes(trainer.method_state())}
        results[name] = {"loss": means.pop("loss"), "terms": means, **own}
    if not dist.is_initialized():
        torch.save(batches, batches_file)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(results, output)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
