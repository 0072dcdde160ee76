"""Doorway: lets `nnUNetv2_train ... -tr CTRCLTrainer` find the class."""

from nnunet_collab.methods.ctrcl import CTRCLTrainer

__all__ = ["CTRCLTrainer"]
