"""A batch with numbers that are not finite leaves nothing behind, whatever the method, and its case is named."""

from __future__ import annotations

import copy

import doorways
import pytest
import torch
from doorways import DOORWAYS, batch_for
from tiny import make_batch
from torch.utils._pytree import tree_leaves

BATCH_NORM = {"norm_op": "torch.nn.modules.batchnorm.BatchNorm2d"}


@pytest.fixture
def make(tmp_path, monkeypatch):
    def make(doorway, **changes):
        names = {s.name for s in doorways.trainer_class(doorway).settings.students}
        students = {name: {"arch": BATCH_NORM} for name in names if name.startswith("CNN")}
        students |= {"Transformer": {"network": "segformer_b0"}} if "Transformer" in names else {}
        students |= doorways.CHANGES.get(doorway, {}).get("students", {})
        trainer = doorways.make(doorway, tmp_path, monkeypatch, changes={"students": students, **changes})
        trainer.lines = []
        trainer.guard.log = trainer.lines.append
        return trainer

    return make


def state(trainer):
    """All that learns, copied: weights and running statistics, momenta, teacher, prototypes, multipliers, mu."""
    method = copy.deepcopy(trainer.method_state())
    for name in ("sizes", "squared_sizes"):  # of the labels, which are sound
        method.get("constraints", {}).pop(name, None)
    momenta = {name: optimizer["state"] for name, optimizer in trainer.optimizers.state_dict().items()}
    return copy.deepcopy([trainer.group.state_dict(), momenta, method])


def same(a, b):
    a, b = tree_leaves(a), tree_leaves(b)
    return len(a) == len(b) and all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in zip(a, b))  # noqa: B905


def finite(values):
    return all(leaf.isfinite().all() for leaf in tree_leaves(values) if torch.is_tensor(leaf))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("doorway", DOORWAYS)
def test_an_image_that_is_not_finite_changes_nothing_and_is_named(doorway, poison, make):
    trainer = make(doorway, max_bad_steps=9)
    trainer.train_step(batch_for(trainer))
    before = state(trainer)
    assert any(name.endswith("running_var") for name in before[0]) or doorway == "CMAformerTrainer"
    for images, kind in (("data", "labeled"), ("views", "unlabeled")):
        batch = batch_for(trainer)
        if images in batch:
            batch[images] = batch[images].clone()
            batch[images][1, -1, ..., 3] = poison
            trainer.train_step(batch)
            assert same(state(trainer), before)
            line = trainer.lines.pop()
            assert f"the image of {kind}1" in line
            assert f"the image of {kind}0" not in line
            everyone = [*batch["keys"], *batch.get("keys_unlabeled", [])]
            assert line.endswith(f"; cases in the batch: {', '.join(everyone)}")
    trainer.train_step(batch_for(trainer))  # as if nothing had been
    assert trainer.lines == []
    assert not same(state(trainer), before)
    assert finite([state(trainer), trainer.method_state()])


def test_statistics_that_overflow_although_the_loss_does_not_are_seen(make):
    trainer = make("SupervisedTrainer")
    norm = next(m for m in trainer.group.modules() if isinstance(m, torch.nn.BatchNorm2d))
    supervised = trainer.supervised

    def overflow(output, target):
        norm.running_var.data[0] = float("inf")
        return supervised(output, target)

    trainer.supervised = overflow
    before = state(trainer)
    trainer.train_step(batch_for(trainer))
    assert same(state(trainer), before)
    assert "not finite: running statistics (" in trainer.lines[0]


def test_a_bad_step_that_is_left_out_leaves_the_next_ones_as_they_are_without_it(make):
    found = []
    for bad in (False, True):
        trainer = make("CTRCLTrainer")
        for seed in (0, None, 1) if bad else (0, 1):
            batch = make_batch(trainer, seed=seed or 0)
            if seed is None:
                batch["data"][:] = float("nan")
                rates = trainer.iteration
            torch.manual_seed(5)  # of dropout
            trainer.train_step(batch)
            if seed is None:
                trainer.iteration = rates  # schedules go on by the number of the batch
        found.append(state(trainer))
    assert same(*found)
