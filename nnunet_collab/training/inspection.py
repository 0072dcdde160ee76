"""What a trainer would do with given settings, without constructing it (which would create folders)."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.nnunet_folders import PREPROCESSED
from nnunet_collab.core.presets import accepted, read
from nnunet_collab.core.settings import VARIABLE, change, to_json
from nnunet_collab.core.shipped import doorways
from nnunet_collab.training.planning import adapt_plans
from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer
from nnunet_collab.training.trainer import CollabTrainer


@dataclass(frozen=True)
class Inspected:
    """Properties of a training that was not started.

    Attributes:
        settings: All of them, as checkpoints and plans.json record them.
        published: Names of the students that become models.
        labeled_batch_size: Labeled samples in each step, of all processes together.
        patch_size: Patch size of the training, voxels per axis.
        needs_unlabeled: Whether it learns from unlabeled images.
    """

    settings: dict[str, Any]
    published: list[str]
    labeled_batch_size: int
    patch_size: list[int]
    needs_unlabeled: bool


def find_trainer(name: str) -> type[CollabTrainer]:
    """The class of a trainer that takes this package's settings.

    Raises:
        CollabError: If no trainer has that name, or it takes no settings.
    """
    found = _find_any(name)
    if not issubclass(found, CollabTrainer):
        raise CollabError(
            f"trainer {name!r}: must take settings, which set its steps and its seed; it is nnU-Net's own and takes "
            "none. Use SupervisedTrainer, which trains what nnUNetTrainer trains, or a subclass of CollabTrainer."
        )
    return found


def trainer_names(name: str, plans: Mapping[str, Any], configuration: str) -> tuple[str, tuple[str, ...], bool]:
    """Trainer names under which nnU-Net stores a training, with the settings in the environment.

    Args:
        name: Name of the trainer, of this package or of nnU-Net.
        plans: Content of plans.json.
        configuration: Name of the configuration.

    Returns:
        The name of the training's own folder; those of its models, the last of which is the mean of several students
        if that is validated; and whether it learns from unlabeled images.

    Raises:
        CollabError: If the trainer does not exist, or refuses the settings or the configuration.
    """
    kind = _find_any(name)
    if not issubclass(kind, CollabTrainer):
        return name, (name,), False
    value = os.environ.get(VARIABLE, "").strip()
    found = inspect_trainer(name, read(value, takes=accepted(kind)) if value else {}, plans, configuration)
    own = "_".join(filter(None, (name, found.settings.get("run_name", ""))))
    models = tuple(f"{own}_{student}" for student in found.published)
    mean = len(models) > 1 and found.settings.get("validate_ensemble")
    return own, (*models, own) if mean else models, found.needs_unlabeled


def inspect_trainer(name: str, changes: Mapping[str, Any], plans: Mapping[str, Any], configuration: str) -> Inspected:
    """Check the settings of a trainer as its training would.

    Args:
        name: Name of the trainer.
        changes: Settings as in `nnUNet_collab_settings`; they may name a preset.
        plans: Content of plans.json.
        configuration: Name of the configuration, e.g. `2d`.

    Raises:
        CollabError: If the trainer does not exist, or refuses the settings or the configuration.
    """
    kind = find_trainer(name)
    settings = change(kind.settings, read(json.dumps(dict(changes))), name)
    trainer = kind.__new__(kind)
    trainer.trainer_name = name
    trainer.check(settings)
    adapted = copy.deepcopy(dict(plans))
    preprocessed = Path(os.environ.get(PREPROCESSED, ""), str(plans.get("dataset_name", "")))
    adapt_plans(adapted, configuration, settings, name, json_object_or_empty(preprocessed / "dataset.json"))
    planned = PlansManager(adapted).get_configuration(configuration)
    return Inspected(
        settings=to_json(settings),
        published=settings.published,
        labeled_batch_size=int(planned.batch_size),
        patch_size=[int(size) for size in planned.patch_size],
        needs_unlabeled=issubclass(kind, SemiSupervisedTrainer),
    )


def _find_any(name: str) -> type:
    """The class of a trainer of this package, of the user, or of nnU-Net."""
    shipped = doorways()
    if name in shipped:
        found: Any = getattr(importlib.import_module(shipped[name]), name)
    else:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        try:
            # It tells where it looks; the output of a dry run is for the shell.
            with contextlib.redirect_stdout(sys.stderr):
                found = recursive_find_trainer_class_by_name(name)
        except Exception as error:  # nnU-Net raises RuntimeError; a user's file may raise anything
            raise CollabError(
                f"trainer {name!r}: nnU-Net must find it; it does not ({error}). There are {', '.join(shipped)}, and "
                "those in the folders of nnUNet_extTrainer. Correct the name."
            ) from error
    return found if isinstance(found, type) else type(None)
