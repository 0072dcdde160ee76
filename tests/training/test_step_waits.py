"""In a step the host waits for its device once, after the backward pass, whatever the method."""

from __future__ import annotations

import doorways
import pytest
import torch
from doorways import DOORWAYS, batch_for
from torch.amp import GradScaler
from waiting import Waits


def waits_of_a_step(trainer):
    """Before the backward pass, and in all."""
    torch.manual_seed(0)
    trainer.train_step(batch_for(trainer))  # momenta are there
    teacher = [trainer.teacher.group.state_dict()] if hasattr(trainer, "teacher") else []
    batch, before = batch_for(trainer), []
    backward = trainer.optimizers.backward
    with Waits([*_tensors(batch), *_tensors([trainer.group.state_dict(keep_vars=True), *teacher])]) as waits:
        trainer.optimizers.backward = lambda loss: (before.extend(waits.found), backward(loss))
        trainer.train_step(batch)
    return before, waits.found


def _tensors(values):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("scaler", [None, GradScaler("cpu", init_scale=4.0)], ids=["float32", "scaler"])
@pytest.mark.parametrize("doorway", DOORWAYS)
def test_every_trainer_reads_its_device_once_after_the_backward_pass(doorway, scaler, tmp_path, monkeypatch):
    trainer = doorways.make(doorway, tmp_path, monkeypatch)
    trainer.grad_scaler = trainer.optimizers.scaler = scaler
    before, found = waits_of_a_step(trainer)
    assert before == []
    assert found == ["tolist"]


READS = {
    "item": lambda z: z.sum().item(),
    "bool": lambda z: bool(z.isfinite().all()),
    "float": lambda z: float(z.mean()),
    "nonzero": lambda z: (z > 0).nonzero(),
    "mask": lambda z: z[z > 0],
    "assigned mask": lambda z: z.clone().__setitem__(z > 0, 0.0),
    "cpu": lambda z: z.detach().cpu(),
    "list": lambda z: z.detach().flatten()[:2].tolist(),
    "numpy": lambda z: z.detach().numpy(),
    "unique": lambda z: z.argmax(1).unique(),
}


@pytest.mark.parametrize("read", READS)
def test_a_wait_in_the_forward_pass_is_seen(read, tmp_path, monkeypatch):
    trainer = doorways.make("SupervisedTrainer", tmp_path, monkeypatch)
    supervised = trainer.supervised
    monkeypatch.setattr(trainer, "supervised", lambda o, t: (READS[read](o.logits), supervised(o, t))[1])
    before, found = waits_of_a_step(trainer)
    assert len(before) >= 1
    assert len(found) == len(before) + 1
