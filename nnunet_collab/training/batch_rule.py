"""nnU-Net's rule for the batch size, with the unlabeled images counted.

nnU-Net fills the GPU, but lets a batch hold no more than 5 % of the voxels of the training images, so that few labeled
images give tiny batches (`ExperimentPlanner.get_plans_for_configuration`). Where unlabeled images train as well, the
dataset is larger than its labels.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import RAW, UNLABELED, case_images

WITH_UNLABELED = "with_unlabeled"


def batch_size_with_unlabeled(plans: dict[str, Any], resolved: dict[str, Any], dataset_json: dict[str, Any]) -> int:
    """What nnU-Net's rule gives for all images of the dataset, labeled or not; at least the planned size.

    Args:
        plans: Content of plans.json.
        resolved: Entry of the configuration, without inheritance, with the patch size of the training.
        dataset_json: Content of dataset.json; `numTraining` counts the cases that a split declares unlabeled, too.

    Raises:
        CollabError: If the raw dataset or nnU-Net's planner is not there, which the rule needs.
    """
    raw = Path(os.environ[RAW], plans["dataset_name"])
    cases = dataset_json["numTraining"] + len(case_images(raw / UNLABELED, dataset_json["file_ending"]))
    whole = plans["configurations"].get("3d_fullres", resolved)  # nnU-Net counts voxels of volumes, also for 2d
    voxels = float(np.prod(whole["median_image_size_in_voxels"], dtype=np.float64)) * cases
    planner = _planner(plans)
    covered = round(voxels * planner.max_dataset_covered / float(np.prod(resolved["patch_size"], dtype=np.float64)))
    fits = _fits_into_memory(planner, resolved, dataset_json)
    return int(max(min(fits, covered), planner.UNet_min_batch_size, resolved["batch_size"]))


def _planner(plans: dict[str, Any]) -> Any:
    """The planner that made the plans, which knows its memory and reference values."""
    name = plans.get("experiment_planner_used", "ExperimentPlanner")
    folder = Path(inspect.getfile(nnunetv2)).parent / "experiment_planning"
    found = recursive_find_python_class(str(folder), name, "nnunetv2.experiment_planning")
    if found is None:
        raise CollabError(
            f"setting 'batch_size': {WITH_UNLABELED!r} asks the planner that made the plans, {name}, and nnU-Net has "
            f"none of that name. Set batch_size to a number."
        )
    try:
        return found(plans["dataset_name"])
    except (OSError, AssertionError, RuntimeError) as error:
        raise CollabError(
            f"setting 'batch_size': {WITH_UNLABELED!r} plans again, which needs the raw dataset and its fingerprint; "
            f"{error}. Make nnUNet_raw name the folder that holds {plans['dataset_name']}, or set batch_size to a "
            f"number."
        ) from error


def _fits_into_memory(planner: Any, resolved: dict[str, Any], dataset_json: dict[str, Any]) -> int:
    """Samples that fit into the planner's target of GPU memory, by its own estimate."""
    flat = len(resolved["patch_size"]) == 2
    architecture = resolved["architecture"]
    channels = dataset_json["channel_names" if "channel_names" in dataset_json else "modality"]
    estimate = planner.static_estimate_VRAM_usage(
        tuple(resolved["patch_size"]),
        len(channels),
        len(dataset_json["labels"]),
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
    )
    reference = planner.UNet_reference_val_2d if flat else planner.UNet_reference_val_3d
    reference *= planner.UNet_vram_target_GB / planner.UNet_reference_val_corresp_GB
    of = planner.UNet_reference_val_corresp_bs_2d if flat else planner.UNet_reference_val_corresp_bs_3d
    number: int = round(reference / estimate * of)
    return number
