"""nnU-Net's rule for the batch size, with the unlabeled images counted: what its planner gives for as many cases."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from tiny import make_dataset_json, make_trainer
from tiny_data import full_plans

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_json
from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer
from nnunet_collab.methods.supervised import SupervisedTrainer
from nnunet_collab.training import batch_rule

MEDIAN = [10, 128, 112]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A raw dataset of 3 labeled cases and as many unlabeled ones as wanted, and nnU-Net's plans of it."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    paths = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner"
    monkeypatch.setattr(f"{paths}.nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    monkeypatch.setattr(f"{paths}.nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    monkeypatch.setattr(f"{paths}.maybe_convert_to_dataset_name", lambda name: name)
    monkeypatch.setattr(f"{paths}.get_filenames_of_train_images_and_targets", lambda *_: {})

    def made(unlabeled, *, labeled=3):
        content = {**make_dataset_json(), "numTraining": labeled}
        raw = tmp_path / "nnUNet_raw" / "Dataset001_Tiny"
        (raw / "imagesUn").mkdir(parents=True, exist_ok=True)
        for number in range(unlabeled):
            (raw / "imagesUn" / f"u{number}_0000.nii.gz").touch()
        write_json(raw / "dataset.json", content)
        fingerprint = {"spacings": [[10.0, 3.0, 3.0]] * labeled, "shapes_after_crop": [MEDIAN] * labeled}
        folder = tmp_path / "nnUNet_preprocessed" / "Dataset001_Tiny"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "dataset_fingerprint.json", fingerprint)
        return content

    return made


def planned_by_nnunet(cases, configuration):
    """The entry of plans.json that nnU-Net's planner writes for so many labeled cases."""
    planner = ExperimentPlanner("Dataset001_Tiny")
    planner.dataset_json["numTraining"] = cases
    planner.determine_resampling = lambda *_: (SimpleNamespace(__name__="f"), {}, SimpleNamespace(__name__="f"), {})
    planner.determine_segmentation_softmax_export_fn = lambda *_: (SimpleNamespace(__name__="f"), {})
    planner.determine_normalization_scheme_and_whether_mask_is_used_for_norm = lambda: (
        ["ZScoreNormalization"],
        [False],
    )
    spacing, shape = ([3.0, 3.0], MEDIAN[1:]) if configuration == "2d" else ([10.0, 3.0, 3.0], MEDIAN)
    voxels = float(np.prod(MEDIAN)) * cases
    return planner.get_plans_for_configuration(np.array(spacing), np.array(shape), "x", voxels, {})


def as_json(entry):
    return json.loads(json.dumps(entry, default=lambda value: np.asarray(value).tolist()))


def plans_of(labeled, configurations=("2d", "3d_fullres")):
    entries = {name: as_json(planned_by_nnunet(labeled, name)) for name in configurations}
    return {**full_plans(), "configurations": entries, "experiment_planner_used": "ExperimentPlanner"}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("unlabeled", [0, 20, 67, 2000])
def test_it_is_what_nnunet_would_plan_for_as_many_labeled_cases(dataset, configuration, unlabeled):
    content = dataset(unlabeled)
    plans = plans_of(3)
    found = batch_rule.batch_size_with_unlabeled(plans, plans["configurations"][configuration], content)
    assert found == planned_by_nnunet(3 + unlabeled, configuration)["batch_size"]


def test_more_images_give_larger_batches_until_memory_is_full(dataset):
    content = dataset(0)
    plans = plans_of(3)
    few = batch_rule.batch_size_with_unlabeled(plans, plans["configurations"]["2d"], content)
    many = batch_rule.batch_size_with_unlabeled(plans, plans["configurations"]["2d"], {**content, "numTraining": 70})
    full = batch_rule.batch_size_with_unlabeled(plans, plans["configurations"]["2d"], {**content, "numTraining": 9999})
    assert few == 2 < many <= full


@pytest.mark.parametrize("trainer_class", [SupervisedTrainer, MeanTeacherTrainer])
def test_both_kinds_of_trainers_understand_it(dataset, tmp_path, monkeypatch, trainer_class):
    dataset(67)
    monkeypatch.setattr(batch_rule, "_fits_into_memory", lambda *_: 40)
    plans = copy.deepcopy(full_plans())
    plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] = [2, 16, 16]
    changes = {"students": {}, "batch_size": "with_unlabeled"}
    options = {"changes": changes}
    trainer = make_trainer(trainer_class, tmp_path, monkeypatch, plans=copy.deepcopy(plans), **options)
    # 5 % of (4 + 67) images of 2 x 16 x 16 voxels, in patches of 32 x 32
    assert trainer.batch_size == round(0.05 * 71 * 512 / 1024) == 2
    plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] = [20, 32, 32]
    trainer = make_trainer(trainer_class, tmp_path, monkeypatch, plans=copy.deepcopy(plans), **options)
    assert trainer.batch_size == 40  # all that fits


def test_without_the_raw_dataset_the_rule_says_what_it_needs(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(batch_rule, "recursive_find_python_class", lambda *_: _refusing)
    plans = full_plans()
    plans["configurations"]["2d"]["median_image_size_in_voxels"] = [4, 32, 32]
    plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] = [4, 32, 32]
    with pytest.raises(CollabError, match="which needs the raw dataset and its fingerprint; not there"):
        batch_rule.batch_size_with_unlabeled(plans, plans["configurations"]["2d"], make_dataset_json())


def _refusing(_):
    raise OSError("not there")


def test_an_unknown_planner_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    plans = {**full_plans(), "experiment_planner_used": "NoSuchPlanner"}
    plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] = [4, 32, 32]
    with pytest.raises(CollabError, match="NoSuchPlanner"):
        batch_rule.batch_size_with_unlabeled(plans, plans["configurations"]["2d"], make_dataset_json())
