"""Check that the weights of a student are complete, by loading them as nnU-Net's predictor does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.inference.stock_trainers import stock_trainer, trainer_class


def require_complete(
    file: Path,
    student: str,
    weights: Mapping[str, Tensor],
    plans: dict[str, Any],
    configuration: str,
    dataset: dict[str, Any],
) -> None:
    """Raise unless the weights are exactly those of the network in the plans.

    Args:
        file: Checkpoint that holds the weights.
        student: Name of the student.
        weights: Weights of its network, without heads.
        plans: Plans with which it is published.
        configuration: Name of the configuration in the plans.
        dataset: Content of dataset.json.

    Raises:
        CollabError: If weights are missing, not needed, or of another shape; the message names them.
    """
    manager = PlansManager(plans)
    entry = manager.get_configuration(configuration)
    with torch.random.fork_rng(devices=[]):  # building a network draws random weights
        network = trainer_class(stock_trainer(entry.configuration["architecture"])).build_network_architecture(
            manager,
            entry,
            determine_num_input_channels(manager, entry, dataset),
            manager.get_label_manager(dataset).num_segmentation_heads,
            enable_deep_supervision=False,
        )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CollabError(
            f"checkpoint {file}: must hold all weights of student {student} to publish it; found {len(weights)} of "
            f"{len(network.state_dict())} ({' '.join(str(error).split())[:400]}). The file was changed. Publish from "
            f"another checkpoint, or train again."
        ) from error
