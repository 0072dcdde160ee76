"""Doorway: lets `nnUNetv2_train ... -tr CMAformerTrainer` find the class."""

from nnunet_collab.methods.cmaformer import CMAformerTrainer

__all__ = ["CMAformerTrainer"]
