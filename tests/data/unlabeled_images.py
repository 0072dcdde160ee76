"""Raw datasets with unlabeled images, and their preprocessing, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tiny

from nnunet_collab.core.files import write_json
from nnunet_collab.core.nnunet_folders import case_images
from nnunet_collab.data.unlabeled_preprocessing import (
    preprocess_cases,
    unlabeled_folder,
)

NAME = "Dataset007_Tiny"
DATASET_JSON = {**tiny.make_dataset_json(), "channel_names": {"0": "T1", "1": "T2"}}
SHAPE = (4, 12, 10)  # z, y, x
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def make_plans():
    """Plans of two channels whose spacing is that of the images; one configuration inherits from another."""
    plans = {**tiny.make_plans(), "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    plans["foreground_intensity_properties_per_channel"] = {str(c): {"mean": 1.0, "std": 2.0} for c in range(2)}
    for name in ("2d", "3d_fullres"):
        entry = plans["configurations"][name]
        entry |= {"normalization_schemes": ["ZScoreNormalization", "NoNormalization"], "use_mask_for_norm": [False] * 2}
        for what in ("data", "seg", "probabilities"):
            entry[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
            entry[f"resampling_fn_{what}_kwargs"] = {**RESAMPLING, "is_seg": what == "seg", "order": 1}
    plans["configurations"]["3d_bs4"] = {"inherits_from": "3d_fullres", "batch_size": 4}
    return plans


def save_image(path, voxels, spacing_mm=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_mm)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def make_case(folder, case, seed, spacing_mm=(1.0, 1.0, 1.0)):
    """Two channels of noise inside a border of zeros two voxels wide; returns them, (2, z, y, x)."""
    voxels = np.zeros((2, *SHAPE), np.float32)
    voxels[:, :, 2:-2, 2:-2] = np.random.default_rng(seed).uniform(1, 9, (2, SHAPE[0], SHAPE[1] - 4, SHAPE[2] - 4))
    for channel in range(2):
        save_image(folder / f"{case}_{channel:04d}.nii.gz", voxels[channel], spacing_mm)
    return voxels


def make_dataset(root, cases=("a", "b", "c")):
    """A raw dataset with unlabeled cases alone, and its plans; returns both folders."""
    raw, preprocessed = root / "nnUNet_raw" / NAME, root / "nnUNet_preprocessed" / NAME
    for seed, case in enumerate(cases):
        make_case(raw / "imagesUn", case, seed)
    preprocessed.mkdir(parents=True)
    write_json(raw / "dataset.json", DATASET_JSON)
    write_json(preprocessed / "dataset.json", DATASET_JSON)
    write_json(preprocessed / "nnUNetPlans.json", make_plans())
    return raw, preprocessed


def preprocess(raw, preprocessed, cases=None, configuration="2d", processes=1, plans=None):
    images = case_images(raw / "imagesUn", ".nii.gz")
    todo = {case: images[case] for case in cases or images}
    folder = unlabeled_folder(preprocessed, "nnUNetPlans_2d" if configuration == "2d" else "nnUNetPlans_3d")
    preprocess_cases(folder, todo, plans or make_plans(), configuration, DATASET_JSON, processes=processes)
    return folder


def contents(folder):
    """Relative path -> bytes of everything below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
