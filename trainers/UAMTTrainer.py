"""Doorway: lets `nnUNetv2_train ... -tr UAMTTrainer` find the class."""

from nnunet_collab.methods.mean_teacher import UAMTTrainer

__all__ = ["UAMTTrainer"]
