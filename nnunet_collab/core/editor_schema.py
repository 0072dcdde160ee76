"""A JSON schema of settings files. With it, an editor checks, completes and explains the settings."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from nnunet_collab.core.presets import NO_SETTINGS
from nnunet_collab.core.settings import Settings, schema_of, to_json


def editor_schema(settings: Settings, presets: Sequence[str]) -> dict[str, Any]:
    """The schema of files that change `settings`.

    Args:
        settings: Settings of a trainer, for the defaults and the names of the students.
        presets: Names of the presets that the trainer accepts.
    """
    schema = copy.deepcopy(dict(schema_of(type(settings))))
    properties, definitions = schema["properties"], schema.setdefault("$defs", {})
    for name, value in to_json(settings).items():
        properties[name]["default"] = value
        members = getattr(settings, name)
        if isinstance(members, tuple) and members and isinstance(members[0], Settings):
            properties[name] = _or_by_name(properties[name], [member.name for member in members], definitions)
    schema.pop("required", None)  # a setting that the file leaves out keeps its value
    texts: dict[str, Any] = {name: {"type": "string"} for name in NO_SETTINGS}
    texts["preset"] = {
        "type": "string",
        "description": "A preset, or a settings file, to start from.",
        "examples": list(presets),
    }
    schema["properties"] = {**texts, **properties}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _or_by_name(listed: dict[str, Any], names: Sequence[str], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a list of named settings, or of an object that changes the default ones."""
    reference = listed["items"]["$ref"]
    whole = definitions[reference.rpartition("/")[2]]
    key = f"{whole['title']}Changes"
    definitions[key] = {**{k: v for k, v in whole.items() if k != "required"}, "title": key}
    changes = {"$ref": f"#/$defs/{key}"}
    by_name = {"type": "object", "properties": dict.fromkeys(names, changes), "additionalProperties": changes}
    told: dict[str, Any] = {k: listed.pop(k) for k in ("description", "default", "title") if k in listed}
    return {**told, "anyOf": [listed, by_name]}
