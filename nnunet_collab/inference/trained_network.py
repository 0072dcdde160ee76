"""The network of a model with its trained weights, built as nnU-Net's predictor builds it."""

from __future__ import annotations

import contextlib
import sys

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.inference.model_folder import CHECKPOINT, Model


def trained_network(model: Model, fold: str) -> nn.Module:
    """The network of a fold, on the CPU, in evaluation mode and without deep supervision.

    Raises:
        CollabError: If nnU-Net does not find the trainer that the checkpoint names, or if the weights are not those of
            the network in the plans.
    """
    checkpoint = model.checkpoint(fold)
    file = model.folder / fold / CHECKPOINT
    manager = PlansManager(model.plans)
    entry = manager.get_configuration(model.configuration)
    try:  # building a network draws random weights
        with (
            contextlib.redirect_stdout(sys.stderr),
            torch.random.fork_rng(devices=[]),
        ):
            network: nn.Module = recursive_find_trainer_class_by_name(
                checkpoint["trainer_name"]
            ).build_network_architecture(
                manager,
                entry,
                determine_num_input_channels(manager, entry, model.dataset),
                manager.get_label_manager(model.dataset).num_segmentation_heads,
                enable_deep_supervision=False,
            )
        network.load_state_dict(checkpoint["network_weights"])
    except (RuntimeError, KeyError) as error:
        raise CollabError(
            f"{file}: nnU-Net must be able to build its network and load its weights; it cannot "
            f"({' '.join(str(error).split())[:400]}). Install what the model needs, or export another one."
        ) from error
    return network.eval()
