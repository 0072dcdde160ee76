"""Random numbers of a training: those of a resumed run go on, dropout differs between processes, weights do not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny import make_dataset_json, make_trainer
from tiny_data import VALIDATION, full_plans, write_data

from nnunet_collab.methods.ctrcl import CTRCLTrainer
from nnunet_collab.training import preflight


def draws():
    return [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002


@pytest.fixture
def start(monkeypatch):
    """`on_train_start` without data: what nnU-Net does there, and the checks of the cases, are left out."""
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda trainer: None)
    for name in ("check_cases", "check_fold"):
        monkeypatch.setattr(preflight, name, lambda *_: None)
    return lambda trainer: trainer.on_train_start()


def test_a_resumed_run_draws_what_the_interrupted_one_would_have_drawn(tmp_path, monkeypatch, start):
    first = make_trainer(CTRCLTrainer, tmp_path, monkeypatch)
    draws()
    path = Path(first.output_folder, "checkpoint_latest.pth")
    first.save_checkpoint(str(path))
    want = [draws() for _ in range(5)]
    again = make_trainer(CTRCLTrainer, tmp_path, monkeypatch)
    again.load_checkpoint(str(path))
    draws()  # whatever else draws until the training starts
    start(again)
    assert [draws() for _ in range(5)] == want


def test_a_run_that_is_not_resumed_starts_from_its_seed(tmp_path, monkeypatch, start):
    found = []
    for seed in (0, 0, 1):
        start(make_trainer(CTRCLTrainer, tmp_path / str(len(found)), monkeypatch, changes={"seed": seed}))
        found.append(torch.rand(4))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_processes_have_one_set_of_weights_and_each_its_own_dropout(tmp_path, monkeypatch):
    made = []
    for rank in range(3):
        monkeypatch.setattr("nnunet_collab.training.trainer.rank", lambda rank=rank: rank)
        trainer = make_trainer(CTRCLTrainer, tmp_path / str(rank), monkeypatch)
        made.append((trainer.group.state_dict(), torch.nn.functional.dropout(torch.ones(64))))
    weights, masks = zip(*made, strict=True)
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())
    assert len({tuple(mask.tolist()) for mask in masks}) == 3


def test_batches_of_the_validation_are_of_validation_cases(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer(CTRCLTrainer, tmp_path, monkeypatch, plans=full_plans())
    write_data(tmp_path, full_plans(), make_dataset_json())
    training, validation = trainer.get_dataloaders()
    for _ in range(4):
        assert set(next(validation)["keys"]) <= set(VALIDATION)
        assert not set(next(training)["keys"]) & set(VALIDATION)
