"""nnU-Net's rule for the batch size, where unlabeled images count as well.

nnU-Net fills the GPU, but a batch holds at most 5 % of the voxels of the training images. A few labeled images
therefore give very small batches (`ExperimentPlanner.get_plans_for_configuration`). If unlabeled images are used for
training as well, the dataset is larger than its labeled part.
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
    """Batch size by nnU-Net's rule for all images of the dataset, labeled or not; at least the planned size.

    Args:
        plans: Content of plans.json.
        resolved: The configuration's entry in the plans, with inheritance resolved and the patch size of the training.
        dataset_json: Content of dataset.json; `numTraining` includes the cases that a split declares unlabeled.

    Raises:
        CollabError: If the raw dataset or nnU-Net's planner is missing. The rule needs both.
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
    """The planner that made the plans. It holds the memory target and the reference values."""
    name = plans.get("experiment_planner_used", "ExperimentPlanner")
    folder = Path(inspect.getfile(nnunetv2)).parent / "experiment_planning"
    found = recursive_find_python_class(str(folder), name, "nnunetv2.experiment_planning")
    if found is None:
        raise CollabError(
            f"setting 'batch_size': {WITH_UNLABELED!r} needs the planner that made the plans, {name}, and nnU-Net has "
            f"no planner of that name. Set batch_size to a number."
        )
    try:
        return found(plans["dataset_name"])
    except (OSError, AssertionError, RuntimeError) as error:
        raise CollabError(
            f"setting 'batch_size': {WITH_UNLABELED!r} repeats the planning, which needs the raw dataset and its "
            f"fingerprint; "
            f"{error}. Set nnUNet_raw to the folder that holds {plans['dataset_name']}, or set batch_size to a "
            f"number."
        ) from error


def _fits_into_memory(planner: Any, resolved: dict[str, Any], dataset_json: dict[str, Any]) -> int:
    """Number of samples that fit into the planner's target of GPU memory, by the planner's own estimate."""
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
