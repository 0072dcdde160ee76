"""`nnUNetv2_train ... -tr CTRCLTrainer` on every kind of labels: what a finished training leaves behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from e2e_nnunet import CONFIGURATIONS, DATASETS, STUDENTS, VALIDATION_CASE, read_json, read_mask

from nnunet_collab.demo.phantom import LABELS_OF_KIND

pytestmark = pytest.mark.slow

each_training = pytest.mark.parametrize(
    "training",
    [(kind, configuration) for configuration in CONFIGURATIONS for kind in DATASETS],
    indirect=True,
    ids=lambda run: "-".join(run),
)
ITERATIONS = 4  # of the whole run
TERMS = [f"{student}/{term}" for student in STUDENTS for term in ("supervised", "rlcl", "cfcl_encoder", "cfcl_decoder")]


@each_training
def test_leaves_a_complete_nnunet_model_per_student_and_one_of_both(training):
    for folder in (training.fold, *map(training.student, STUDENTS)):
        for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
            assert read_json(folder.parent / name), folder
        for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
            assert (folder / name).is_file(), folder
        summary = read_json(folder / "validation" / "summary.json")
        assert len(summary["metric_per_case"]) == 1
        assert set(summary["foreground_mean"]) >= {"Dice", "IoU"}
        assert [path.name for path in folder.parent.parent.rglob("*.partial")] == []
    assert not (training.fold / "checkpoint_latest.pth").exists()
    run = training.fold.parent.name
    students = {run.replace("CTRCLTrainer", f"CTRCLTrainer_{student}", 1) for student in STUDENTS}
    assert {path.name for path in training.fold.parent.parent.glob(f"*__{training.configuration}")} == {run, *students}
    assert read_json(training.fold.parent / "dataset.json")["labels"] == LABELS_OF_KIND[training.kind]


@each_training
@pytest.mark.parametrize("name", ["checkpoint_final.pth", "checkpoint_best.pth"])
def test_a_published_student_has_its_own_network_and_weights_and_names_a_trainer_that_nnunet_has(training, name):
    run, plans = training.checkpoint(name=name), read_json(training.fold.parent / "plans.json")
    planned = plans["configurations"][training.configuration]["architecture"]
    assert planned["network_class_name"].endswith("PlainConvUNet")
    for student in STUDENTS:
        published = training.checkpoint(student, name)
        own = {k: v for k, v in run["network_weights"].items() if k.startswith(f"students.{student}.network.")}
        assert len(own) == len(published["network_weights"]) > 20
        for key, value in published["network_weights"].items():
            assert torch.equal(value, own[f"students.{student}.network.{key}"]), key
        architecture = read_json(training.student(student).parent / "plans.json")["configurations"][
            training.configuration
        ]["architecture"]
        assert architecture == published["init_args"]["plans"]["configurations"][training.configuration]["architecture"]
        assert (architecture == planned) == (student == "CNN")
        assert architecture["network_class_name"].endswith("SegFormer") == (student == "Transformer")
        assert published["trainer_name"] == "nnUNetTrainer"
        assert published["init_args"]["configuration"] == training.configuration
        assert published["inference_allowed_mirroring_axes"] == run["inference_allowed_mirroring_axes"]
    assert run["trainer_name"] == "CTRCLTrainer"


@each_training
def test_validates_each_student_and_their_mean_on_the_validation_case(training):
    truth = training.workspace.preprocessed(training.kind) / "gt_segmentations" / f"{VALIDATION_CASE}.nii.gz"
    masks = {}
    for name, folder in {"mean": training.fold, **{s: training.student(s) for s in STUDENTS}}.items():
        files = sorted(path.name for path in (folder / "validation").glob("*.nii.gz"))
        assert files == [f"{VALIDATION_CASE}.nii.gz"]
        masks[name] = read_mask(folder / "validation" / files[0])
        assert masks[name].shape == read_mask(truth).shape
        assert set(np.unique(masks[name])) <= {0, 1, 2, 3}
    assert not np.array_equal(masks["CNN"], masks["Transformer"])


@each_training
def test_logs_every_term_of_both_students_and_draws_the_curves(training):
    curves = training.checkpoint()["logging"]
    families = {
        "loss": TERMS,
        "pseudo_dice": STUDENTS,
        "lr": STUDENTS,
    }
    for family, names in families.items():
        logged = {
            key.removeprefix(f"{family}/"): values for key, values in curves.items() if key.startswith(f"{family}/")
        }
        assert sorted(logged) == sorted(names)
        for name, values in logged.items():
            assert len(values) == 2, name
            assert all(math.isfinite(value) for value in values), name
    assert all(len(values) == 2 for values in curves.values()), {key: len(v) for key, v in curves.items()}
    assert all(0 <= value <= 1 for value in curves["agreement"])
    # The terms that are logged are those that were added up.
    for epoch in range(2):
        total = sum(curves[f"loss/{name}"][epoch] for name in TERMS)
        assert curves["train_losses"][epoch] == pytest.approx(total, rel=1e-6)
    assert "logging issue" not in training.done.out  # nnU-Net's words for curves out of step with the epochs
    assert curves["loss/CNN/rlcl"][0] > 0 < curves["loss/Transformer/cfcl_decoder"][0]
    for name in ("collab_progress.png", "progress.png"):
        assert (training.fold / name).read_bytes().startswith(b"\x89PNG"), name


@each_training
def test_stores_the_settings_wherever_they_are_needed(training):
    run, plans = training.checkpoint(), read_json(training.fold.parent / "plans.json")
    settings = run["nnunet_collab"]["settings"]
    assert (settings["epochs"], settings["iterations_per_epoch"], settings["beta"]) == (2, 2, 3.0)
    assert [s["network"] for s in settings["students"]] == ["plans", "segformer_b0"]
    assert plans["nnunet_collab"]["settings"] == settings
    for student in STUDENTS:
        assert training.checkpoint(student)["nnunet_collab"]["settings"] == settings
    log = min(training.fold.glob("training_log_*.txt"))  # each refused training has added one
    assert "'network': 'segformer_b0'" in log.read_text()


@each_training
def test_counts_its_iterations_and_keeps_both_optimizers(training):
    run = training.checkpoint()
    assert run["nnunet_collab"]["iteration"] == ITERATIONS
    assert run["current_epoch"] == 2
    assert set(run["optimizer_state"]) == set(STUDENTS)
    adamw = run["optimizer_state"]["Transformer"]
    assert {int(state["step"]) for state in adamw["state"].values()} == {ITERATIONS}
    assert "momentum_buffer" in run["optimizer_state"]["CNN"]["state"][0]


@each_training
def test_keeps_probabilities_of_every_student_exactly_when_asked_to(training):
    asked = (training.kind, training.configuration) == ("plain", "2d")
    for folder in (training.fold, *map(training.student, STUDENTS)):
        for ending in ("npz", "pkl"):
            assert (folder / "validation" / f"{VALIDATION_CASE}.{ending}").is_file() == asked, folder
