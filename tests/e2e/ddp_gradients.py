"""One training step on a given batch, alone or as one of two processes that share it; writes gradients and losses.

    python ddp_gradients.py batches.pt alone.pt
    torchrun --standalone --nproc_per_node=2 ddp_gradients.py batches.pt shared.pt

The first makes the batches: nnU-Net's loader's, changed so that the halves differ in what is ignored and in classes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from e2e_nnunet import DATASETS
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_collab.core.settings import VARIABLE

# Name -> kind of labels, configuration, settings.
CASES = {
    "2d": ("plain", "2d", {}),
    "3d": ("plain", "3d_fullres", {}),
    "classes of the batch": ("plain", "2d", {"cfcl_classes": "batch"}),
    "ignore": ("ignore", "2d", {}),
    "ignore, classes of the batch": ("ignore", "3d_fullres", {"cfcl_classes": "batch"}),
    "regions": ("regions", "3d_fullres", {}),
    "regions and ignore": ("regions_ignore", "2d", {}),
    "mutual": ("ignore", "2d", {"logit_mode": "mutual"}),
    "ensemble": ("ignore", "2d", {"logit_mode": "ensemble"}),
    "selective": ("ignore", "2d", {"logit_mode": "selective"}),
}
# Nothing random, and gradients as they are.
STUDENTS = {
    "CNN": {"grad_clip": 0},
    "Transformer": {"network": "segformer_b0", "grad_clip": 0, "arch": {"drop_path": 0.0, "head_dropout": 0.0}},
}
BATCH_SIZE = 4


def make_trainer(kind, configuration, changes):
    settings = {"batch_size": BATCH_SIZE, "epochs": 1, "iterations_per_epoch": 1, "students": STUDENTS, **changes}
    os.environ[VARIABLE] = json.dumps(settings)
    cpu = torch.device("cpu")
    trainer = get_trainer_from_args(str(DATASETS[kind]), configuration, 0, "CTRCLTrainer", device=cpu)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.network.train()
    if "ignore" in kind:
        # nnU-Net's own loss averages the voxels that each process keeps, not those of the batch. Ours do not; so that
        # they are compared, and every parameter has a gradient, a mean over all voxels takes its place.
        trainer.supervised = lambda output, target: sum(
            logits.square().mean() for logits in (output.logits, *output.auxiliary[:-1])
        )
    return trainer


def make_batch(trainer, kind):
    """A batch whose second half has many more ignored voxels than the first, and whose first sample lacks a class."""
    batches, _ = trainer.get_dataloaders()
    batch = next(batches)
    for target in batch["target"]:
        first = target.shape[-1] // 5
        if kind == "ignore":
            target[:2][target[:2] == trainer.label_manager.ignore_label] = 0
            target[2:, ..., first:-first] = trainer.label_manager.ignore_label
            target[0, ..., :first] = trainer.label_manager.ignore_label
        elif kind == "regions_ignore":
            target[:2, -1] = 0
            target[2:, :, ..., first:-first] = torch.tensor([0, 0, 0, 1]).view(-1, *[1] * (target.ndim - 2))
            target[0, :, ..., :first] = torch.tensor([0, 0, 0, 1]).view(-1, *[1] * (target.ndim - 2))
        elif kind == "plain":
            target[0][target[0] == 3] = 0
    return {"data": batch["data"], "target": batch["target"]}


def half(batch):
    """This process's samples."""
    if not dist.is_initialized():
        return batch
    share = BATCH_SIZE // dist.get_world_size()
    own = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    return {"data": batch["data"][own], "target": [target[own] for target in batch["target"]]}


def mean_over_processes(numbers):
    """The numbers of each process, averaged as DistributedDataParallel averages gradients."""
    values = torch.tensor(list(numbers.values()), dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(numbers, values.tolist(), strict=True))


def main(batches_file, output):
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    batches = torch.load(batches_file, weights_only=True) if dist.is_initialized() else {}
    results = {}
    for name, (kind, configuration, changes) in CASES.items():
        trainer = make_trainer(kind, configuration, changes)
        if not dist.is_initialized():
            batches[name] = make_batch(trainer, kind)
        step = trainer.train_step(half(batches[name]))
        gradients = {n: p.grad.clone() for n, p in trainer.group.named_parameters() if p.requires_grad}
        means = mean_over_processes({"loss": step["loss"], **step["terms"]})
        results[name] = {"loss": means.pop("loss"), "terms": means, "gradients": gradients}
    if not dist.is_initialized():
        torch.save(batches, batches_file)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(results, output)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
