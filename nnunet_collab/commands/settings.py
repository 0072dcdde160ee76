"""`nnunet_collab settings TRAINER`: print every setting of a trainer: default, meaning, bounds and source."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.shipped import VARIABLE as FOLDERS
from nnunet_collab.core.shipped import doorways

if TYPE_CHECKING:  # importing pydantic takes 1 s, and --help must be fast
    from nnunet_collab.core.settings import Settings

_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "trainer", metavar="TRAINER", help=f"a trainer such as CTRCLTrainer, or your own in a folder of {FOLDERS}"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="show the changes of this preset or settings file (default: the variable nnUNet_collab_settings, if set)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print only the effective settings, as JSON")
    form.add_argument(
        "--schema", action="store_true", help="print a JSON schema, with which an editor checks settings files"
    )


def run(args: argparse.Namespace) -> int:
    """Print the page, the effective settings, or the schema.

    Returns:
        0.

    Raises:
        CollabError: If there is no such trainer, or the settings are not valid for it.
    """
    from nnunet_collab.core.editor_schema import editor_schema
    from nnunet_collab.core.presets import accepted, presets, read, settings_from_environment
    from nnunet_collab.core.settings import VARIABLE, change, to_json

    trainer = find_trainer(args.trainer)
    default: Settings = trainer.settings
    takes = accepted(trainer)
    names = [preset.name for preset in presets() if preset.trainer in takes]
    if args.schema:
        print(json.dumps(editor_schema(default, names), indent=2))
        return 0
    if args.preset:
        effective, origin = change(default, read(args.preset, takes=takes), args.preset), args.preset
    else:
        effective = settings_from_environment(default, trainer)
        origin = f"the variable {VARIABLE}" if os.environ.get(VARIABLE, "").strip() else ""
    print(json.dumps(to_json(effective), indent=2) if args.json else page(trainer, effective, names, origin))
    return 0


def find_trainer(name: str) -> Any:
    """The class of a trainer that ships with the package, or that nnU-Net finds.

    Raises:
        CollabError: If there is no such trainer, or if it has no settings.
    """
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints where it searches
        home = doorways().get(name)
        found = getattr(importlib.import_module(home), name) if home else _found_by_nnunet(name)
    from nnunet_collab.core.settings import Settings

    if not isinstance(getattr(found, "settings", None), Settings):
        raise CollabError(
            f"settings: TRAINER must be a trainer with settings; {name} is a trainer of nnU-Net and has none. "
            f"Use one of {_listed()}."
        )
    return found


def _found_by_nnunet(name: str) -> Any:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise CollabError(
            f"settings: there is no trainer {name!r}; the trainers are {_listed()}. "
            f"To use your own trainer, add its folder to {FOLDERS}."
        ) from error


def _listed() -> str:
    return ", ".join(doorways())


def page(trainer: Any, settings: Settings, presets: list[str], origin: str) -> str:
    """All settings of a trainer, as a page of text.

    Args:
        trainer: Class of the trainer.
        settings: Effective settings.
        presets: Names of the presets for the trainer.
        origin: Source of the changes; empty if nothing is changed.
    """
    return "\n".join([*_head(trainer, presets, origin), *_groups(trainer.settings, settings), *_students(settings)])


def _head(trainer: Any, presets: list[str], origin: str) -> Iterator[str]:
    from nnunet_collab.core.settings import VARIABLE

    # nnU-Net removes the module of a user's trainer from `sys.modules`. A class without docstring has its parent's.
    text = inspect.getdoc(sys.modules.get(trainer.__module__)) or inspect.getdoc(trainer) or ""
    yield trainer.__name__
    yield from _indented(text.split("\n\n")[0], 4)
    yield ""
    yield from _indented(
        f"Set the variable {VARIABLE} to JSON, to a JSON file or to a preset, "
        f"or change the settings in a subclass. Presets: {', '.join(presets) or 'none'}.",
        4,
    )
    if origin:
        yield ""
        yield from _indented(f"Values include the changes of {origin}. The default stands beside a changed value.", 4)


def _groups(default: Settings, settings: Settings) -> Iterator[str]:
    """The settings, grouped by the class that introduces them; those of the method come first."""
    from nnunet_collab.core.settings import Settings, schema_of, to_json

    schema, values, defaults = schema_of(type(settings)), to_json(settings), to_json(default)
    bases = [base for base in type(settings).__mro__ if issubclass(base, Settings) and base is not Settings]
    home = {name: base for base in bases for name in vars(base)["own_specs"]}  # the last base is the one that adds it
    for base in bases:
        names = [name for name in settings.specs if home[name] is base]
        if names:
            yield from ("", *_indented(f"{base.__name__}: {_first_line(base)}", 0))
        for name in names:
            yield from _entry(name, schema["properties"][name], schema, values[name], defaults[name])


def _entry(name: str, node: Mapping[str, Any], schema: Mapping[str, Any], value: Any, default: Any) -> Iterator[str]:
    from nnunet_collab.core.setting_words import words

    now, before = _shown(value), _shown(default)
    changed = f"(default: {before})" if now != before else "(changed, see below)" if value != default else ""
    yield ""
    yield f"    {name} = {now}   {changed}".rstrip()
    yield from _indented(node.get("description", ""), 8)
    told = {"Value": words(schema, node), "Unit": node.get("unit"), "Source": node.get("source")}
    yield from _indented(" ".join(f"{key}: {text}." for key, text in told.items() if text), 8)


def _students(settings: Settings) -> Iterator[str]:
    """The settings of a student, and the settings in which the students differ from the defaults."""
    from nnunet_collab.core.settings import schema_of, to_json

    members: tuple[Settings, ...] = getattr(settings, "students", ())
    if not members:
        return
    kind = type(members[0])
    schema = schema_of(kind)
    defaults = {name: node.get("default", {}) for name, node in schema["properties"].items() if name != "name"}
    yield from ("", *_indented(f"{kind.__name__}: {_first_line(kind)}", 0))
    for name, value in defaults.items():
        yield from _entry(f"students.<name>.{name}", schema["properties"][name], schema, value, value)
    yield from ("", "Students of this trainer, and their settings that differ from these defaults:")
    for member in members:
        own = to_json(member)
        told = ", ".join(f"{name} = {_shown(own[name])}" for name, value in defaults.items() if own[name] != value)
        yield ""
        yield from _indented(f"{member.name}: {told or 'no difference'}", 4)  # type: ignore[attr-defined]


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def _shown(value: Any) -> str:
    """The value as JSON; for a list of named settings, their names."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "name" in value[0]:
        return ", ".join(item["name"] for item in value)
    return json.dumps(value)


def _indented(text: str, by: int) -> list[str]:
    indent = " " * by
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent=indent, subsequent_indent=indent)
