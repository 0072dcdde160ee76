"""Doorway: lets `nnUNetv2_train ... -tr SelfTrainingTrainer` find the class."""

from nnunet_collab.methods.self_training import SelfTrainingTrainer

__all__ = ["SelfTrainingTrainer"]
