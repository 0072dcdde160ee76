"""Settings: what may be written, in which form it arrives, and the message for everything else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, Literal

import pytest

from nnunet_collab.core import presets as presets_module
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.presets import read, settings_from_environment
from nnunet_collab.core.settings import VARIABLE, Settings, change, differences, from_json, setting, to_json
from nnunet_collab.methods.ctrcl import CTRCLSettings
from nnunet_collab.training.settings import CNN


class Member(Settings):
    name: str
    size: int = 1
    options: dict[str, Any] = setting(factory=dict)
    mode: Literal["a", "b"] = "a"


class Some(Settings):
    members: tuple[Member, ...] = (Member("A"), Member("B", size=2))
    one: Member = Member("only")
    flag: bool = False
    text: str = ""
    number: float = 1.0
    count: int | None = None
    sizes: tuple[int, ...] | None = None


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """A folder of presets of our own."""
    monkeypatch.setattr(presets_module, "PRESETS", tmp_path)

    def write(name, content):
        (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path / f"{name}.json")

    return write


def test_without_the_variable_the_default_stays(monkeypatch):
    assert settings_from_environment(Some()) == Some()
    monkeypatch.setenv(VARIABLE, "  \n")
    assert settings_from_environment(Some()) == Some()


def test_every_type_is_taken_and_the_default_is_not_touched():
    before = Some()
    new = change(
        before,
        {"flag": True, "text": "x", "number": 3, "count": 4, "sizes": [1, 2], "one": {"options": {"k": [1]}}},
        "V",
    )
    assert new == Some(flag=True, text="x", number=3.0, count=4, sizes=(1, 2), one=Member("only", options={"k": [1]}))
    assert type(new.number) is float
    assert before == Some()
    assert change(new, {"count": None, "sizes": None}, "V").sizes is None


def test_members_are_changed_by_name_or_given_as_a_list():
    by_name = change(Some(), {"members": {"B": {"mode": "b"}}}, "V")
    assert by_name.members == (Member("A"), Member("B", size=2, mode="b"))
    as_list = change(Some(), {"members": [{"name": "C", "size": 7}, {"name": "B"}]}, "V")
    assert as_list.members == (Member("C", size=7), Member("B"))  # nothing is kept of the default's B


def test_inline_file_and_preset_say_the_same(presets, monkeypatch):
    content = {"description": "for people", "number": 2.5, "members": {"A": {"size": 9}}}
    want = Some(number=2.5, members=(Member("A", size=9), Member("B", size=2)))
    for value in (json.dumps(content), presets("mine", content), "mine", f"  {json.dumps(content)}\n"):
        monkeypatch.setenv(VARIABLE, value)
        assert settings_from_environment(Some()) == want


def test_json_wins_over_the_preset_it_builds_on(presets):
    presets("base", {"number": 1.5, "text": "base", "members": [{"name": "A", "options": {"x": 1, "y": 2}, "size": 3}]})
    presets("middle", {"preset": "base", "text": "middle", "description": "d", "members": {"A": {"options": {"y": 5}}}})
    value = read('{"preset": "middle", "number": 4, "members": {"A": {"size": 8}}}')
    assert value == {
        "number": 4,
        "text": "middle",
        "members": [{"name": "A", "options": {"x": 1, "y": 5}, "size": 8}],
    }
    assert change(Some(), value, "V").members == (Member("A", size=8, options={"x": 1, "y": 5}),)
    whole_list = read('{"preset": "base", "members": [{"name": "Z"}]}')
    assert whole_list["members"] == [{"name": "Z"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"nope": 1, "members": {}},
            "V: unknown setting 'nope'. Valid settings: members, one, flag, text, number, count, sizes",
        ),
        ({"flag": 1}, "V: setting 'flag' must be true or false; got 1 (int)"),
        ({"count": True}, "V: setting 'count' must be an integer or null; got True (bool)"),
        ({"count": 1.5}, "setting 'count' must be an integer or null; got 1.5"),
        ({"number": "1"}, "setting 'number' must be a finite number; got '1' (str)"),
        ({"number": True}, "setting 'number' must be a finite number; got True"),
        ({"number": math.inf}, "must be a finite number; got inf"),
        ({"number": math.nan}, "must be a finite number; got nan"),
        ({"number": 10**400}, "must be a finite number; got 1"),
        ({"text": 1}, "setting 'text' must be a text; got 1"),
        ({"sizes": 5}, "setting 'sizes' must be a list, each an integer or null; got 5"),
        ({"sizes": [1, "2"]}, "setting 'sizes[1]' must be an integer; got '2'"),
        ({"one": {"mode": "c"}}, "V: setting 'one.mode' must be one of 'a', 'b'; got 'c'"),
        ({"one": {"mode": ["a"]}}, "must be one of 'a', 'b'; got ['a']"),
        ({"one": []}, "setting 'one' must be a JSON object; got [] (list)"),
        ({"one": {"options": []}}, "setting 'one.options' must be a JSON object"),
        ({"members": {"C": {}}}, "V: setting 'members' has no member C. Its members: A, B."),
        ({"members": {"A": 5}}, "setting 'members.A' must be a JSON object; got 5"),
        ({"members": {"A": {"sise": 1}}}, "V: unknown setting 'members.A.sise'. Valid settings: name, size, options"),
        ({"members": {"A": {"size": "1"}}}, "setting 'members.A.size' must be an integer"),
        ({"members": [{"name": "A", "sise": 1}]}, "V: unknown setting 'members[0].sise'. Valid settings: name, size"),
        ({"members": [{"size": 1}]}, "setting 'members[0].name' is required; it has no default"),
        ({"members": [{"name": 1}]}, "setting 'members[0].name' must be a text; got 1"),
        ({"members": [5]}, "setting 'members[0]' must be a JSON object; got 5"),
        ({"members": "A"}, "setting 'members' must be a list, each a JSON object; got 'A'"),
    ],
)
def test_wrong_keys_and_types_are_refused_by_name(changes, message):
    with pytest.raises(CollabError) as caught:
        change(Some(), changes, "V")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{'beta': 2}", f"{VARIABLE}: not valid JSON (Expecting property name"),
        ("no_such_preset", "'no_such_preset' is none of them. Presets: base, circle, numbers"),
        ("x" * 5000, "is none of them"),
        ("numbers", 'numbers.json: must be a JSON object such as {"beta": 2.0}; got list'),
        ("circle", "must not build on each other in a circle; got circle -> circle"),
        ("[" * 100_000, "is none of them"),
        ('{"seed": ' + "[" * 100_000, "must be JSON with few levels; it is nested too deeply to be read"),
        ('{"seed": ' + "9" * 5000 + "}", "not valid JSON (Exceeds the limit"),
        ('{"preset": {}}', "'preset' must be the name of a preset or a file; got {}"),
        ('{"preset": "nope"}', "'nope' is none of them"),
        ('{"preset": "base", "members": {"Z": {}}}', "'members' has no member Z. Its members: A."),
        ('{"preset": "base", "members": {"A": 5}}', "'members.A' must be a JSON object; got 5"),
    ],
)
def test_values_that_say_nothing_valid_are_refused(presets, value, message):
    presets("base", {"members": [{"name": "A"}]})
    presets("circle", {"preset": "circle"})
    presets("numbers", [1, 2])
    with pytest.raises(CollabError) as caught:
        read(value)
    assert message in str(caught.value)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    path = tmp_path / "settings.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CollabError, match=r"settings\.json must be a readable text file; .*utf-8.*Correct the path"):
        read(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            ({name: -0.1}, f"V: setting '{name}' must be a finite number >= 0; got -0.1 (float).")
            for name in ("beta", "gamma_encoder", "gamma_decoder")
        ],
        ({"alpha": 0}, "V: setting 'alpha' must be a finite number > 0; got 0"),
        (
            {"lambda_factors": ["alignment", "a"]},
            "setting 'lambda_factors': must be among alignment, similarity, certainty",
        ),
        (
            {"logit_mode": "mutual", "lambda_factors": []},
            "setting 'lambda_factors': has no effect with logit_mode 'mutual', so it must stay ('alignment',",
        ),
        ({"students": []}, "V: setting 'students' must be a list of at least 1 item, each a JSON object; got []"),
        ({"students": [{"name": "A"}, {"name": "A"}]}, "setting 'students': must have distinct names; got ['A', 'A']"),
        ({"students": [{"name": "A", "frozen": "x"}]}, "setting 'students': must leave one student to learn"),
        ({"students": [{"name": "A_B"}]}, "setting 'students[0].name' must be a text of letters and digits; got 'A_B'"),
        *[
            ({"run_name": name}, "V: setting 'run_name' must be a text of letters and digits; got")
            for name in ("a__b", "a ", "a\n", "\u00e9")
        ],
        ({"run_name": "CNN"}, "setting 'run_name': must not be a student's name; got 'CNN'"),
        *[
            ({"seed": seed}, f"V: setting 'seed' must be an integer in [0, 4294967296); got {seed}")
            for seed in (-1, 2**32, 2**70, 10**150)
        ],
        ({"seed": 10**300}, "V: setting 'seed' must be an integer in [0, 4294967296); got 1000"),
        *[
            ({name: value}, f"V: setting '{name}' must be an integer in [1, 2147483648); got {value}")
            for name in ("epochs", "iterations_per_epoch", "val_iterations_per_epoch", "save_every", "max_bad_steps")
            for value in (0, -3, 2**31, 2**70)
        ],
        (
            {"batch_size": 0},
            "V: setting 'batch_size' must be an integer in [1, 2147483648) or 'with_unlabeled' or null; got 0",
        ),
        *[
            ({"patch_size": size}, "V: setting 'patch_size' must be a list of 2 to 3 items, each an integer in [1,")
            for size in ([], [32], [8, 8, 8, 8])
        ],
        *[
            ({"patch_size": [32, size]}, "V: setting 'patch_size[1]' must be an integer in [1, 2147483648); got")
            for size in (0, -32, 2**64, 32.0, True)
        ],
        *[
            ({"students": {"CNN": {name: value}}}, f"V: setting 'students.CNN.{name}' must be {rule}; got {value!r}")
            for name, value, rule in (
                ("lr", 0.0, "a finite number > 0"),
                ("weight_decay", -1.0, "a finite number >= 0"),
                ("momentum", 1.0, "a finite number in [0, 1)"),
                ("warmup", 1.0, "a finite number in [0, 1)"),
                ("poly_power", 0.0, "a finite number > 0"),
                ("grad_clip", -1.0, "a finite number >= 0"),
                ("betas", [0.9], "a list of 2 items, each a finite number in [0, 1)"),
            )
        ],
        (
            {"students": {"CNN": {"betas": [0.9, 1.0]}}},
            "setting 'students.CNN.betas[1]' must be a finite number in [0,",
        ),
    ],
)
def test_values_out_of_range_are_refused_with_their_rule(changes, message):
    with pytest.raises(CollabError) as caught:
        change(CTRCLSettings(), changes, "V")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400
    if message.startswith("setting") and "': " in message:
        assert f"Change it in {VARIABLE} or in your subclass." in str(caught.value)


def test_json_round_trip_keeps_every_value():
    settings = CTRCLSettings(
        students=(replace(CNN, arch={"strides": [[1, 1]]}, betas=(0.5, 0.75)), replace(CNN, name="Two", frozen="f")),
        patch_size=(8, 16),
        lambda_factors=(),
        beta=0.1 + 0.2,
    )
    text = json.dumps(to_json(settings))
    assert from_json(CTRCLSettings, json.loads(text)) == settings
    assert from_json(CTRCLSettings, to_json(CTRCLSettings())) == CTRCLSettings()


def test_differences_name_the_settings_with_both_values():
    ours, theirs = {"a": 1, "b": {"c": 2, "d": [1]}, "e": 5}, {"a": 1, "b": {"c": 3, "d": [1]}, "f": None}
    assert differences(ours, theirs) == ["b.c: 2 here, 3 there", "e: 5 here, None there"]
    assert differences(to_json(CTRCLSettings()), to_json(CTRCLSettings())) == []
    slower = change(CTRCLSettings(), {"students": {"CNN": {"lr": 0.005}}}, "here")
    assert differences(to_json(slower), to_json(CTRCLSettings())) == ["students.CNN.lr: 0.005 here, 0.01 there"]
    assert differences(to_json(CTRCLSettings()), to_json(CTRCLSettings(seed=1))) == ["seed: 0 here, 1 there"]
