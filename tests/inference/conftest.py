"""A finished training of two tiny students, ready to be published."""

from __future__ import annotations

import os

import pytest
from tiny import finish_run, make_batch, make_trainer

from nnunet_collab.methods.ctrcl import CTRCLTrainer


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # waiting for the disk proves nothing here
    trainer = make_trainer(CTRCLTrainer, tmp_path, monkeypatch)
    trainer.train_step(make_batch(trainer))
    trainer.inference_allowed_mirroring_axes = (0, 1)
    return trainer


@pytest.fixture
def fold(trainer):
    """Its fold folder."""
    return finish_run(trainer)
