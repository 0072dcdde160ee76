"""Settings that users write: the environment variable `nnUNet_collab_settings`, JSON files, and presets.

The variable holds

- inline JSON, e.g. `{"beta": 2.0, "students": {"CNN": {"lr": 0.005}}}`,
- the path of a JSON file, or
- the name of a preset that ships with the package (`presets/*.json`).

JSON may name a preset to start from: `{"preset": "ctrcl_resnet50_mitb2", "seed": 1}`. Its own keys replace those of the
preset. It may name its trainer: `"trainer": "CTRCLTrainer"`. Every preset does, and other trainers refuse it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.setting_words import shown
from nnunet_collab.core.settings import VARIABLE, change, check_members

PRESETS = Path(__file__).parents[1] / "presets"
# Keys of a settings file that are not settings; editors look for "$schema".
NO_SETTINGS = ("$schema", "description", "preset", "trainer")

T = TypeVar("T")


class Preset(NamedTuple):
    """A preset that ships with the package.

    Attributes:
        name: Name of the preset.
        trainer: Name of the trainer that it is for.
        description: What it is; the first sentence is shown in lists.
    """

    name: str
    trainer: str
    description: str


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def presets() -> list[Preset]:
    """All presets that ship with the package, by name."""
    contents = {name: _parse(name) for name in preset_names()}
    return [Preset(name, content["trainer"], content["description"]) for name, content in contents.items()]


def settings_from_environment(default: T, trainer: type | None = None) -> T:
    """The trainer's default settings, changed as `nnUNet_collab_settings` says.

    Args:
        default: The default settings.
        trainer: Class of the trainer; presets of other methods are refused. With None, no preset is refused.

    Raises:
        CollabError: If the variable is neither JSON, nor a readable file, nor a preset, or if its content is not valid.
    """
    value = os.environ.get(VARIABLE, "").strip()
    return change(default, read(value, takes=accepted(trainer)), VARIABLE) if value else default


def accepted(trainer: type | None) -> tuple[str, ...]:
    """Names of the trainers whose presets `trainer` accepts.

    A trainer of this package accepts only its own presets: CPS is a subclass of Cross Teaching, but another method. A
    trainer of a user also accepts the presets of the method that it is a subclass of.
    """
    names = []
    for base in trainer.__mro__ if trainer else ():
        names.append(base.__name__)
        if base.__module__.partition(".")[0] == __name__.partition(".")[0]:
            break
    return tuple(names)


def read(value: str, *, takes: Sequence[str] = (), built_on_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings from inline JSON, a JSON file or a preset, merged with those of the preset that it builds on.

    Args:
        value: Inline JSON, path of a JSON file, or name of a preset.
        takes: Names of the trainers that it may be for; empty for any trainer.
        built_on_by: The presets that build on it.

    Raises:
        CollabError: If it cannot be read, is for another trainer, builds on itself through other presets, or changes a
            student that its preset does not have.
    """
    if value in built_on_by:
        chain = " -> ".join([*built_on_by, value])
        raise CollabError(
            f"{VARIABLE}: presets must not build on each other in a circle; got {chain}. Remove one 'preset' entry."
        )
    changes = _parse(value)
    _check_trainer(value, changes, takes)
    base = changes.pop("preset", None)
    if base is not None:
        if not isinstance(base, str):
            raise CollabError(f"{VARIABLE}: 'preset' must be the name of a preset or a file; got {shown(base)}.")
        changes = _merge(read(base, takes=takes, built_on_by=(*built_on_by, value)), changes)
    return {key: item for key, item in changes.items() if key not in NO_SETTINGS}


def _check_trainer(value: str, changes: Mapping[str, Any], takes: Sequence[str]) -> None:
    trainer = changes.get("trainer")
    if not takes or trainer is None or trainer in takes:
        return
    ours = [preset.name for preset in presets() if preset.trainer in takes]
    raise CollabError(
        f"{VARIABLE}: {shown(value)} is for {trainer}, but the trainer is {takes[0]}. "
        f"Presets for it: {', '.join(ours) or 'none'}."
    )


def _parse(value: str) -> dict[str, Any]:
    if value.startswith("{"):
        return _load(value, VARIABLE)
    for path in (PRESETS / f"{value}.json", Path(value)):
        if os.path.isfile(path):  # also False for a text that cannot be a path
            return _load(_text(path), str(path))
    raise CollabError(
        f"{VARIABLE}: must be inline JSON, a JSON file or a preset; {shown(value)} is none of them. "
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
    except RecursionError as error:
        raise CollabError(f"{where}: must be JSON with few levels; it is nested too deeply to be read.") from error
    except ValueError as error:  # not JSON, or a number of more than 4300 digits
        raise CollabError(f"{where}: not valid JSON ({error}). Correct the text, e.g. quote every key.") from error
    if not isinstance(content, dict):
        raise CollabError(f'{where}: must be a JSON object such as {{"beta": 2.0}}; got {type(content).__name__}.')
    return content


def _merge(base: Mapping[str, Any], top: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and _are_named(below):
            check_members(value, [member["name"] for member in below], VARIABLE, prefix + key)
            merged[key] = [_merge(member, value.get(member["name"], {})) for member in below]
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _merge(below, value, f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged


def _are_named(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value)
