"""What the settings change in the plans before nnU-Net sees them, and what is refused at the door."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import to_json
from nnunet_collab.networks.blueprint import PLANS, make_blueprint
from nnunet_collab.training.settings import TrainingSettings

KEY = "nnunet_collab"  # our entry in plans.json


def check_environment() -> None:
    """Raise unless nnU-Net's three paths are set.

    Raises:
        CollabError: Naming the variable that is missing.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        if not os.environ.get(name):
            raise CollabError(
                f"environment variable {name}: must name a folder; it is not set. "
                f"Write e.g. `export {name}=$HOME/nnunet/{name.removeprefix('nnUNet_')}`."
            )


def check_cases(folder: Path, splits: Path | None) -> None:
    """Raise unless there are preprocessed cases to train and to validate with.

    Args:
        folder: Preprocessed cases of the configuration.
        splits: nnU-Net's `splits_final.json`, which nnU-Net writes if it is not there; None to train with all cases.

    Raises:
        CollabError: If the configuration is not preprocessed, or there are too few cases.
    """
    cases = len(list(folder.glob("*.pkl")))
    if cases == 0:
        raise CollabError(
            f"{folder}: must hold the preprocessed cases of the configuration; there are none. "
            f"Run nnUNetv2_plan_and_preprocess for it."
        )
    if cases < 2:
        raise CollabError(
            f"{folder}: a training needs two cases or more, to train and to validate with; there is 1. "
            f"Add cases to the dataset, then plan and preprocess it again."
        )
    if splits is not None and not splits.is_file() and cases < 5:
        raise CollabError(
            f"{splits}: is not there, and nnU-Net needs five cases or more to split them by itself; there are {cases}. "
            f'Write the file, one object per fold: [{{"train": ["case1"], "val": ["case2"]}}]; or train fold all.'
        )


def check_processes(configuration: Any, processes: int) -> None:
    """Raise if processes would get batches of unequal size where nnU-Net's Dice gathers them.

    Args:
        configuration: nnU-Net's manager of the configuration; its `batch_size` is that of all processes together.
        processes: Their number.

    Raises:
        CollabError: Naming the sizes that would do.
    """
    size = configuration.batch_size
    if configuration.batch_dice and size % processes:
        lower = size - size % processes
        nearest = f"{lower} or {lower + processes}" if lower else f"{processes}"
        raise CollabError(
            f"setting 'batch_size': {processes} processes share it, and the Dice loss of this configuration "
            f"(batch_dice) needs as many samples in each; got {size}. Set batch_size to {nearest}, or change the "
            f"number of processes."
        )


def unlabeled_in_split(splits: Path, fold: int | str) -> list[str]:
    """Training cases that the split of this fold declares unlabelled (`"unlabeled"` beside `train` and `val`)."""
    if fold == "all" or not splits.is_file():
        return []
    folds = json.loads(splits.read_text(encoding="utf-8"))
    return sorted(folds[int(fold)].get("unlabeled", [])) if int(fold) < len(folds) else []


def check_fold(splits: Path, fold: int | str) -> None:
    """Raise if nnU-Net would train with the labels of cases that the split declares unlabelled.

    Raises:
        CollabError: If the split has unlabelled cases, and the fold is `all` (every case of the dataset) or none of its
            folds (nnU-Net then splits all cases at random).
    """
    if not splits.is_file():
        return
    folds = json.loads(splits.read_text(encoding="utf-8"))
    if not any(roles.get("unlabeled") for roles in folds):
        return
    if fold == "all" or int(fold) >= len(folds):
        raise CollabError(
            f"{splits}: declares cases unlabelled, and nnU-Net would use their labels in fold {fold}. Train one of the "
            f"folds 0 to {len(folds) - 1}, or make a dataset without those labels: nnunet_collab split --to."
        )


def check_other_folds(fold: Path, plans: dict[str, Any], configuration: str) -> None:
    """Raise if another fold of the run was trained with other networks: the folds share one plans.json.

    Raises:
        CollabError: Naming the folds, whose models the new plans.json would make unreadable.
    """
    others = sorted(f.name for f in fold.parent.glob("fold_*") if f != fold and any(f.glob("checkpoint_*.pth")))
    try:
        old = json.loads((fold.parent / "plans.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return  # never trained, or killed while nnU-Net wrote the file
    same_networks = old.get(KEY, {}).get("students") == plans[KEY]["students"]
    patch_sizes = [p["configurations"].get(configuration, {}).get("patch_size") for p in (old, plans)]
    if others and not (same_networks and patch_sizes[0] == patch_sizes[1]):
        raise CollabError(
            f"{fold.parent}: all folds of a run share one plans.json, so they must share the networks and the patch "
            f"size; {', '.join(others)} was trained with others. Train under another run_name, or move it away."
        )


def adapt_plans(plans: dict[str, Any], configuration: str, settings: TrainingSettings, trainer_name: str) -> None:
    """Write patch size, batch size and the students' blueprints into `plans`, in place.

    The entry `nnunet_collab` makes the plans.json of the results folder all that prediction needs.

    Raises:
        CollabError: If the configuration does not exist, is a cascade, or cannot take the settings.
    """
    if configuration not in plans["configurations"]:
        raise CollabError(
            f"configuration {configuration!r}: must be one of the plans'; there are "
            f"{', '.join(plans['configurations'])}. Run nnUNetv2_plan_and_preprocess for it."
        )
    entry = plans["configurations"][configuration]
    resolved = PlansManager(plans).get_configuration(configuration).configuration
    if resolved.get("previous_stage") is not None:
        raise CollabError(
            f"configuration {configuration!r}: is a cascade, whose input includes another model's segmentation; "
            f"{trainer_name} trains from images alone. Use 3d_fullres or 3d_lowres."
        )
    dimensions = len(resolved["patch_size"])
    if settings.patch_size is not None:
        if len(settings.patch_size) != dimensions:
            raise CollabError(
                f"setting 'patch_size': {configuration} is {dimensions}D and takes {dimensions} sizes; "
                f"got {list(settings.patch_size)}."
            )
        entry["patch_size"] = resolved["patch_size"] = list(settings.patch_size)
    if settings.batch_size is not None:
        entry["batch_size"] = resolved["batch_size"] = settings.batch_size
    _check_divisible(resolved, settings)
    plans[KEY] = {
        "trainer": trainer_name,
        "settings": to_json(settings),
        "students": {
            s.name: make_blueprint(s.name, s.network, s.arch, resolved["architecture"], resolved["patch_size"])
            for s in settings.students
        },
    }


def _check_divisible(resolved: dict[str, Any], settings: TrainingSettings) -> None:
    """A UNet halves the patch again and again; with a remainder, its skip connections do not fit."""
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
