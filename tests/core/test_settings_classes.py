"""How a settings class is declared: what a subclass keeps, what its fields say, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pydantic.dataclasses
import pytest
from pydantic import Field

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import Settings, change, from_json, refuse_unused, schema_of, setting, to_json

if TYPE_CHECKING:
    from fractions import Fraction

Mode = Literal["a", "b"]


class Base(Settings):
    """The base."""

    number: float = setting(1.0, "A number.", unit="mm", source="section 1", ge=0, lt=5)
    mode: Mode = setting("a", "A mode.")
    sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    kind: ClassVar[str] = "no setting"


class Child(Base):
    """The child."""

    number: float = 2
    mode = "b"
    extra: float | Literal["auto"] = setting(0.5, "More.")

    def __post_init__(self):
        super().__post_init__()
        if self.number == 3:
            raise CollabError("three")


def test_a_subclass_keeps_meaning_and_bounds_but_not_the_source_of_another_default():
    fields = schema_of(Child)["properties"]
    assert list(fields) == ["number", "mode", "sizes", "extra"]
    assert fields["number"] | {"title": ""} == {
        "type": "number", "default": 2.0, "minimum": 0, "exclusiveMaximum": 5, "description": "A number.", "unit": "mm",
        "title": "",
    }  # fmt: skip
    assert schema_of(Base)["properties"]["number"]["source"] == "section 1"
    assert (fields["mode"]["default"], fields["mode"]["enum"]) == ("b", ["a", "b"])
    assert Child() == Child(number=2.0, mode="b", sizes=None, extra=0.5)
    assert (Child.number, type(Child().number), Base().number, Base.kind) == (2, float, 1.0, "no setting")


class Left(Base):
    left: int = 1
    mode = "b"


class Right(Base):
    right: int = 2
    number = 4.0


class Both(Left, Right):
    both: int = 3


def test_two_parents_are_merged_as_python_orders_them():
    assert to_json(Both()) == {"number": 4.0, "mode": "b", "sizes": None, "right": 2, "left": 1, "both": 3}
    with pytest.raises(CollabError, match="number"):
        Both(number=5)


@pytest.mark.parametrize("make", [Child, lambda **values: replace(Child(), **values)])
def test_constructor_and_replace_check_alike(make):
    for values, message in (
        (
            {"number": -1},
            r"^Child: setting 'number' must be a finite number in \[0, 5\); got -1 \(int\)\. Meaning: A number.$",
        ),
        ({"number": True}, "'number' must be a finite number .*got True"),
        ({"number": "1"}, "'number' must be a finite number .*got '1'"),
        ({"number": float("nan")}, "'number' must be a finite number .*got nan"),
        ({"number": 10**400}, r"'number' must be a finite number .*got 10+\.\.\."),
        ({"number": 10**5000}, "got a number too long to print"),
        ({"mode": "c"}, "'mode' must be one of 'a', 'b'; got 'c'"),
        ({"extra": "none"}, "'extra' must be a finite number or 'auto'; got 'none'"),
        ({"sizes": (1, 0)}, r"'sizes\[1\]' must be an integer >= 1; got 0"),
        ({"sizes": (1, 2.0)}, r"'sizes\[1\]' must be an integer >= 1; got 2\.0"),
        ({"sizes": "12"}, "'sizes' must be a list, each an integer >= 1 or null; got '12'"),
        ({"nope": 1}, "^Child: unknown setting 'nope'. Valid settings: number, mode, sizes, extra.$"),
        ({"number": 3}, "^three$"),
    ):
        with pytest.raises(CollabError, match=message):
            make(**values)
    assert make(number=3 + 1, sizes=[1, 2]) == Child(4.0, sizes=(1, 2))  # a list is as good as a tuple


def test_settings_are_frozen_hashable_and_can_be_sent_to_other_processes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Child().number = 1.0
    assert len({Child(), Child(), Child(mode="a")}) == 2
    assert pickle.loads(pickle.dumps(Child(extra="auto"))) == Child(extra="auto")
    assert from_json(Child, to_json(Child(extra="auto", sizes=(3,)))) == Child(extra="auto", sizes=(3,))


def test_a_default_that_breaks_its_own_bounds_is_refused():
    class Wrong(Base):
        number: float = 7.0

    with pytest.raises(CollabError, match="Wrong: setting 'number' must be a finite number in"):
        Wrong()


def test_what_has_no_effect_is_compared_with_the_default_of_the_class():
    refuse_unused(Child(), ["number", "mode"], "here")
    with pytest.raises(CollabError, match=r"'number': has no effect here, so it must stay 2; got 1\.0"):
        refuse_unused(Child(number=1.0), ["mode", "number"], "here")


def test_a_type_that_only_type_checkers_know_is_refused():
    with pytest.raises(CollabError, match=r"Unknown: .*name 'Fraction' is not defined\. Import it at the top"):

        class Unknown(Base):
            part: Fraction | None = None


@pytest.mark.parametrize("decorator", [dataclasses.dataclass, pydantic.dataclasses.dataclass])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_decorator_which_would_take_the_checks_away_is_refused_by_python(decorator, frozen):
    with pytest.raises(TypeError, match=r"frozen|overwrite"):

        @decorator(frozen=frozen)
        class Again(Base):
            more: float = 1.0


USER_FILE = """
from __future__ import annotations

from typing import Literal

from nnunet_collab.core.settings import Settings, setting

Mode = Literal["x", "y"]

class Part(Settings):
    name: str = "p"
    size: int = 1

class Mine(Settings):
    mode: Mode = setting("x", "Local type.")
    parts: tuple[Part, ...] = (Part(),)

class MineToo(Mine):
    more: Mode = "y"
"""


def test_a_module_that_is_forgotten_after_its_import_as_nnunet_does(tmp_path, monkeypatch):
    (tmp_path / "user_settings.py").write_text(USER_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("user_settings")
    del sys.modules["user_settings"]
    new = change(module.MineToo(), {"mode": "y", "parts": {"p": {"size": 2}}}, "V")
    assert to_json(new) == {"mode": "y", "parts": [{"name": "p", "size": 2}], "more": "y"}
    assert from_json(module.MineToo, to_json(new)) == new
    with pytest.raises(CollabError, match=r"V: setting 'parts\[0\].size' must be an integer; got 'x'"):
        change(new, {"parts": [{"size": "x"}]}, "V")

    class Later(module.MineToo):
        mode = "y"

    assert Later().mode == "y"
    assert schema_of(Later)["properties"]["mode"]["description"] == "Local type."
