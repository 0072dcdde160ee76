"""Settings are frozen dataclasses; this file reads them from JSON and checks every key and type.

A user changes the settings of a trainer with the environment variable `nnUNet_collab_settings`, which holds

- inline JSON, e.g. `{"beta": 2.0, "students": {"CNN": {"lr": 0.005}}}`,
- the path of a JSON file, or
- the name of a preset that ships with the package (`presets/*.json`).

JSON may name a preset to start from: `{"preset": "ctrcl_resnet50_mitb2", "seed": 1}`. Keys of the JSON win.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

from nnunet_collab.core.errors import CollabError

VARIABLE = "nnUNet_collab_settings"
PRESETS = Path(__file__).parents[1] / "presets"
COMMENTS = ("description", "preset")  # keys of a settings file that are not settings

T = TypeVar("T")


def require(condition: bool, setting: str, rule: str, found: object) -> None:
    """Raise a `CollabError` that names the setting, the rule and what was found, unless `condition` holds."""
    if not condition:
        raise CollabError(f"setting {setting!r}: {rule}; got {found!r}. Change it in {VARIABLE} or in your subclass.")


def refuse_unused(settings: Any, names: Iterable[str], circumstance: str) -> None:
    """Raise a `CollabError` if a setting that has no effect was changed: whoever changed it believes that it has.

    Args:
        settings: A settings dataclass.
        names: Of the settings without effect.
        circumstance: Under which they have none, such as "in the formulation 'official'".
    """
    for name in names:
        default, value = getattr(type(settings), name), getattr(settings, name)
        require(value == default, name, f"has no effect {circumstance}, so it must stay {default!r}", value)


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def settings_from_environment(default: T) -> T:
    """The trainer's default settings, changed as `nnUNet_collab_settings` says.

    Raises:
        CollabError: If the variable is neither JSON, nor a readable file, nor a preset; or its content is not valid.
    """
    value = os.environ.get(VARIABLE, "").strip()
    return change(default, read(value), VARIABLE) if value else default


def read(value: str, *, built_on_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """What inline JSON, a JSON file or a preset's name says, with the preset it builds on already merged in.

    Raises:
        CollabError: If it cannot be read, presets build on each other in a circle, or a student is not the preset's.
    """
    if value in built_on_by:
        chain = " -> ".join([*built_on_by, value])
        raise CollabError(
            f"{VARIABLE}: presets must not build on each other in a circle; got {chain}. Remove a 'preset'."
        )
    changes = _parse(value)
    base = changes.pop("preset", None)
    if base is not None:
        _expect(isinstance(base, str), f"{VARIABLE}: 'preset'", "the name of a preset or a file", base)
        changes = _merge(read(base, built_on_by=(*built_on_by, value)), changes)
    return {key: item for key, item in changes.items() if key not in COMMENTS}


def change(default: T, changes: Mapping[str, Any], where: str) -> T:
    """A copy of the settings dataclass `default` with the given fields changed, nested ones too.

    A tuple of named dataclasses (the students) may be given whole, as a list, or changed by name, as an object
    `{"CNN": {"lr": 0.005}}`.

    Raises:
        CollabError: If a key is unknown or a value has the wrong type; the message lists what is valid.
    """
    hints = typing.get_type_hints(type(default))
    fields = [field.name for field in dataclasses.fields(default)]  # type: ignore[arg-type]
    unknown = [key for key in changes if key not in fields]
    if unknown:
        raise CollabError(f"{where}: unknown setting {', '.join(map(repr, unknown))}. Valid are: {', '.join(fields)}.")
    new = {
        key: _convert(value, hints[key], getattr(default, key), f"{where}: setting {key!r}")
        for key, value in changes.items()
    }
    return dataclasses.replace(default, **new)  # type: ignore[type-var]


def to_json(settings: Any) -> dict[str, Any]:
    """The settings as plain JSON values; `from_json` reads them back."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(settings))))


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """Settings of the dataclass `kind`, as `to_json` wrote them."""
    return typing.cast("T", _convert(dict(values), kind, None, kind.__name__))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings in which two results of `to_json` differ, with both values."""
    lines = []
    for key in sorted({*ours, *theirs}):
        a, b = _by_name(ours.get(key)), _by_name(theirs.get(key))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} here, {b!r} there")
    return lines


def _by_name(value: Any) -> Any:
    """A list of named things (the students) as an object by name, so that what differs in one of them can be told."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        return {str(item["name"]): item for item in value}
    return value


def _parse(value: str) -> dict[str, Any]:
    if value.startswith("{"):
        return _load(value, VARIABLE)
    for path in (PRESETS / f"{value}.json", Path(value)):
        if os.path.isfile(path):  # False also for what can be no path at all
            return _load(_text(path), str(path))
    raise CollabError(
        f"{VARIABLE}: must be inline JSON, a JSON file or a preset; {value!r} is none of them. "
        f"Presets: {', '.join(preset_names())}."
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CollabError(f"{VARIABLE}: {path} must be a readable text file; {error}. Correct the path.") from error


def _load(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CollabError(f"{where}: not valid JSON ({error}). Mend the text, e.g. quote every key.") from error
    if not isinstance(content, dict):
        raise CollabError(f'{where}: must be a JSON object such as {{"beta": 2.0}}; got {type(content).__name__}.')
    return content


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and _are_named(below):
            _check_members(value, [member["name"] for member in below], f"{VARIABLE}: setting {key!r}")
            merged[key] = [_merge(member, value.get(member["name"], {})) for member in below]
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _are_named(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value)


def _check_members(changes: Mapping[str, Any], names: list[str], where: str) -> None:
    """Raise unless `changes` maps names of members to the changes of each."""
    unknown = [name for name in changes if name not in names]
    if unknown:
        raise CollabError(f"{where}: no member is called {', '.join(unknown)}. There are: {', '.join(names)}.")
    for name, change_of_one in changes.items():
        _expect(isinstance(change_of_one, dict), f"{where}, {name}", "a JSON object", change_of_one)


def _convert(value: Any, hint: Any, current: Any, where: str) -> Any:
    """`value` as the type `hint` says, or a CollabError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = [word for arg in args if typing.get_origin(arg) is Literal for word in typing.get_args(arg)]
        if (value is None and type(None) in args) or (isinstance(value, str) and value in words):
            return value
        (hint,) = (arg for arg in args if arg is not type(None) and typing.get_origin(arg) is not Literal)
        unless = f", unless {' or '.join(map(repr, words))}," if words else ""
        return _convert(value, hint, current, f"{where}{unless}")
    if origin is Literal:
        _expect(value in args, where, f"one of {', '.join(map(repr, args))}", value)
        return value
    if origin is tuple:
        return _convert_tuple(value, args[0], current, where)
    if origin is dict:
        _expect(isinstance(value, dict), where, "a JSON object", value)
        return value
    if dataclasses.is_dataclass(hint):
        _expect(isinstance(value, dict), where, "a JSON object", value)
        return change(current if current is not None else _bare(hint, value, where), value, where)
    if hint is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _expect(is_number and abs(value) <= sys.float_info.max, where, "a finite number", value)
        return float(value)
    _expect(type(value) is hint, where, {int: "an integer", bool: "true or false", str: "a text"}[hint], value)
    return value


def _convert_tuple(value: Any, item: Any, current: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, dict) and dataclasses.is_dataclass(item):
        members = current or ()
        _check_members(value, [member.name for member in members], where)
        return tuple(change(member, value.get(member.name, {}), f"{where}, {member.name}") for member in members)
    _expect(isinstance(value, (list, tuple)), where, "a list", value)
    return tuple(_convert(member, item, None, f"{where}[{i}]") for i, member in enumerate(value))


def _bare(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass `kind` with its defaults, and its required fields from `value`."""
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in value]
    if missing:
        raise CollabError(f"{where}: {', '.join(map(repr, missing))} is required; got {sorted(value)}.")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _convert(value[name], hints[name], None, f"{where}: setting {name!r}") for name in required})


def _expect(condition: bool, where: str, kind: str, value: Any) -> None:
    if not condition:
        raise CollabError(f"{where} must be {kind}; got {value!r} ({type(value).__name__}).")
