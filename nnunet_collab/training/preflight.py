"""What is refused before a training starts: missing folders, cases, splits and batches that cannot be trained."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import read_split
from nnunet_collab.training.planning import KEY


def check_environment() -> None:
    """Raise unless nnU-Net's three paths are set, and if weights are to be loaded that do not fit our networks.

    Raises:
        CollabError: Naming the variable that is missing, or -pretrained_weights.
    """
    # nnU-Net tells no trainer of this argument, but loads the weights by the names of its own single network.
    given = [word.partition("=")[0] for word in sys.argv[1:]]
    if any(len(word) > 3 and "-pretrained_weights".startswith(word) for word in given):
        raise CollabError(
            "-pretrained_weights: this is a trainer of several students, which takes weights per student; nnU-Net "
            "would look for those of one network. Leave it out; in nnUNet_collab_settings set 'pretrained' of a "
            "student for ImageNet weights, or 'frozen' for a trained model that teaches without learning."
        )
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
    """Training cases that the split of this fold declares unlabeled (`"unlabeled"` beside `train` and `val`).

    Raises:
        CollabError: If the file is no split.
    """
    if fold == "all" or not splits.is_file():
        return []
    folds = read_split(splits)
    return sorted(folds[int(fold)].get("unlabeled", [])) if int(fold) < len(folds) else []


def check_fold(splits: Path, fold: int | str) -> None:
    """Raise if the file is no split, or nnU-Net would train with the labels of cases that it declares unlabeled.

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
            f"{splits}: declares cases unlabeled, and nnU-Net would use their labels in fold {fold}. Train one of the "
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
