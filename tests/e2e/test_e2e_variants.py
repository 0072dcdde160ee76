"""Runs of other forms: a frozen teacher, a name of its own, other students, 3d_lowres, stock nnU-Net's trainer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from e2e_nnunet import (
    CONFIGURATIONS,
    DATASETS,
    TEST_CASE,
    TINY,
    VALIDATION_CASE,
    Training,
    differing_tensors,
    read_json,
    read_mask,
)
from e2e_semi_supervised import SMALL_CMAFORMER

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
    for model in ("CTRCLTrainer_offline", "CTRCLTrainer_offline_CNN"):
        folder = workspace.predict("plain", "2d", model, f"predicted/offline/{model}", group="offline")
        assert {path.name for path in folder.glob("*.nii.gz")} == {f"{VALIDATION_CASE}.nii.gz", f"{TEST_CASE}.nii.gz"}
    validated = offline.student("CNN") / "validation" / f"{VALIDATION_CASE}.nii.gz"
    assert np.array_equal(read_mask(folder / validated.name), read_mask(validated))


def test_two_transformers_of_a_cascades_low_resolution(workspace):
    students = [{"name": "One", **SEGFORMER}, {"name": "Two", **SEGFORMER, "lr": 1e-4}]
    settings = {**ONE_EPOCH, "students": students}
    done = workspace.train("plain", "3d_lowres", settings=settings, group="pairs")
    training = Training(workspace, "plain", "3d_lowres", done, "pairs")
    for name in ("One", "Two"):
        assert read_json(training.student(name) / "validation" / "summary.json")["metric_per_case"]
    assert differing_tensors(*(training.checkpoint(name)["network_weights"] for name in ("One", "Two"))) != []


@pytest.mark.parametrize(("configuration", "fold"), [("2d", "all"), ("3d_fullres", 1)])
def test_two_cnns_of_unequal_size(configuration, fold, in_process, workspace):
    settings = {**ONE_EPOCH, "students": [{"name": "Large"}, {"name": "Small", **SMALL_CNN}]}
    trainer = in_process("CTRCLTrainer", "plain", configuration, settings, "pairs", fold=fold)
    trainer.initialize()
    start = {name: p.clone() for name, p in trainer.group.named_parameters()}
    trainer.run_training()
    learned = differing_tensors(start, dict(trainer.group.named_parameters()))
    assert learned == sorted(name for name, p in trainer.group.named_parameters() if p.requires_grad)
    own = workspace.fold("pairs", "plain", configuration, fold=fold)
    for name, folder in zip(("Large", "Small"), publish_fold(own), strict=True):
        assert folder == workspace.fold("pairs", "plain", configuration, f"CTRCLTrainer_{name}", fold)
        weights = torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"]
        assert max(v.shape[0] for v in weights.values()) == {"Large": 8, "Small": 4}[name]


@pytest.mark.parametrize("kind", ["ignore", "regions_ignore"])
def test_the_papers_smaller_pair_and_recipe(kind, in_process, workspace):
    """The preset: semantic FPN and SegFormer B0, cross-entropy without deep supervision, light augmentation."""
    small = {
        "epochs": 1,
        "iterations_per_epoch": 2,
        "val_iterations_per_epoch": 1,
        "patch_size": [64, 64],
        "batch_size": 2,
    }
    students = {"CNN": {"pretrained": False}, "Transformer": {"pretrained": False}}
    settings = {"preset": "ctrcl_mobilenetv2_mitb0", **small, "students": students, "run_name": "paper"}
    trainer = in_process("CTRCLTrainer", kind, "2d", settings, "presets")
    trainer.run_training()
    losses = {name: value for name, value in trainer.curves.values.items() if name.startswith("loss/")}
    assert len(losses) == 8
    assert all(np.isfinite(value).all() for value in losses.values())
    cnn, _ = publish_fold(workspace.fold("presets", kind, "2d", "CTRCLTrainer_paper"))
    configuration = read_json(cnn.parent / "plans.json")["configurations"]["2d"]
    assert configuration["patch_size"] == [64, 64]
    assert configuration["architecture"]["network_class_name"].endswith("semantic_fpn.SemanticFPN")


def test_a_residual_encoder_unet_as_planned(in_process, workspace):
    folder = workspace.preprocessed("plain")
    plans = read_json(folder / "nnUNetPlans.json")
    network = plans["configurations"]["2d"]["architecture"]
    network["network_class_name"] = network["network_class_name"].replace("PlainConvUNet", "ResidualEncoderUNet")
    network["arch_kwargs"]["n_blocks_per_stage"] = network["arch_kwargs"].pop("n_conv_per_stage")
    (folder / "residualPlans.json").write_text(json.dumps({**plans, "plans_name": "residualPlans"}))
    trainer = in_process("CTRCLTrainer", "plain", "2d", ONE_EPOCH, "residual", plans="residualPlans")
    trainer.run_training()
    fold = workspace.results("residual") / "CTRCLTrainer__residualPlans__2d" / "fold_0"
    cnn, _ = publish_fold(fold)
    architecture = read_json(cnn.parent / "plans.json")["configurations"]["2d"]["architecture"]
    assert architecture["network_class_name"].endswith("ResidualEncoderUNet")


@pytest.fixture(scope="module")
def cmaformer_plans(workspace):
    """The name of plans whose networks are CMAformers."""
    folder, name = workspace.preprocessed("plain"), "cmaformerPlans"
    plans = read_json(folder / "nnUNetPlans.json")
    for configuration in CONFIGURATIONS:
        planned = plans["configurations"][configuration]["architecture"]
        strides = planned["arch_kwargs"]["strides"]
        plans["configurations"][configuration]["architecture"] = {
            "network_class_name": "nnunet_collab.networks.cmaformer.CMAformer",
            "arch_kwargs": {"strides": strides, **SMALL_CMAFORMER},
            "_kw_requires_import": [],
        }
    (folder / f"{name}.json").write_text(json.dumps({**plans, "plans_name": name}))
    return name


def test_stock_nnunet_trains_a_cmaformer_that_plans_describe(cmaformer_plans, workspace):
    trainer = "nnUNetTrainer_1epoch"
    model = (DATASETS["plain"], "2d", 0, "-tr", trainer, "-p", cmaformer_plans)
    workspace.run("nnUNetv2_train", *model, "-device", "cpu", group="cmaformer")
    fold = workspace.results("cmaformer") / f"{trainer}__{cmaformer_plans}__2d" / "fold_0"
    assert read_json(fold / "validation" / "summary.json")["foreground_mean"]["Dice"] > 0.2


def test_stock_nnunet_steps_a_cmaformer_in_3d_and_finds_it_again(cmaformer_plans, in_process):
    options = {"group": "cmaformer", "plans": cmaformer_plans}
    stock, again = (in_process("nnUNetTrainer", "plain", "3d_fullres", **options) for _ in range(2))
    stock.num_epochs, stock.num_iterations_per_epoch, stock.num_val_iterations_per_epoch = 1, 2, 1
    stock.initialize()
    start = {name: value.clone() for name, value in stock.network.state_dict().items()}
    stock.run_training()
    assert differing_tensors(stock.network.state_dict(), start) == sorted(start)
    again.load_checkpoint(f"{stock.output_folder}/checkpoint_final.pth")
    assert differing_tensors(again.network.state_dict(), stock.network.state_dict()) == []


def test_a_model_of_stock_nnunet_teaches(in_process, workspace):
    stock = in_process("nnUNetTrainer", "plain", "3d_fullres", group="taught")
    stock.initialize()
    stock.save_checkpoint(f"{stock.output_folder}/checkpoint_final.pth")
    settings = {**ONE_EPOCH, "students": {**TINY["students"], "CNN": {"frozen": stock.output_folder}}}
    trainer = in_process("CTRCLTrainer", "plain", "3d_fullres", settings, "taught")
    trainer.run_training()
    assert differing_tensors(trainer.group["CNN"].network.state_dict(), stock.network.state_dict()) == []
    (published,) = publish_fold(workspace.fold("taught", "plain", "3d_fullres"))
    assert published.parent.name == "CTRCLTrainer_Transformer__nnUNetPlans__3d_fullres"
