"""Doorway: lets `nnUNetv2_train ... -tr CrossMatchTrainer` find the class."""

from nnunet_collab.methods.crossmatch import CrossMatchTrainer

__all__ = ["CrossMatchTrainer"]
