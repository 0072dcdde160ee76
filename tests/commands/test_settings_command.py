"""`nnunet_collab settings` and `nnunet_collab presets`: a page, the effective settings, a schema, a list."""

from __future__ import annotations

import importlib
import json

import pytest

from nnunet_collab.cli import main
from nnunet_collab.core.presets import preset_names, settings_from_environment
from nnunet_collab.core.settings import VARIABLE, to_json
from nnunet_collab.core.shipped import doorways

USER_FILE = '''
"""A method of mine."""
from __future__ import annotations

from nnunet_collab.core.settings import setting
from nnunet_collab.methods.ctrcl import CTRCLSettings, CTRCLTrainer


class MySettings(CTRCLSettings):
    """Of my method."""

    mine: float = setting(0.5, "What is mine.", unit="mm", source="a thought", gt=0)
    epochs: int = 7


class MyOwnTrainer(CTRCLTrainer):
    """Mine."""

    settings = MySettings()
'''


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def out(capsys, *words):
    assert main(["settings", *words]) == 0
    return capsys.readouterr().out


def trainer_class(name):
    return getattr(importlib.import_module(doorways()[name]), name)


@pytest.mark.parametrize("name", sorted(doorways()))
def test_the_page_names_every_setting_with_its_default_meaning_and_rule(name, capsys):
    page = out(capsys, name)
    settings = trainer_class(name).settings
    assert page.startswith(f"{name}\n    ")
    assert max(map(len, page.splitlines())) <= 120
    values = to_json(settings)
    students = values.pop("students")
    for key, value in values.items():
        assert f"\n    {key} = {json.dumps(value)}\n        " in page
    for key in students[0]:
        assert (f"\n    students.<name>.{key} = " in page) == (key != "name")
    entries = page.split("\nStudents of this trainer")[0].split("\n\n    ")
    described = [entry for entry in entries if " = " in entry.split("\n")[0]]
    assert len(described) == len(values) + 1 + len(students[0]) - 1
    for entry in described:
        first, *text = entry.split("\n")
        assert "Value: " in entry, first
        assert not text[0].strip().startswith("Value: "), f"{first}: has no description"


def test_a_page_reads_like_this(capsys):
    page = out(capsys, "CRLNTrainer")
    assert (
        """
    rectify_from_iteration = 800
        S, iterations before pseudo labels are rectified.
        Value: an integer in [0, 2147483648). Unit: iterations. Source: figure 12.
"""
        in page
    )
    assert "Presets: crln_brats, crln_la, crln_pancreas." in page
    assert "\nMixingSettings: Settings of every method with CutMix.\n" in page
    assert page.index("CRLNSettings: ") < page.index("MixingSettings: ") < page.index("TrainingSettings: ")
    assert "(default" not in page


def test_a_preset_is_shown_beside_the_defaults(capsys):
    page = out(capsys, "CRLNTrainer", "--preset", "crln_la")
    assert "    epochs = 36   (default: 1000)\n" in page
    assert "    students = CNN   (changed, see below)\n" in page
    assert "    CNN: lr = 0.0025, weight_decay = 0.0005, momentum = 0.9, nesterov = false," in page
    assert "Values include the changes of crln_la" in page


def test_the_variable_counts_as_it_does_in_a_training(capsys, monkeypatch):
    monkeypatch.setenv(VARIABLE, '{"preset": "crln_la", "seed": 3}')
    assert "    seed = 3   (default: 0)\n" in out(capsys, "CRLNTrainer")
    effective = json.loads(out(capsys, "CRLNTrainer", "--json"))
    trainer = trainer_class("CRLNTrainer")
    assert effective == to_json(settings_from_environment(trainer.settings, trainer))
    assert (effective["seed"], effective["epochs"]) == (3, 36)
    assert json.loads(out(capsys, "CRLNTrainer", "--json", "--preset", "crln_brats"))["seed"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["NoTrainer"], "settings: there is no trainer 'NoTrainer'; the trainers are BCPTrainer, CMAformerTrainer"),
        (["nnUNetTrainer"], "settings; nnUNetTrainer is a trainer of nnU-Net and has none"),
        (
            ["CTRCLTrainer", "--preset", "crossmatch_acdc"],
            "'crossmatch_acdc' is for CrossMatchTrainer, but the trainer is",
        ),
        (["CTRCLTrainer", "--preset", "nope"], "'nope' is none of them"),
        (["CTRCLTrainer", "--preset", '{"beta": -1}'], "setting 'beta' must be a finite number >= 0; got -1"),
    ],
)
def test_mistakes_are_one_message(words, message, capsys):
    assert main(["settings", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert captured.out == ""


def test_the_schema_describes_what_a_file_may_hold(capsys):
    schema = json.loads(out(capsys, "UniMatchTrainer", "--schema"))
    assert schema["additionalProperties"] is False
    assert "required" not in schema
    properties = schema["properties"]
    assert {"$schema", "description", "preset", "trainer", "tau", "students", "seed"} <= set(properties)
    assert properties["seed"]["exclusiveMaximum"] == 2**32
    assert properties["strong_weight"]["default"] == 0.5  # the trainer's, not the class's
    whole, by_name = properties["students"]["anyOf"]
    assert whole["items"] == {"$ref": "#/$defs/StudentSettings"}
    assert by_name["properties"] == {"CNN": {"$ref": "#/$defs/StudentSettingsChanges"}}
    assert schema["$defs"]["StudentSettings"]["required"] == ["name"]
    changes = schema["$defs"]["StudentSettingsChanges"]
    assert "required" not in changes
    assert changes["properties"]["lr"]["exclusiveMinimum"] == 0
    examples = json.loads(out(capsys, "LDCTrainer", "--schema"))["properties"]["preset"]["examples"]
    assert examples == ["ldc_lits"]


def test_a_trainer_in_a_folder_of_the_user_is_found(capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(USER_FILE)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    page = out(capsys, "MyOwnTrainer")
    assert page.startswith("MyOwnTrainer\n    Mine.\n")
    assert (
        "    mine = 0.5\n        What is mine.\n        Value: a finite number > 0. Unit: mm. Source: a thought.\n"
        in page
    )
    assert "    epochs = 7\n" in page
    assert json.loads(out(capsys, "MyOwnTrainer", "--preset", "ctrcl_mobilenetv2_mitb0", "--json"))["mine"] == 0.5


def test_presets_have_a_line_each(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    for line in lines:
        assert line.split()[1] in doorways()
        assert len(line) <= 130
        assert line.endswith(".")
