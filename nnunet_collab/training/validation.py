"""The final validation: every student predicts the validation cases in its own results folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from nnunet_collab.inference.publish import CHECKPOINTS, publish_fold, student_folder
from nnunet_collab.networks.group import StudentEnsemble
from nnunet_collab.training import planning

if TYPE_CHECKING:
    from torch import nn

    from nnunet_collab.training.trainer import CollabTrainer


def validate_students(trainer: CollabTrainer, validate: Callable[[bool], None], save_probabilities: bool) -> None:
    """Publish, then run nnU-Net's own validation once per student, and for their mean.

    Args:
        trainer: Trained, or loaded with --val.
        validate: nnU-Net's validation of `trainer.network` into `trainer.output_folder`.
        save_probabilities: Keep the probabilities (--npz), which ensembling needs.
    """
    fold = Path(trainer.output_folder)
    if trainer.local_rank == 0:
        if (fold / CHECKPOINTS[0]).is_file() and not trainer.disable_checkpointing:
            for folder in publish_fold(fold):
                trainer.print_to_log_file(f"published: {folder}")
        else:
            trainer.print_to_log_file("No student published: there is no checkpoint_final.pth")
    if trainer.is_ddp:
        dist.barrier()
    for name in trainer.settings.published:
        target = student_folder(fold.parent, name) / fold.name
        target.mkdir(parents=True, exist_ok=True)
        trainer.print_to_log_file(f"validation of student {name}")
        _validate_as(trainer, trainer.deployed[name].network, target, validate, save_probabilities)
    if trainer.settings.validate_ensemble and len(trainer.settings.published) > 1:
        trainer.print_to_log_file("validation of the mean of the students")
        regions = trainer.plans_manager.plans[planning.KEY]["regions"]
        ensemble = StudentEnsemble(list(trainer.deployed), regions=regions)
        _validate_as(trainer, ensemble, fold, validate, save_probabilities)


def _validate_as(
    trainer: CollabTrainer, network: nn.Module, folder: Path, validate: Callable[[bool], None], save_probabilities: bool
) -> None:
    """nnU-Net validates what `trainer.network` is and writes where `trainer.output_folder` points."""
    before = trainer.network, trainer.output_folder, trainer.output_folder_base
    trainer.network, trainer.output_folder, trainer.output_folder_base = network, str(folder), str(folder.parent)
    try:
        validate(save_probabilities)
    finally:
        trainer.network, trainer.output_folder, trainer.output_folder_base = before
