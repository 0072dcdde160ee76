"""Doorway: lets `nnUNetv2_train ... -tr FixMatchTrainer` find the class."""

from nnunet_collab.methods.fixmatch import FixMatchTrainer

__all__ = ["FixMatchTrainer"]
