"""Doorway: lets `nnUNetv2_train ... -tr CRLNTrainer` find the class."""

from nnunet_collab.methods.crln.trainer import CRLNTrainer

__all__ = ["CRLNTrainer"]
