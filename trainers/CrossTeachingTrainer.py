"""Doorway: lets `nnUNetv2_train ... -tr CrossTeachingTrainer` find the class."""

from nnunet_collab.methods.cross_teaching import CrossTeachingTrainer

__all__ = ["CrossTeachingTrainer"]
