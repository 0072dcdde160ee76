"""The trainer of nnU-Net itself under whose name a student is published: its static method builds the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT = "nnUNetTrainer"
PRIMUS = "dynamic_network_architectures.architectures.primus.Primus"
_PRIMUS_SIZES = {396: "S", 792: "B", 864: "M", 1056: "L"}  # by embed_dim; nnU-Net 2.8, primus_trainers.py


def stock_trainer(architecture: Mapping[str, Any]) -> str:
    """The name of the trainer that builds the network of an `architecture` entry of plans.

    `nnUNetTrainer` builds what the plans describe, but it tells every constructor whether there is deep supervision,
    and Primus does not take that. So nnU-Net has a trainer for each size of Primus.
    """
    if architecture["network_class_name"] == PRIMUS:
        return f"nnUNet_Primus_{_PRIMUS_SIZES[architecture['arch_kwargs']['embed_dim']]}_Trainer"
    return DEFAULT


def trainer_class(name: str) -> Any:
    """The class of that name, without nnU-Net's search through all its files."""
    if name == DEFAULT:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        return nnUNetTrainer
    from nnunetv2.training.nnUNetTrainer.primus import primus_trainers  # imports timm

    return getattr(primus_trainers, name)
