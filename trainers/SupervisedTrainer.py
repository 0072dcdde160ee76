"""Doorway: lets `nnUNetv2_train ... -tr SupervisedTrainer` find the class."""

from nnunet_collab.methods.supervised import SupervisedTrainer

__all__ = ["SupervisedTrainer"]
