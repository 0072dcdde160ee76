"""Doorway: lets `nnUNetv2_train ... -tr CPSTrainer` find the class."""

from nnunet_collab.methods.cross_teaching import CPSTrainer

__all__ = ["CPSTrainer"]
