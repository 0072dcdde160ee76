"""Doorway: lets `nnUNetv2_train ... -tr BCPTrainer` find the class."""

from nnunet_collab.methods.bcp import BCPTrainer

__all__ = ["BCPTrainer"]
