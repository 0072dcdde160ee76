"""CMAformerTrainer: a step in two and three dimensions, whatever the labels."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import make_batch, make_trainer

from nnunet_collab.methods.cmaformer import CMAformerSettings, CMAformerTrainer
from nnunet_collab.networks.cmaformer.network import CMAformer
from nnunet_collab.training.settings import TRANSFORMER

SMALL = {"features": [4, 4, 6, 8, 8, 8], "num_heads": 2, "num_layers": 1}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", ["plain", "regions_ignore"])
def test_a_step_moves_every_parameter_and_nothing_else_is_learnt(tmp_path, monkeypatch, kind, configuration):
    changes = {"students": {"CMAformer": {"arch": SMALL, "warmup": 0.0, "lr": 1e-2}}}
    trainer = make_trainer(
        CMAformerTrainer, tmp_path, monkeypatch, kind=kind, changes=changes, configuration=configuration
    )
    student = trainer.group["CMAformer"]
    assert isinstance(student.network, CMAformer)
    assert student.network.design.dims == (2 if configuration == "2d" else 3)
    assert all(p.requires_grad for p in student.parameters())
    trainer.on_train_epoch_start()
    before = copy.deepcopy(student.network.state_dict())
    batch = make_batch(trainer, kind)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in student.network.state_dict().items())


def test_one_cmaformer_trained_as_nnunet_trains_transformers():
    (student,) = CMAformerSettings().students
    assert (student.name, student.network, student.arch) == ("CMAformer", "cmaformer", {})
    for name in ("optimizer", "lr", "weight_decay", "warmup", "lr_per", "grad_clip"):
        assert getattr(student, name) == getattr(TRANSFORMER, name)
