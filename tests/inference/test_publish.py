"""Published students are ordinary nnU-Net models, which nnU-Net alone rebuilds and predicts with."""

from __future__ import annotations

import json

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny import finish_run, make_batch, make_trainer, unet

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.inference.publish import publish_fold, student_folder
from nnunet_collab.methods.ctrcl import CTRCLTrainer

CNN, TRANSFORMER = "CTRCLTrainer_CNN__nnUNetPlans__2d", "CTRCLTrainer_Transformer__nnUNetPlans__2d"


def stock_network(folder, checkpoint):
    """The network as nnU-Net's predictor rebuilds it, with the published weights loaded strictly."""
    plans = PlansManager(json.loads((folder / "plans.json").read_text()))
    configuration = plans.get_configuration(checkpoint["init_args"]["configuration"])
    dataset = json.loads((folder / "dataset.json").read_text())
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        len(dataset["channel_names"]),
        plans.get_label_manager(dataset).num_segmentation_heads,
        allow_init=True,
        deep_supervision=False,
    )
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval()


def test_each_student_gets_a_folder_of_nnunets_own_layout(fold):
    written = publish_fold(fold)
    results = fold.parents[1]
    assert written == [results / CNN / "fold_0", results / TRANSFORMER / "fold_0"]
    for folder in written:
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint_best.pth", "checkpoint_final.pth"]
        assert sorted(path.name for path in folder.parent.iterdir()) == [
            "dataset.json", "dataset_fingerprint.json", "fold_0", "plans.json"
        ]  # fmt: skip
        for name in ("dataset.json", "dataset_fingerprint.json"):
            assert json.loads((folder.parent / name).read_text()) == json.loads((fold.parent / name).read_text())


def test_plans_describe_the_students_network_and_are_otherwise_the_runs(fold):
    publish_fold(fold)
    run = json.loads((fold.parent / "plans.json").read_text())
    for name, architecture in run["nnunet_collab"]["students"].items():
        own = json.loads((student_folder(fold.parent, name) / "plans.json").read_text())
        assert own["configurations"]["2d"].pop("architecture") == architecture
        assert own["nnunet_collab"].pop("student") == name
        expected = json.loads((fold.parent / "plans.json").read_text())
        expected["configurations"]["2d"].pop("architecture")
        assert own == expected
    assert run["nnunet_collab"]["students"]["CNN"] == unet()


@pytest.mark.parametrize("student", ["CNN", "Transformer"])
@pytest.mark.parametrize("file", ["checkpoint_final.pth", "checkpoint_best.pth"])
def test_nnunet_rebuilds_it_strictly_and_its_logits_are_bit_equal(fold, trainer, student, file):
    folder = publish_fold(fold)[["CNN", "Transformer"].index(student)]
    checkpoint = torch.load(folder / file, weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["inference_allowed_mirroring_axes"] == (0, 1)
    assert checkpoint["init_args"]["configuration"] == "2d"
    network = stock_network(folder.parent, checkpoint)
    trainer.set_deep_supervision_enabled(False)
    trained = trainer.group[student].network.eval()
    image = make_batch(trainer)["data"]
    with torch.no_grad():
        assert torch.equal(network(image), trained(image))


def test_a_published_checkpoint_says_where_it_comes_from(fold, trainer):
    checkpoint = checkpoints.load(publish_fold(fold)[0] / "checkpoint_final.pth")
    ours = checkpoint["nnunet_collab"]
    assert (ours["student"], ours["trained_by"], ours["iteration"]) == ("CNN", "CTRCLTrainer", 1)
    assert ours["settings"] == trainer.plans_manager.plans["nnunet_collab"]["settings"]
    assert ours["weights_from"]["CNN"] == "random initialization"
    # Neither what continues the training nor the names of the cases.
    assert ours.keys() == {"settings", "iteration", "weights_from", "student", "trained_by"}
    assert checkpoint["optimizer_state"] == {}
    assert checkpoint["init_args"]["plans"]["configurations"]["2d"]["architecture"] == unet()


def test_one_student_alone_and_a_run_without_best_checkpoint(trainer):
    fold = finish_run(trainer, files=["checkpoint_final.pth"])
    (folder,) = publish_fold(fold, ["Transformer"])
    assert [path.name for path in folder.iterdir()] == ["checkpoint_final.pth"]
    assert not (fold.parents[1] / CNN).exists()


def test_publishing_again_replaces_what_was_published(fold, trainer):
    first = publish_fold(fold)
    trainer.train_step(make_batch(trainer))
    finish_run(trainer)
    assert publish_fold(fold) == first
    loaded = checkpoints.load(first[0] / "checkpoint_final.pth")
    assert loaded["nnunet_collab"]["iteration"] == 2


def test_frozen_students_are_not_published(fold, tmp_path, monkeypatch):
    teacher = publish_fold(fold)[0]
    changes = {
        "students": {"CNN": {"frozen": str(teacher)}, "Transformer": {"network": "segformer_b0"}},
        "run_name": "kd",
    }
    trainer = make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes=changes)
    trainer.train_step(make_batch(trainer))
    offline = finish_run(trainer)
    assert offline.parent.name == "CTRCLTrainer_kd__nnUNetPlans__2d"
    assert [path.parent.name for path in publish_fold(offline)] == ["CTRCLTrainer_kd_Transformer__nnUNetPlans__2d"]
    with pytest.raises(CollabError, match=r"has no student CNN to publish; it has Transformer\."):
        publish_fold(offline, ["CNN"])


def test_the_only_fold_may_be_replaced_by_another_network(fold, tmp_path, monkeypatch):
    publish_fold(fold)
    wider = {
        "students": {"CNN": {"arch": {"features_per_stage": [4, 4, 4, 4]}}, "Transformer": {"network": "segformer_b0"}}
    }
    again = finish_run(make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes=wider))
    folder = publish_fold(again)[0]
    stock_network(folder.parent, torch.load(folder / "checkpoint_final.pth", weights_only=True))
