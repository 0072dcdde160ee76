"""Runs of other forms: a frozen teacher, a name of its own, other pairs of students, 3d_lowres."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e2e_nnunet import TEST_CASE, TINY, VALIDATION_CASE, Training, differing_tensors, read_json, read_mask

from nnunet_collab.inference.publish import publish_fold

pytestmark = pytest.mark.slow

ONE_EPOCH = {**TINY, "epochs": 1}
SMALL_CNN = {"network": "plans", "arch": {"features_per_stage": [4, 4, 4, 4]}}
SEGFORMER = {"network": "segformer_b0", "optimizer": "adamw", "lr": 3e-4}


@pytest.fixture(scope="session")
def offline(workspace, trainings):
    """The Transformer of the plain 2d training teaches a CNN and does not learn."""
    teacher = trainings["plain", "2d"].student("Transformer")
    frozen = {"Transformer": {"network": "segformer_b0", "frozen": str(teacher)}}
    settings = {**ONE_EPOCH, "run_name": "offline", "students": frozen}
    done = workspace.train("plain", "2d", settings=settings, group="offline")
    return Training(workspace, "plain", "2d", done, "offline", "CTRCLTrainer_offline")


def test_a_frozen_teacher_stays_as_it_was_published_and_is_not_published_again(offline, trainings):
    published = trainings["plain", "2d"].checkpoint("Transformer")["network_weights"]
    run = offline.checkpoint()
    prefix = "students.Transformer.network."
    weights = {k.removeprefix(prefix): v for k, v in run["network_weights"].items() if k.startswith(prefix)}
    assert differing_tensors(weights, published) == []
    assert set(run["optimizer_state"]) == {"CNN"}
    assert sorted(key for key in run["logging"] if key.startswith("loss/")) == [
        "loss/CNN/cfcl_decoder", "loss/CNN/cfcl_encoder", "loss/CNN/rlcl", "loss/CNN/supervised",
    ]  # fmt: skip
    assert {path.name for path in offline.fold.parent.parent.iterdir()} == {
        "CTRCLTrainer_offline__nnUNetPlans__2d", "CTRCLTrainer_offline_CNN__nnUNetPlans__2d",
    }  # fmt: skip


def test_a_named_run_has_folders_of_its_name_which_predict(offline, workspace):
    assert (offline.student("CNN") / "validation" / "summary.json").is_file()
    masks = [
        read_mask(
            workspace.predict("plain", "2d", model, f"predicted/offline/{model}", group="offline") / f"{case}.nii.gz"
        )
        for model in ("CTRCLTrainer_offline", "CTRCLTrainer_offline_CNN")
        for case in (VALIDATION_CASE, TEST_CASE)
    ]
    assert all(mask.ndim == 3 for mask in masks)
    validated = read_mask(offline.student("CNN") / "validation" / f"{VALIDATION_CASE}.nii.gz")
    assert np.array_equal(masks[2], validated)


def test_two_transformers_of_a_cascades_low_resolution(workspace):
    students = [{"name": "One", **SEGFORMER}, {"name": "Two", **SEGFORMER, "lr": 1e-4}]
    settings = {**ONE_EPOCH, "students": students}
    done = workspace.train("plain", "3d_lowres", settings=settings, group="pairs")
    training = Training(workspace, "plain", "3d_lowres", done, "pairs")
    for name in ("One", "Two"):
        assert read_json(training.student(name) / "validation" / "summary.json")["metric_per_case"]
    assert differing_tensors(*(training.checkpoint(name)["network_weights"] for name in ("One", "Two"))) != []


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_two_cnns_of_unequal_size(configuration, in_process, workspace):
    students = [{"name": "Large"}, {"name": "Small", **SMALL_CNN}]
    trainer = in_process("CTRCLTrainer", "plain", configuration, {**ONE_EPOCH, "students": students}, "pairs")
    trainer.initialize()
    start = {name: p.clone() for name, p in trainer.group.named_parameters()}
    trainer.run_training()
    learned = differing_tensors(start, dict(trainer.group.named_parameters()))
    assert learned == sorted(name for name, p in trainer.group.named_parameters() if p.requires_grad)
    fold = workspace.fold("pairs", "plain", configuration)
    for name, folder in zip(("Large", "Small"), publish_fold(fold), strict=True):
        assert folder == workspace.fold("pairs", "plain", configuration, f"CTRCLTrainer_{name}")
        weights = torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"]
        assert max(v.shape[0] for v in weights.values()) == {"Large": 8, "Small": 4}[name]
