"""Images so small that nnU-Net plans two resolutions, and so one output of deep supervision: every trainer learns."""

from __future__ import annotations

import math

import pytest
import torch
from doorways import DOORWAYS, batch_for, make
from tiny import STRIDES_2D, make_plans, unet

from nnunet_collab.core.errors import CollabError

SHALLOW = STRIDES_2D[:2]


def shallow_plans():
    plans = make_plans()
    plans["configurations"]["2d"]["architecture"] = unet(SHALLOW)
    return plans


@pytest.mark.parametrize("doorway", [name for name in DOORWAYS if name != "CRLNTrainer"])
def test_a_step_with_one_output_of_deep_supervision(doorway, tmp_path, monkeypatch):
    trainer = make(doorway, tmp_path, monkeypatch, plans=shallow_plans())
    planned = [trainer.group[student.name] for student in trainer.settings.students if student.network == "plans"]
    before = [{name: weight.clone() for name, weight in student.state_dict().items()} for student in planned]
    assert math.isfinite(trainer.train_step(batch_for(trainer))["loss"])
    for student, weights in zip(planned, before, strict=True):
        assert any(not torch.equal(weights[name], now) for name, now in student.state_dict().items())


def test_crln_which_needs_a_decoder_of_three_stages_says_so(tmp_path, monkeypatch):
    with pytest.raises(CollabError, match=r"decoder has 3 stages or more.* has 1"):
        make("CRLNTrainer", tmp_path, monkeypatch, plans=shallow_plans())
