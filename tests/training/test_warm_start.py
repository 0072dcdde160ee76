"""`start_from` and -pretrained_weights: started, recorded, refused in bad combinations, and never loaded twice."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from tiny import finish_run, make_batch, make_dataset_json, make_trainer, unet
from tiny_data import full_plans, write_data

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_json
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.methods.ctrcl import CTRCLTrainer
from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer
from nnunet_collab.methods.supervised import SupervisedTrainer
from nnunet_collab.networks.blueprint import build_network
from nnunet_collab.training.settings import StudentSettings

ONE = {"students": [{"name": "CNN"}]}


def students(cnn=None, transformer=None):
    return {"students": {"CNN": cnn or {}, "Transformer": {"network": "segformer_b0", **(transformer or {})}}}


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # waiting for the disk proves nothing here
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train"])


@pytest.fixture
def stock(tmp_path):
    """A fold folder of a model of nnU-Net with the planned UNet."""
    torch.manual_seed(7)
    weights = build_network(unet(), 1, 3, deep_supervision=True).state_dict()
    folder = tmp_path / "stock" / "fold_0"
    folder.mkdir(parents=True)
    torch.save({"network_weights": weights, "trainer_name": "nnUNetTrainer"}, folder / "checkpoint_final.pth")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A fold folder of a run of this package with two students that have learned."""
    trainer = make_trainer(CTRCLTrainer, tmp_path / "first", monkeypatch)
    trainer.train_step(make_batch(trainer))
    return finish_run(trainer)


def weights_of(path, student=""):
    weights = torch.load(path, weights_only=True)["network_weights"]
    prefix = f"students.{student}.network." if student else ""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def same(network, weights):
    state = network.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(value, weights[name]) for name, value in state.items())


def logged(trainer):
    return Path(trainer.log_file).read_text()


# ---------------------------------------------------------------- start_from


@pytest.mark.parametrize("trainer_class", [CTRCLTrainer, MeanTeacherTrainer])
def test_a_student_starts_from_a_model_and_the_record_says_so(trainer_class, stock, tmp_path, monkeypatch):
    path, start = stock / "checkpoint_final.pth", {"start_from": str(stock)}
    changes = students(start) if trainer_class is CTRCLTrainer else {"students": {"CNN": start}}
    trainer = make_trainer(trainer_class, tmp_path, monkeypatch, changes=changes)
    assert same(trainer.group["CNN"].network, weights_of(path))
    total = len(list(trainer.group["CNN"].network.parameters()))
    text = f"100.0% of the encoder's parameters, {total} of {total} tensors"
    origin = trainer.group["CNN"].origin
    assert origin.startswith(f"started from {path} (nnUNetTrainer; SHA-256 ")
    assert origin.endswith(text)
    assert f"student CNN: {origin}" in logged(trainer)
    assert trainer.plans_manager.plans["nnunet_collab"]["weights_from"]["CNN"] == origin
    if trainer_class is MeanTeacherTrainer:
        assert same(trainer.teacher.group["CNN"].network, weights_of(path))


def test_it_goes_on_learning_and_its_published_model_names_the_source(stock, tmp_path, monkeypatch):
    trainer = make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes=students({"start_from": str(stock)}))
    before = weights_of(stock / "checkpoint_final.pth")
    trainer.train_step(make_batch(trainer))
    moved = [n for n, p in trainer.group["CNN"].network.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == sum(p.requires_grad for p in trainer.group["CNN"].network.parameters())
    fold = finish_run(trainer)
    published = publish_fold(fold)[0]
    origin = trainer.group["CNN"].origin
    assert checkpoints.load(fold / "checkpoint_final.pth")["nnunet_collab"]["weights_from"]["CNN"] == origin
    assert checkpoints.load(published / "checkpoint_final.pth")["nnunet_collab"]["weights_from"]["CNN"] == origin
    ours = json.loads((published.parent / "plans.json").read_text())["nnunet_collab"]
    assert ours["weights_from"]["CNN"] == origin
    assert ours["settings"]["students"][0]["start_from"] == str(stock)


def test_every_student_of_a_run_is_found_by_its_name(run, tmp_path, monkeypatch):
    path, start = run / "checkpoint_final.pth", {"start_from": str(run)}
    trainer = make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes=students(start, start))
    for name in ("CNN", "Transformer"):
        assert same(trainer.group[name].network, weights_of(path, name))
        assert "(CTRCLTrainer; " in trainer.group[name].origin


def test_what_was_not_taken_is_listed_in_the_log(tmp_path, monkeypatch):
    torch.manual_seed(7)
    weights = build_network(unet(), 1, 5, deep_supervision=True).state_dict()
    torch.save({"network_weights": weights}, tmp_path / "five.pth")
    trainer = make_trainer(
        CTRCLTrainer, tmp_path, monkeypatch, changes=students({"start_from": str(tmp_path / "five.pth")})
    )
    line = (
        "student CNN: not taken from five.pth: other shape, stays random (6): decoder.seg_layers.0.weight (file "
        "(5, 8, 1, 1), here (3, 8, 1, 1)), "
    )
    assert line in logged(trainer)


def test_all_students_that_cannot_start_are_listed_at_once(stock, tmp_path, monkeypatch):
    torch.save({"weights": 1}, tmp_path / "none.pth")
    changes = students({"start_from": str(tmp_path / "none.pth")}, {"start_from": str(stock)})
    with pytest.raises(CollabError) as caught:
        make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes=changes)
    message = str(caught.value)
    assert "student 'CNN', setting 'start_from': " in message
    assert "must be a checkpoint of nnU-Net, of this package or of nnssl" in message
    assert f"student 'Transformer', setting 'start_from': {stock / 'checkpoint_final.pth'} (nnUNetTrainer)" in message
    assert "0.0% do (0 of " in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"start_from": "a", "frozen": "b"}, "setting 'frozen and start_from': cannot be combined: the weights of"),
        ({"start_from": "a", "pretrained": True}, "setting 'pretrained and start_from': cannot be combined"),
        ({"start_from": "a", "pretrained": "b"}, "setting 'pretrained and start_from': cannot be combined"),
        ({"frozen": ["a", "b"], "pretrained": True}, "setting 'frozen and pretrained': cannot be combined"),
        ({"start_from": 1}, "setting 'start_from' must be a text; got 1"),
        ({"start_from": ["a"]}, "setting 'start_from' must be a text"),
        ({"pretrained": 1}, "setting 'pretrained' must be true, false or the path of a file; got 1"),
        ({"pretrained": ""}, "setting 'pretrained' must be true, false or the path of a file; got ''"),
    ],
)
def test_weights_have_one_source(values, words):
    with pytest.raises(CollabError) as caught:
        StudentSettings(name="CNN", **values)
    assert words in str(caught.value)


# ---------------------------------------------------------------- going on


def learned(trainer, first, last):
    for seed in range(first, last):
        trainer.train_step(make_batch(trainer, seed=seed))
    return trainer


@pytest.mark.parametrize("by_flag", [False, True])
def test_a_continued_run_loads_nothing_anew_and_equals_the_uninterrupted_one(by_flag, run, tmp_path, monkeypatch):
    path = run / "checkpoint_final.pth"
    start = {} if by_flag else {"start_from": str(path)}
    changes = students(start, start)
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", *(["-pretrained_weights", str(path)] if by_flag else [])])

    def begin(name, initialize=True):
        trainer = make_trainer(CTRCLTrainer, tmp_path / name, monkeypatch, changes=changes, initialize=initialize)
        if initialize:
            trainer.network = trainer.wrapped  # as on_train_start does
        return trainer

    uninterrupted = learned(begin("a"), 0, 4)
    killed = begin("b")
    assert same(killed.group["CNN"].network, weights_of(path, "CNN"))
    learned(killed, 0, 2)
    latest = tmp_path / "b" / "checkpoint_latest.pth"
    killed.save_checkpoint(str(latest))
    path.unlink()
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "--c"])
    continued = begin("b", initialize=False)
    continued.load_checkpoint(str(latest))
    continued.set_deep_supervision_enabled(True)
    assert continued.network is continued.wrapped
    checkpoints.restore_random_states(continued._resume_states)
    learned(continued, 2, 4)
    theirs, ours = (checkpointing_content(trainer, tmp_path) for trainer in (uninterrupted, continued))
    assert_equal(ours, theirs)
    assert "started from" in continued.group["Transformer"].origin


def checkpointing_content(trainer, folder):
    trainer.save_checkpoint(str(folder / "content.pth"))
    content = checkpoints.load_training(folder / "content.pth")
    ours = content["nnunet_collab"]
    kept = {key: content[key] for key in ("network_weights", "optimizer_state")}
    return {**kept, **{key: ours[key] for key in ("settings", "iteration", "weights_from", "method")}}


def assert_equal(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{index}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


def test_a_run_is_not_continued_with_another_start(stock, tmp_path, monkeypatch):
    first = make_trainer(CTRCLTrainer, tmp_path, monkeypatch)
    first.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    other = make_trainer(
        CTRCLTrainer, tmp_path, monkeypatch, changes=students({"start_from": str(stock)}), initialize=False
    )
    with pytest.raises(CollabError, match=rf"students\.CNN\.start_from: '{stock}' here, '' there"):
        other.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))


# ---------------------------------------------------------------- -pretrained_weights


def nnunet_starts(trainer_class, folder, monkeypatch, file, changes=None, **options):
    """What nnUNetv2_train does from its arguments to the start of the training."""
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "1", "2d", "0", "-pretrained_weights", str(file), "-tr", "X"])
    trainer = make_trainer(trainer_class, folder, monkeypatch, changes=changes, initialize=False, **options)
    maybe_load_checkpoint(trainer, False, False, str(file))
    return trainer


@pytest.mark.parametrize("source", ["stock", "run"])
def test_a_single_student_starts_from_the_file(source, tmp_path, monkeypatch, request):
    path = request.getfixturevalue(source) / "checkpoint_final.pth"
    trainer = nnunet_starts(SupervisedTrainer, tmp_path, monkeypatch, path, ONE)
    weights = weights_of(path, "CNN" if source == "run" else "")
    assert same(trainer.group["CNN"].network, weights)
    assert trainer.group["CNN"].origin.startswith(f"started from {path} (")
    assert trainer.wrapped is trainer.group


def test_the_started_students_are_what_is_trained(stock, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    path, root = stock / "checkpoint_final.pth", tmp_path / "new"
    changes = {**ONE, "epochs": 1, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1}
    trainer = nnunet_starts(SupervisedTrainer, root, monkeypatch, path, changes, plans=full_plans())
    own = write_data(root, full_plans(), make_dataset_json(), extra={})
    write_json(own.parent / "dataset_fingerprint.json", {})
    trainer.dataset_class = nnUNetDatasetBlosc2
    trainer.run_training()
    assert trainer.network is trainer.group
    run = Path(trainer.output_folder)
    trained, given = weights_of(run / "checkpoint_final.pth", "CNN"), weights_of(path)
    changed = [name for name in given if not torch.equal(trained[name], given[name])]
    assert len(changed) > 10
    assert all((trained[name] - given[name]).abs().max() < 0.1 for name in given)  # two steps away, not random ones
    origin = json.loads((run.parent / "plans.json").read_text())["nnunet_collab"]["weights_from"]["CNN"]
    assert origin.startswith(f"started from {path} (nnUNetTrainer; ")


def test_several_students_start_by_name_and_teachers_stay(run, stock, tmp_path, monkeypatch):
    path = run / "checkpoint_final.pth"
    trainer = nnunet_starts(CTRCLTrainer, tmp_path / "both", monkeypatch, path)
    for name in ("CNN", "Transformer"):
        assert same(trainer.group[name].network, weights_of(path, name))
    changes = students({"frozen": str(stock)})
    trainer = nnunet_starts(CTRCLTrainer, tmp_path / "one", monkeypatch, path, changes)
    assert same(trainer.group["CNN"].network, weights_of(stock / "checkpoint_final.pth"))
    assert same(trainer.group["Transformer"].network, weights_of(path, "Transformer"))


def test_a_student_whose_name_the_file_lacks_starts_as_usual(run, tmp_path, monkeypatch):
    changes = {"students": [{"name": "CNN"}, {"name": "Other"}]}
    trainer = nnunet_starts(SupervisedTrainer, tmp_path, monkeypatch, run / "checkpoint_final.pth", changes)
    assert trainer.group["Other"].origin == "random initialization"
    assert "started from" in trainer.group["CNN"].origin


def refused(folder, monkeypatch, changes, *arguments):
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "1", "2d", "0", *map(str, arguments)])
    with pytest.raises(CollabError) as caught:
        make_trainer(SupervisedTrainer, folder, monkeypatch, changes=changes, initialize=False)
    assert not (folder / "nnUNet_results").exists()  # nothing was written
    return str(caught.value)


def test_bad_uses_of_the_flag_are_refused_before_anything_is_written(stock, run, tmp_path, monkeypatch):
    file, folder = stock / "checkpoint_final.pth", tmp_path / "new"
    flag = "-pretrained_weights"
    text = tmp_path / "text.pth"
    text.write_text("text")
    two = {"students": [{"name": "A"}, {"name": "B"}]}
    started = {"students": [{"name": "CNN", "start_from": str(stock)}]}
    imagenet = {"students": [{"name": "CNN", "pretrained": True}]}
    other = {"students": [{"name": "Other"}]}
    for changes, arguments, words in (
        (ONE, [flag, file, "--c"], "-pretrained_weights and --c: cannot be used together"),
        (ONE, [flag, stock], "must be a file, since nnU-Net reads it, too; it is a folder"),
        (ONE, [flag, tmp_path / "none.pth"], "-pretrained_weights: checkpoint"),
        (ONE, [f"{flag}={text}"], "text.pth: must be a complete file"),
        (two, [flag, file], "for one of the students A, B; it holds a single network. Set 'start_from' of each"),
        (two, [flag, run / "checkpoint_final.pth"], "it holds those of CNN, Transformer. Set 'start_from'"),
        (other, [flag, run / "checkpoint_final.pth"], "one of them must be called 'Other'; it holds CNN, Transformer"),
        (started, [flag, file], "come from one source; also set: CNN.start_from"),
        (imagenet, [flag, file], "come from one source; also set: CNN.pretrained"),
    ):
        assert words in refused(folder, monkeypatch, changes, *arguments), words


def test_with_val_the_flag_has_no_effect_as_in_nnunet(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "-pretrained_weights", "none.pth", "--val"])
    trainer = make_trainer(SupervisedTrainer, tmp_path, monkeypatch, changes=ONE)
    assert trainer.group["CNN"].origin == "random initialization"
    assert trainer.network is trainer.group
