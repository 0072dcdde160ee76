"""Change the plans as the settings say, before nnU-Net reads them, and refuse what cannot be trained."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import to_json
from nnunet_collab.networks.blueprint import PLANS, Blueprint, make_blueprint
from nnunet_collab.networks.ensemble import ensemble_of
from nnunet_collab.training.batch_rule import WITH_UNLABELED, batch_size_with_unlabeled
from nnunet_collab.training.settings import StudentSettings, TrainingSettings

KEY = "nnunet_collab"  # our entry in plans.json


def adapt_plans(
    plans: dict[str, Any],
    configuration: str,
    settings: TrainingSettings,
    trainer_name: str,
    dataset_json: dict[str, Any],
) -> None:
    """Write patch size, batch size and the students' blueprints into `plans`, in place.

    The entry `nnunet_collab` makes the plans.json of the results folder all that prediction needs.

    Raises:
        CollabError: If the configuration does not exist, is a cascade, or cannot take the settings.
    """
    if configuration not in plans["configurations"]:
        raise CollabError(
            f"configuration {configuration!r}: must be in the plans; they have "
            f"{', '.join(plans['configurations'])}. Run nnUNetv2_plan_and_preprocess for it."
        )
    entry = plans["configurations"][configuration]
    resolved = PlansManager(plans).get_configuration(configuration).configuration
    if resolved.get("previous_stage") is not None:
        raise CollabError(
            f"configuration {configuration!r}: must not be a cascade (its input includes another model's "
            f"segmentation); {trainer_name} trains from images alone. Use 3d_fullres or 3d_lowres."
        )
    dimensions = len(resolved["patch_size"])
    if settings.patch_size is not None:
        if len(settings.patch_size) != dimensions:
            raise CollabError(
                f"setting 'patch_size': {configuration} is {dimensions}D and takes {dimensions} sizes; "
                f"got {list(settings.patch_size)}."
            )
        entry["patch_size"] = resolved["patch_size"] = list(settings.patch_size)
    if settings.batch_size == WITH_UNLABELED:
        entry["batch_size"] = resolved["batch_size"] = batch_size_with_unlabeled(plans, resolved, dataset_json)
    elif settings.batch_size is not None:
        entry["batch_size"] = resolved["batch_size"] = settings.batch_size
    _check_divisible(resolved, settings)
    plans[KEY] = {
        "trainer": trainer_name,
        "settings": to_json(settings),
        "students": {s.name: _blueprint(s, resolved, plans, dataset_json) for s in settings.students},
    }


def _blueprint(
    student: StudentSettings, resolved: dict[str, Any], plans: dict[str, Any], dataset_json: dict[str, Any]
) -> Blueprint:
    """The student's network: one, or an ensemble of frozen ones."""
    one = make_blueprint(student.name, student.network, student.arch, resolved["architecture"], resolved["patch_size"])
    if len(student.teachers) < 2:
        return one
    regions = PlansManager(plans).get_label_manager(dataset_json).has_regions
    return ensemble_of(one, len(student.teachers), regions=regions)


def has_lower_outputs(plans: PlansManager, configuration: str) -> bool:
    """Whether the planned network has outputs of lower resolution that nnU-Net supervises.

    nnU-Net gives the lowest of them weight 0. A network with two resolutions then has no auxiliary output to train.
    """
    strides = plans.get_configuration(configuration).network_arch_init_kwargs.get("strides")
    return strides is None or len(strides) > 2


def _check_divisible(resolved: dict[str, Any], settings: TrainingSettings) -> None:
    """Raise if the UNet cannot halve the patch without remainder: its skip connections would not fit."""
    strides = resolved["architecture"]["arch_kwargs"].get("strides")
    if strides is None or all(s.network != PLANS for s in settings.students):
        return
    for axis, size in enumerate(resolved["patch_size"]):
        total = 1
        for stage in strides:
            total *= stage[axis]
        if size % total:
            lower, upper = size - size % total, size - size % total + total
            nearest = f"{lower} or {upper}" if lower else str(upper)
            raise CollabError(
                f"setting 'patch_size': the planned UNet divides axis {axis} by {total}, so the patch must be a "
                f"multiple of it; got {resolved['patch_size']}. Use {nearest} there."
            )
