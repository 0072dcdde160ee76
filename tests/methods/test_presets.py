"""Every preset that ships: it builds the trainer that it was written for, and other methods do not take it."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from tiny import make_dataset_json, make_plans

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import VARIABLE, from_json, preset_names, read, to_json
from nnunet_collab.core.shipped import doorways

TRAINERS = {  # by the first word of a preset's name
    "crln": "CRLNTrainer",
    "cross_teaching": "CrossTeachingTrainer",
    "crossmatch": "CrossMatchTrainer",
    "ctrcl": "CTRCLTrainer",
    "ldc": "LDCTrainer",
}
VOLUMES = ("crln_", "crossmatch_la")
# Of presets with settings of their own method; the others name students and how they are trained, which all can take.
ANOTHER = {"crln": "CrossMatchTrainer", "crossmatch": "LDCTrainer", "ldc": "CRLNTrainer"}


def method_of(preset):
    (method,) = (method for method in TRAINERS if preset.startswith(f"{method}_"))
    return method


@pytest.fixture
def start(tmp_path, monkeypatch):
    """What nnU-Net does when the user has set `nnUNet_collab_settings` to the name of a preset."""

    def start(trainer, preset):
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            monkeypatch.setenv(name, str(tmp_path / name))
        monkeypatch.setenv(VARIABLE, preset)
        trainer_class = getattr(importlib.import_module(doorways()[trainer]), trainer)
        configuration = "3d_fullres" if preset.startswith(VOLUMES) else "2d"
        return trainer_class(make_plans(), configuration, 0, make_dataset_json(), torch.device("cpu"))

    return start


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_reaches_its_trainer_whole(preset, start):
    trainer = start(TRAINERS[method_of(preset)], preset)
    settings = to_json(trainer.settings)
    wanted = read(preset)
    students = dict(zip((s["name"] for s in settings.pop("students")), trainer.settings.students, strict=True))
    assert [student["name"] for student in wanted["students"]] == list(students)
    for student in wanted.pop("students"):
        given = to_json(students[student["name"]])
        assert {key: given[key] for key in student} == student
    assert {key: settings[key] for key in wanted} == wanted
    assert trainer.settings != type(trainer).settings
    assert from_json(type(trainer.settings), to_json(trainer.settings)) == trainer.settings
    planned = trainer.configuration_manager
    assert list(planned.patch_size) == wanted.get("patch_size", list(planned.patch_size))
    assert planned.batch_size == wanted.get("batch_size", planned.batch_size)
    assert trainer.num_epochs == wanted.get("epochs", 1000)


@pytest.mark.parametrize("preset", [preset for preset in preset_names() if method_of(preset) in ANOTHER])
def test_another_trainer_refuses_it_and_lists_what_it_takes(preset, start):
    another = ANOTHER[method_of(preset)]
    with pytest.raises(CollabError, match=f"^{VARIABLE}: unknown setting ") as caught:
        start(another, preset)
    trainer_class = getattr(importlib.import_module(doorways()[another]), another)
    valid = ", ".join(field.name for field in dataclasses.fields(trainer_class.settings))
    assert str(caught.value).endswith(f" Valid are: {valid}.")
