"""Doorway: lets `nnUNetv2_train ... -tr MeanTeacherTrainer` find the class."""

from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer

__all__ = ["MeanTeacherTrainer"]
