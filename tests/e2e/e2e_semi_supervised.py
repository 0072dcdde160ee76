"""Datasets with unlabeled images, and copies of them in which the labels of unlabeled cases differ."""

from __future__ import annotations

import json
import pickle
import shutil

import blosc2
import numpy as np
from e2e_nnunet import CONFIGURATIONS, DATASETS, KILLED_TRAIN, Training, Workspace, read_json, shrink

from nnunet_collab.demo.phantom import write_dataset

KINDS = ("plain", "ignore", "regions")
CASES = [f"phantomTr{number:03d}" for number in range(5)]
SPLIT = {"train": CASES[:2], "unlabeled": CASES[2:4], "val": CASES[4:]}
WHOLE_PLANS = "planned.json"  # the plans as nnU-Net made them, before they were made tiny
CNN = ("CNN",)
STUDENTS = {
    "SupervisedTrainer": CNN, "CrossTeachingTrainer": ("CNN", "Transformer"), "CPSTrainer": ("CNN1", "CNN2"),
    "MeanTeacherTrainer": CNN, "UAMTTrainer": CNN, "FixMatchTrainer": CNN, "UniMatchTrainer": CNN,
    "CrossMatchTrainer": CNN, "CRLNTrainer": CNN, "LDCTrainer": CNN, "BCPTrainer": CNN,
    "SelfTrainingTrainer": CNN, "CMAformerTrainer": ("CMAformer",),
}  # fmt: skip
SUPERVISED = ("SupervisedTrainer", "CMAformerTrainer")  # without unlabeled images
SMALL_CMAFORMER = {"features": [4, 4, 6, 8, 8, 8], "num_heads": 2, "num_layers": 1}
# Small networks, and thresholds that two iterations reach, so that the unlabeled images teach.
OWN = {
    "CrossTeachingTrainer": {"students": {"Transformer": {"network": "segformer_b0"}}},
    "FixMatchTrainer": {"tau": 0.3},
    "UniMatchTrainer": {"tau": 0.3},
    "CrossMatchTrainer": {"tau": 0.3},
    # Labels are rectified from the second epoch on.
    "CRLNTrainer": {
        "tau": 0.3,
        "tau_weak": 0.28,
        "rectify_from_iteration": 2,
        "prototypes": 3,
        "anchors": 8,
        "negatives": 4,
    },
    "CMAformerTrainer": {"students": {"CMAformer": {"arch": SMALL_CMAFORMER}}},
}


def settings_of(trainer, **changes):
    small = {"epochs": 2, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "save_every": 1}
    return {**small, **OWN.get(trainer, {}), **changes}


def make_workspace(root):
    """Datasets of five labeled cases, two of which every fold declares unlabeled, and two in imagesUn."""
    workspace = Workspace(root)
    small = {"shape": (6, 48, 48), "spacing_mm": (8, 3, 3)}
    for number, kind in enumerate(KINDS):
        folder = root / "raw" / workspace.dataset(kind)
        write_dataset(folder, n_train=5, n_test=1, n_unlabeled=2, seed=number, kind=kind, **small)
    numbers = [DATASETS[kind] for kind in KINDS]
    planned = ("-d", *numbers, "-c", *CONFIGURATIONS, "-np", 1, 1, "-npfp", 1)
    workspace.run("nnUNetv2_plan_and_preprocess", *planned, workers=1)
    for kind in KINDS:
        folder = workspace.preprocessed(kind)
        shutil.copy(folder / "nnUNetPlans.json", folder / WHOLE_PLANS)
        shrink(folder / "nnUNetPlans.json")
        (folder / "splits_final.json").write_text(json.dumps([SPLIT]))
        for configuration in CONFIGURATIONS:
            plans = read_json(folder / "nnUNetPlans.json")
            plans["configurations"][configuration]["batch_size"] = 2
            (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
        arguments = ("preprocess_unlabeled", "-d", DATASETS[kind], "-c", *CONFIGURATIONS, "-np", 1)
        workspace.run("python", "-m", "nnunet_collab", *arguments)
        inputs = root / "inputs" / kind
        raw = root / "raw" / workspace.dataset(kind)
        shutil.copytree(raw / "imagesTs", inputs)
        shutil.copy(raw / "imagesTr" / f"{SPLIT['val'][0]}_0000.nii.gz", inputs)
    return workspace


def copy_of(workspace, root, change):
    """Another workspace, where `change(image, labels)` was called for every preprocessed unlabeled case.

    Args:
        workspace: The original.
        root: New folder.
        change: Gets the path of a case without ending, and the files that hold its label, in any form.
    """
    for name in ("raw", "preprocessed"):
        shutil.copytree(workspace.root / name, root / name)
    for kind in KINDS:
        preprocessed, raw = root / "preprocessed" / workspace.dataset(kind), root / "raw" / workspace.dataset(kind)
        for configuration in CONFIGURATIONS:
            folder = preprocessed / f"nnUNetPlans_{configuration}"
            for case in SPLIT["unlabeled"]:
                change(folder / case)
            for case in ("phantomUn000", "phantomUn001"):
                change(folder.with_name(f"{folder.name}_imagesUn") / case)
        for case in SPLIT["unlabeled"]:
            for place in (preprocessed / "gt_segmentations", raw / "labelsTr"):
                change(place / case)
    return Workspace(root)


def replace_by_garbage(case):
    """Labels that can be read and are wrong, places of classes that do not exist, and files that are none."""
    label, properties, image = (case.with_name(case.name + end) for end in ("_seg.b2nd", ".pkl", ".nii.gz"))
    if image.exists():
        image.write_bytes(b"garbage")
        return
    shape = blosc2.open(str(label), mode="r").shape
    label.unlink()
    random = np.random.default_rng(0).integers(-1, 5, shape).astype(np.int16)
    blosc2.asarray(random, urlpath=str(label))
    content = pickle.loads(properties.read_bytes())
    content["class_locations"] = {key: np.full((3, 4), 10**6) for key in range(6)}
    properties.write_bytes(pickle.dumps(content))


def delete(case):
    """The label and the properties of a case; of imagesUn only what must not be read."""
    ends = ("_seg.b2nd", ".pkl", ".nii.gz")
    if "imagesUn" in case.parent.name:
        return  # whether a case is whole is seen by its files
    for path in (case.with_name(case.name + end) for end in ends):
        path.unlink(missing_ok=True)


def train(
    workspace, trainer, kind, configuration, *flags, group="results", killed_at=None, workers=0, new=False, **changes
):
    """`nnUNetv2_train` on the CPU; with `killed_at` it is killed there, as by `kill -9`."""
    start = ("nnUNetv2_train",) if killed_at is None else (KILLED_TRAIN, killed_at)
    arguments = (DATASETS[kind], configuration, 0, "-tr", trainer, "-device", "cpu", *flags)
    settings = settings_of(trainer, **changes)
    fails = killed_at is not None
    done = workspace.run(*start, *arguments, settings=settings, group=group, workers=workers, fails=fails, new=new)
    return Training(workspace, kind, configuration, done, group, trainer)
