"""A frozen student that is several folds: its probabilities are the mean of theirs."""

from __future__ import annotations

import os

import pytest
import torch
from teaching import make_method
from tiny import build_tiny_students, finish_run, make_batch, make_trainer, unet

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import from_json, to_json
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.methods.cross_teaching import CrossTeachingTrainer
from nnunet_collab.methods.ctrcl import CTRCLTrainer
from nnunet_collab.methods.supervised import SupervisedTrainer
from nnunet_collab.networks.blueprint import build_network
from nnunet_collab.training.settings import StudentSettings
from nnunet_collab.training.trainer import CollabTrainer

HEADS = {"plain": 3, "regions": 2}


@pytest.fixture
def folds(tmp_path):
    """Three fold folders of a model with the planned UNet, for a number of output channels."""

    def make(heads=3):
        folders = []
        for fold in range(3):
            torch.manual_seed(fold)
            network = build_network(unet(), 1, heads, deep_supervision=False)
            folder = tmp_path / "model" / f"fold_{fold}"
            folder.mkdir(parents=True)
            with torch.no_grad():
                network.decoder.seg_layers[-1].weight.mul_(1000)  # so that the folds are sure of different things
            torch.save({"network_weights": network.state_dict()}, folder / "checkpoint_final.pth")
            folders.append((folder, network.eval()))
        return folders

    return make


def learner_and(frozen):
    return {"students": [{"name": "CNN"}, {"name": "Teacher", "frozen": frozen}]}


@pytest.mark.parametrize("kind", HEADS)
def test_its_probability_is_the_mean_of_the_folds(kind, folds, tmp_path, monkeypatch):
    models = folds(HEADS[kind])
    changes = learner_and([str(folder) for folder, _ in models])
    trainer = make_trainer(SupervisedTrainer, tmp_path, monkeypatch, kind=kind, changes=changes)
    teacher = trainer.group.train()["Teacher"]
    image = torch.randn(2, 1, 32, 32)
    activate = (lambda z: z.sigmoid()) if kind == "regions" else (lambda z: z.softmax(1))
    with torch.no_grad():
        single = [activate(network(image).double()) for _, network in models]
        want = sum(single) / len(single)
        torch.testing.assert_close(activate(teacher(image).logits.double()), want, rtol=0, atol=1e-6)
    assert (single[0] - want).abs().max() > 0.1
    assert teacher.origin == "frozen, from " + ", ".join(str(folder) for folder, _ in models)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_the_run_learns_resumes_predicts_and_publishes_its_learner(folds, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    models = folds()
    changes = learner_and([str(folder) for folder, _ in models])
    trainer = make_trainer(SupervisedTrainer, tmp_path, monkeypatch, changes=changes)
    before = {name: value.clone() for name, value in trainer.group["Teacher"].state_dict().items()}
    trainer.train_step(make_batch(trainer))
    assert all(torch.equal(value, before[name]) for name, value in trainer.group["Teacher"].state_dict().items())
    fold = finish_run(trainer)
    assert [folder.parent.name.split("__")[0] for folder in publish_fold(fold)] == ["SupervisedTrainer_CNN"]
    for folder, _ in models:
        (folder / "checkpoint_final.pth").unlink()
    again = make_trainer(SupervisedTrainer, tmp_path, monkeypatch, changes=changes, initialize=False)
    again.load_checkpoint(str(fold / "checkpoint_final.pth"))
    assert all(torch.equal(value, before[name]) for name, value in again.group["Teacher"].state_dict().items())
    ensemble = CollabTrainer.build_network_architecture(trainer.plans_manager, None, 1, 3, False)
    ensemble.load_state_dict(checkpoints.read(fold / "checkpoint_final.pth")["network_weights"])
    assert ensemble(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)


def test_it_teaches_where_predictions_are_compared_and_not_where_maps_are(folds, tmp_path, monkeypatch):
    changes = learner_and([str(folder) for folder, _ in folds()])
    trainer = make_method(CrossTeachingTrainer, tmp_path, monkeypatch, changes=changes)
    assert type(trainer.group["Teacher"].network).__name__ == "EnsembleNetwork"
    with pytest.raises(
        CollabError, match="student Teacher: setting 'frozen' must name one folder in this method, which"
    ):
        make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes=changes)


def test_every_folder_that_cannot_teach_is_listed(folds, tmp_path, monkeypatch):
    (first, _), *_ = folds()
    changes = learner_and([str(first), str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(CollabError) as caught:
        make_trainer(SupervisedTrainer, tmp_path, monkeypatch, changes=changes)
    message = str(caught.value)
    assert [f"loading {tmp_path / name} failed: " in message for name in "ab"] == [True, True]
    assert f"loading {first}" not in message


def test_one_folder_in_a_list_is_one_folder(folds):
    (folder, network), *_ = folds()
    group = build_tiny_students(StudentSettings(name="CNN", frozen=(str(folder),)), StudentSettings(name="Two"))
    teacher = group["CNN"].network
    assert all(map(torch.equal, teacher.state_dict().values(), network.state_dict().values()))


@pytest.mark.parametrize(
    ("frozen", "teachers"), [("", ()), ([], ()), ("a", ("a",)), (["a"], ("a",)), (["a", "b"], ("a", "b"))]
)
def test_the_setting_is_a_text_or_a_list_of_texts(frozen, teachers):
    settings = StudentSettings(name="CNN", frozen=frozen)
    assert settings.teachers == teachers
    assert from_json(StudentSettings, to_json(settings)) == settings
    assert bool(settings.frozen) == bool(teachers)


@pytest.mark.parametrize(
    ("frozen", "words"),
    [
        (["a", "a"], "setting 'frozen': must name each folder once (student 'CNN'); got ['a', 'a']"),
        (["a", ""], "must be a text or a list of texts"),
        ([1], "must be a text or a list of texts"),
        (1, "setting 'frozen' must be a text or a list of texts; got 1"),
    ],
)
def test_other_values_are_refused(frozen, words):
    with pytest.raises(CollabError) as caught:
        StudentSettings(name="CNN", frozen=frozen)
    assert words in str(caught.value)
