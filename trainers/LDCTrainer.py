"""Doorway: lets `nnUNetv2_train ... -tr LDCTrainer` find the class."""

from nnunet_collab.methods.ldc.trainer import LDCTrainer

__all__ = ["LDCTrainer"]
