"""Checks before a training starts: folders, cases, split and batch size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import read_split
from nnunet_collab.training.planning import KEY


def check_environment() -> None:
    """Raise unless nnU-Net's three paths are set.

    Raises:
        CollabError: The message names the missing variable.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        if not os.environ.get(name):
            raise CollabError(
                f"environment variable {name}: must name a folder; it is not set. "
                f"Write e.g. `export {name}=$HOME/nnunet/{name.removeprefix('nnUNet_')}`."
            )


def check_cases(folder: Path, splits: Path | None) -> None:
    """Raise unless there are preprocessed cases for training and validation.

    Args:
        folder: Folder of the configuration's preprocessed cases.
        splits: Path of nnU-Net's `splits_final.json`; nnU-Net writes it if it is missing. None to train with all cases.

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
            f"{folder}: a training needs at least 2 cases, to train and to validate; got 1. "
            f"Add cases to the dataset, then plan and preprocess it again."
        )
    if splits is not None and not splits.is_file() and cases < 5:
        raise CollabError(
            f"{splits}: does not exist, and nnU-Net needs at least 5 cases to split them itself; got {cases}. "
            f'Write the file, one object per fold: [{{"train": ["case1"], "val": ["case2"]}}]; or train fold all.'
        )


def check_processes(configuration: Any, processes: int) -> None:
    """Raise if processes would get batches of unequal size and nnU-Net's Dice gathers the batches.

    Args:
        configuration: nnU-Net's manager of the configuration; its `batch_size` is that of all processes together.
        processes: Number of processes.

    Raises:
        CollabError: If so; the message names valid batch sizes.
    """
    size = configuration.batch_size
    if configuration.batch_dice and size % processes:
        lower = size - size % processes
        nearest = f"{lower} or {lower + processes}" if lower else f"{processes}"
        raise CollabError(
            f"setting 'batch_size': {processes} processes share it, and the Dice loss of this configuration "
            f"(batch_dice) needs the same number of samples in each; got {size}. Set batch_size to {nearest}, or "
            f"change the number of processes."
        )


def unlabeled_in_split(splits: Path, fold: int | str) -> list[str]:
    """Training cases that the split of this fold declares unlabeled (`"unlabeled"` beside `train` and `val`).

    Raises:
        CollabError: If the file is not a valid split.
    """
    if fold == "all" or not splits.is_file():
        return []
    folds = read_split(splits)
    return sorted(folds[int(fold)].get("unlabeled", [])) if int(fold) < len(folds) else []


def check_fold(splits: Path, fold: int | str) -> None:
    """Raise if the file is not a valid split, or if nnU-Net would train with labels of cases declared unlabeled.

    Raises:
        CollabError: If it breaks a rule of `read_split`; or the split has unlabeled cases, and the fold is `all` (every
            case of the dataset) or none of its folds (nnU-Net then splits all cases at random).
    """
    if not splits.is_file():
        return
    folds = read_split(splits)
    if not any(roles.get("unlabeled") for roles in folds):
        return
    if fold == "all" or int(fold) >= len(folds):
        raise CollabError(
            f"{splits}: declares cases unlabeled, but nnU-Net would use their labels in fold {fold}. Train one of the "
            f"folds 0 to {len(folds) - 1}, or make a dataset without those labels: nnunet_collab split --to."
        )


def check_other_folds(fold: Path, plans: dict[str, Any], configuration: str) -> None:
    """Raise if another fold of the run was trained with other networks: the folds share one plans.json.

    Raises:
        CollabError: If so; the message names the folds. The new plans.json would make their models unreadable.
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
