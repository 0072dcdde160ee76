"""Every preset that ships: it builds the trainer that it was written for, and other methods do not take it."""

from __future__ import annotations

import importlib

import pytest
import torch
from tiny import make_dataset_json, make_plans

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.presets import accepted, preset_names, presets, read
from nnunet_collab.core.settings import VARIABLE, from_json, to_json
from nnunet_collab.core.shipped import doorways
from nnunet_collab.methods.cross_teaching import CPSTrainer

TRAINERS = {  # by the first word of a preset's name
    "bcp": "BCPTrainer",
    "crln": "CRLNTrainer",
    "cross_teaching": "CrossTeachingTrainer",
    "crossmatch": "CrossMatchTrainer",
    "ctrcl": "CTRCLTrainer",
    "ldc": "LDCTrainer",
    "self_training": "SelfTrainingTrainer",
}
VOLUMES = ("bcp_la", "bcp_pancreas", "crln_", "crossmatch_la")


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


def test_every_preset_says_which_trainer_it_is_for():
    assert {preset.name: preset.trainer for preset in presets()} == {
        name: TRAINERS[method_of(name)] for name in preset_names()
    }


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("trainer", ["CRLNTrainer", "CPSTrainer", "SupervisedTrainer"])
def test_another_trainer_refuses_it(trainer, preset, start):
    own = TRAINERS[method_of(preset)]
    if trainer == own:
        return
    for value in (preset, f'{{"preset": "{preset}", "seed": 1}}'):
        with pytest.raises(CollabError, match=f"{VARIABLE}: '{preset}' is for {own}, but the trainer is {trainer}"):
            start(trainer, value)


def test_the_refusal_lists_the_presets_of_the_trainer(start):
    with pytest.raises(CollabError, match=r"Presets for it: crossmatch_acdc, crossmatch_la, crossmatch_la_code\.$"):
        start("CrossMatchTrainer", "ldc_lits")
    with pytest.raises(CollabError, match=r"Presets for it: none\.$"):
        start("SupervisedTrainer", "ldc_lits")
    with pytest.raises(CollabError, match="is for MyTrainer, but the trainer is LDCTrainer"):
        start("LDCTrainer", '{"trainer": "MyTrainer"}')


def test_a_user_s_subclass_takes_the_presets_of_the_method_and_its_own():
    class Mine(CPSTrainer):
        pass

    class Other(Mine):
        pass

    assert accepted(CPSTrainer) == ("CPSTrainer",)  # a subclass of CrossTeachingTrainer, but another method
    assert accepted(Other) == ("Other", "Mine", "CPSTrainer")
    assert read('{"trainer": "Mine", "seed": 1}', takes=accepted(Other)) == {"seed": 1}
