"""One semi-supervised step on a given batch, alone or as one of two processes that share it.

    python ddp_semi_supervised.py batches.pt alone.pt
    torchrun --standalone --nproc_per_node=2 ddp_semi_supervised.py batches.pt shared.pt

The first makes the batches: those of the two-stream loader, changed so that the halves differ in what is left out.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ddp_gradients import mean_over_processes
from e2e_nnunet import DATASETS
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_collab.core.settings import VARIABLE
from nnunet_collab.methods.crossmatch import CrossMatchSettings

# Nothing random, and gradients as they are.
UNCLIPPED = {"grad_clip": 0}
SEGFORMER = {"network": "segformer_b0", "grad_clip": 0, "arch": {"drop_path": 0.0, "head_dropout": 0.0}}
TEACHING = {"students": {"CNN": UNCLIPPED, "Transformer": SEGFORMER}, "ramp_up": 0, "pseudo_weight": 1.0}
MATCHING = {"students": {"CNN": UNCLIPPED}, "cutmix_probability": 0.0}
# Name -> trainer, kind of labels, configuration, settings.
CASES = {
    "cross teaching": ("CrossTeachingTrainer", "plain", "2d", TEACHING),
    "cross teaching, ce": ("CrossTeachingTrainer", "regions", "3d_fullres", {**TEACHING, "pseudo_loss": "ce"}),
    "crossmatch": ("CrossMatchTrainer", "plain", "2d", {**MATCHING, "tau": 0.3}),
    "crossmatch, regions": ("CrossMatchTrainer", "regions", "3d_fullres", {**MATCHING, "tau": 0.55}),
}
BATCH_SIZE = 4  # half of it labelled


def make_trainer(name, kind, configuration, changes):
    os.environ[VARIABLE] = json.dumps({"batch_size": BATCH_SIZE, "epochs": 1, "iterations_per_epoch": 1, **changes})
    trainer = get_trainer_from_args(str(DATASETS[kind]), configuration, 0, name, device=torch.device("cpu"))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.network.train()
    return trainer


def make_batch(trainer):
    """A batch whose second unlabelled sample has far fewer voxels that count."""
    batch = next(trainer.get_dataloaders()[0])
    batch["where"][1, ..., batch["where"].shape[-1] // 5 :] = -1
    return {name: batch[name] for name in ("data", "target", "views", "where")}


def half(batch):
    """This process's samples of each kind."""
    if not dist.is_initialized():
        return batch
    own = slice(dist.get_rank(), dist.get_rank() + 1)
    return {
        name: [target[own] for target in values] if name == "target" else values[own] for name, values in batch.items()
    }


def main(batches_file, output):
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    CrossMatchSettings.drop_rates = property(lambda _: (0.0, 0.0))
    batches = torch.load(batches_file, weights_only=True) if dist.is_initialized() else {}
    results = {}
    for name, case in CASES.items():
        trainer = make_trainer(*case)
        if not dist.is_initialized():
            batches[name] = make_batch(trainer)
        step = trainer.train_step(half(batches[name]))
        gradients = {n: p.grad.clone() for n, p in trainer.group.named_parameters() if p.requires_grad}
        means = mean_over_processes({"loss": step["loss"], **step["terms"]})
        curves = trainer.pseudo_label_curves.finish_epoch()
        results[name] = {"loss": means.pop("loss"), "terms": means, "gradients": gradients, "curves": curves}
    if not dist.is_initialized():
        torch.save(batches, batches_file)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(results, output)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
