"""Doorway: lets `nnUNetv2_train ... -tr UniMatchTrainer` find the class."""

from nnunet_collab.methods.fixmatch import UniMatchTrainer

__all__ = ["UniMatchTrainer"]
