"""A preprocessed dataset of single-intensity images, so that every patch tells which case it comes from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from tiny import make_plans

from nnunet_collab.core.files import write_json
from nnunet_collab.data.unlabeled_preprocessing import RECORD, preprocessing_fingerprint

SHAPE = (6, 40, 40)
LABELED, SPLIT_UNLABELED, VALIDATION, EXTRA = {"a": 10, "b": 11}, {"u": 20, "v": 21}, {"x": 30}, {"p": 40, "q": 41}
FOLD = {"train": list(LABELED), "val": list(VALIDATION), "unlabeled": list(SPLIT_UNLABELED)}


def full_plans():
    """`make_plans` with what the fingerprint of the preprocessing is made of."""
    return {**make_plans(), "transpose_forward": [0, 1, 2], "foreground_intensity_properties_per_channel": {}}


def class_locations(labels):
    """As nnU-Net stores them, for labels 1 and 2, and for annotated voxels."""
    places = {k: np.argwhere(labels == k) for k in (1, 2)}
    return {**places, (-1, 0, 1, 2): np.argwhere(labels != 3)}


def make_labels(kind="plain"):
    """`(1, z, y, x)`: both classes, and with an ignore label everything above slice 0."""
    labels = np.zeros((1, *SHAPE), np.int16)
    labels[:, :, 8:30, 8:30] = 1
    labels[:, :, 12:20, 12:20] = 2
    if "ignore" in kind:
        labels[:, :, :, :20] = 3
    return labels


def save_case(folder, case, value, labels):
    folder.mkdir(parents=True, exist_ok=True)
    image = np.full((1, *SHAPE), value, np.float32)
    properties = {"class_locations": class_locations(labels)}
    whole = {name: image.shape for name in ("chunks", "blocks", "chunks_seg", "blocks_seg")}
    nnUNetDatasetBlosc2.save_case(image, labels, properties, str(folder / case), **whole)


def write_data(root, plans, dataset_json, *, configuration="2d", kind="plain", fold=FOLD, extra=EXTRA):
    """All cases under `root/nnUNet_preprocessed`; those of `extra` as `preprocess_unlabeled` leaves them."""
    base = Path(root, "nnUNet_preprocessed", "Dataset001_Tiny")
    own = base / plans["configurations"][configuration]["data_identifier"]
    for case, value in {**LABELED, **SPLIT_UNLABELED, **VALIDATION}.items():
        save_case(own, case, value, make_labels(kind))
    beside = own.with_name(f"{own.name}_imagesUn")
    for case, value in extra.items():
        save_case(beside, case, value, np.zeros((1, *SHAPE), np.int16))
    if extra:
        write_json(beside / RECORD, {"plans": preprocessing_fingerprint(plans, configuration, dataset_json)})
    (base / "gt_segmentations").mkdir(exist_ok=True)
    for case in fold["val"]:
        (base / "gt_segmentations" / f"{case}.nii.gz").touch()
    write_json(base / "splits_final.json", [fold])
    return own


def delete_labels(folder, cases):
    for case in cases:
        os.remove(folder / f"{case}_seg.b2nd")
        os.remove(folder / f"{case}.pkl")
