"""Under which names nnU-Net stores the training of any trainer, with the settings in the environment."""

from __future__ import annotations

import json

import pytest
from tiny import make_plans

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import VARIABLE
from nnunet_collab.training.inspection import trainer_names


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("nnUNetTrainer_5epochs", {}, ("nnUNetTrainer_5epochs", ("nnUNetTrainer_5epochs",), False)),
        ("SupervisedTrainer", {}, ("SupervisedTrainer", ("SupervisedTrainer_CNN",), False)),
        ("SupervisedTrainer", {"run_name": "x1"}, ("SupervisedTrainer_x1", ("SupervisedTrainer_x1_CNN",), False)),
        ("FixMatchTrainer", {}, ("FixMatchTrainer", ("FixMatchTrainer_CNN",), True)),
        (
            "CTRCLTrainer",
            {"validate_ensemble": True},
            ("CTRCLTrainer", ("CTRCLTrainer_CNN", "CTRCLTrainer_Transformer", "CTRCLTrainer"), False),
        ),
        (
            "CTRCLTrainer",
            {"validate_ensemble": False},
            ("CTRCLTrainer", ("CTRCLTrainer_CNN", "CTRCLTrainer_Transformer"), False),
        ),
    ],
)
def test_names_of_a_training_and_its_models(name, settings, expected, monkeypatch):
    monkeypatch.setenv(VARIABLE, json.dumps(settings) if settings else "")
    assert trainer_names(name, make_plans(), "2d") == expected


def test_wrong_settings_and_unknown_trainers_are_refused(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, '{"run_nam": "x"}')
    with pytest.raises(CollabError, match="run_nam"):
        trainer_names("SupervisedTrainer", make_plans(), "2d")
    with pytest.raises(CollabError, match="nnU-Net must find it"):
        trainer_names("NoTrainer", make_plans(), "2d")
    assert capsys.readouterr().out == ""  # a dry run is for the shell
