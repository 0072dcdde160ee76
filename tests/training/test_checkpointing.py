"""A checkpoint that lacks a part, or whose parts do not fit, is refused with its name: every part, every way."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from tiny import make_batch, make_semi_supervised_batch, make_trainer

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.methods.ctrcl import CTRCLTrainer
from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer

KEY = checkpoints.KEY
ONE = {"students": {"CNN": {}}}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # waiting for the disk proves nothing here
        yield patch


def after_a_step(trainer_class, folder, patch, make, changes=None):
    """A trainer and what it writes after one iteration."""
    trainer = make_trainer(trainer_class, folder, patch, changes=changes)
    trainer.train_step(make(trainer))
    trainer.save_checkpoint(str(folder / "checkpoint_latest.pth"))
    return trainer, checkpoints.load_training(folder / "checkpoint_latest.pth")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, patch):
    return after_a_step(CTRCLTrainer, tmp_path_factory.mktemp("plain"), patch, make_batch)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, patch):
    return after_a_step(MeanTeacherTrainer, tmp_path_factory.mktemp("teacher"), patch, make_semi_supervised_batch, ONE)


def paths_of(content, *, depth, here=()):
    """Keys that lead to every entry of nested dictionaries, down to a depth."""
    for key, value in content.items():
        yield (*here, key)
        if isinstance(value, dict) and depth > 1:
            yield from paths_of(value, depth=depth - 1, here=(*here, key))


def changed(content, path, change):
    """A copy in which `change(parent, key)` was done at a path; tensors are shared."""
    result = dict(content)
    parent = result
    for key in path[:-1]:
        parent[key] = copy.copy(parent[key])
        parent = parent[key]
    change(parent, path[-1])
    return result


def refused(trainer, content, tmp_path, words=""):
    path = tmp_path / "checkpoint_latest.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "read", lambda *_: content)  # writing it each time would take most of the time
        with pytest.raises(CollabError) as caught:
            trainer.load_checkpoint(str(path))
    assert str(caught.value).startswith(f"checkpoint {path}: ")
    assert words in str(caught.value)


# What a training need not have: the length of a scaler's or a curve's history, a setting's own keys and the like.
FREE = {("grad_scaler_state",), ("init_args",), ("logging",), (KEY, "settings"), (KEY, "weights_from"), (KEY, "cases")}


def parts(content):
    """All of them, and of the many weights a few."""
    paths = [path for path in paths_of(content, depth=2) if path[:1] not in FREE or len(path) == 1]
    weights = [path for path in paths if path[0] == "network_weights" and len(path) == 2]
    return [path for path in paths if path not in weights or path in weights[:: max(1, len(weights) // 4)]]


def test_every_part_is_needed(plain, tmp_path):
    trainer, content = plain
    for path in parts(content):
        refused(trainer, changed(content, path, lambda parent, key: parent.pop(key)), tmp_path, str(path[0]))


def test_every_part_must_be_of_its_type(plain, tmp_path):
    trainer, content = plain
    for path in [(key,) for key in content] + [(KEY, key) for key in content[KEY]]:
        for wrong in ("text", {1}):
            if not (isinstance(content[path[0]], str) and isinstance(wrong, str)):
                refused(trainer, changed(content, path, lambda p, k, w=wrong: p.__setitem__(k, w)), tmp_path)


@pytest.mark.parametrize("part", ["network_weights", "trained_weights", "method", "optimizer_state"])
@pytest.mark.parametrize("which", ["plain", "teacher"])
def test_every_tensor_must_have_its_shape_and_be_finite(which, part, tmp_path, request):
    trainer, content = request.getfixturevalue(which)
    top = (part,) if part in content else (KEY, part)
    holder = content[part] if part in content else content[KEY][part]
    tensors = [] if holder is None else list(tensor_paths(holder))
    for number, path in enumerate(tensors):
        if number % max(1, len(tensors) // 3):  # a few of each part, the first among them
            continue

        def spoil(parent, key):
            parent[key] = torch.full_like(parent[key], np.nan)

        def widen(parent, key):
            parent[key] = torch.cat([parent[key], parent[key]])

        whole = (*top, *path)
        tensor = value_at(content, whole)
        if tensor.is_floating_point():
            refused(trainer, changed(content, whole, spoil), tmp_path, "tensors hold NaN or infinity")
        if tensor.ndim > 0:
            refused(trainer, changed(content, whole, widen), tmp_path, "must fit the networks and settings of this")


def tensor_paths(value, here=()):
    if isinstance(value, torch.Tensor):
        yield here
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensor_paths(item, (*here, key))


def value_at(content, path):
    for key in path:
        content = content[key]
    return content


@pytest.mark.parametrize(
    "states",
    [[{}], [{"python": 1, "numpy": 2, "torch": 3, "cuda": []}], [None, None][:1], ["text"]],
)
def test_random_states_of_another_form_are_refused_and_change_nothing(plain, tmp_path, states):
    trainer, content = plain
    if states == [None]:
        states = [3]
    before = torch.get_rng_state()
    refused(trainer, changed(content, (KEY, "random_states"), lambda p, k: p.__setitem__(k, states)), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("which", ["plain", "teacher"])
def test_what_was_written_is_taken_back_in_every_bit(which, tmp_path, request):
    trainer, content = request.getfixturevalue(which)
    path = tmp_path / "again.pth"
    torch.save(content, path)
    trainer.load_checkpoint(str(path))
    trainer.current_epoch -= 1
    trainer.save_checkpoint(str(path))
    again = checkpoints.load_training(path)
    for part in ("network_weights", "optimizer_state"):
        for at in tensor_paths(content[part]):
            assert torch.equal(value_at(again[part], at), value_at(content[part], at))
    trainer.current_epoch += 1


def test_weights_that_are_not_finite_are_never_written(plain, tmp_path):
    trainer, _ = plain
    weight = next(trainer.group.parameters())
    before = weight.detach().clone()
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth"):
        path = tmp_path / name
        path.write_text("of before")
        for value in (np.nan, np.inf):
            with torch.no_grad():
                weight.flatten()[0] = value
            with pytest.raises(CollabError, match=r"not written: weights must be finite numbers; \d+ tensors hold NaN"):
                trainer.save_checkpoint(str(path))
        assert path.read_text() == "of before"
    with torch.no_grad():
        weight.copy_(before)


def test_nothing_is_written_once_another_training_took_the_folder_over(plain, tmp_path, monkeypatch):
    trainer, _ = plain

    def lost():
        raise CollabError("taken over")

    monkeypatch.setattr(trainer.results, "check", lost)
    with pytest.raises(CollabError, match="taken over"):
        trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_training_goes_on_with_the_random_states_it_was_saved_with(plain, tmp_path, monkeypatch):
    """`load_checkpoint` keeps them until the training starts, and only then sets them."""
    trainer, _ = plain
    path = tmp_path / "checkpoint_latest.pth"
    torch.manual_seed(11)
    trainer.save_checkpoint(str(path))
    want = torch.rand(3)
    trainer.load_checkpoint(str(path))
    monkeypatch.setattr("nnunet_collab.training.trainer.preflight", _Nothing())
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer.on_train_start", _draw)
    monkeypatch.setattr(trainer, "results", _Nothing())
    torch.manual_seed(12)
    trainer.on_train_start()
    assert torch.equal(torch.rand(3), want)


class _Nothing:
    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _draw(trainer):
    torch.rand(1)  # as building loaders does
