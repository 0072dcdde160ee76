"""Parts of the site that are made from the code: the settings of every trainer, the presets, and docstrings."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

_CODE = re.compile(r"(``?[^`]+``?)")
_MARKUP = re.compile(r"[*|]|_(?=\W|$)")  # characters that reStructuredText would take for markup


def fill_in(app: Any, name: str, source: list[str]) -> None:
    """Replace the comments that ask for a generated part."""
    for mark, make in (("<!-- settings of all trainers -->", all_settings), ("<!-- presets -->", all_presets)):
        if mark in source[0]:
            source[0] = source[0].replace(mark, "\n".join(make()))


def all_settings() -> Iterator[str]:
    """The settings as Markdown: first those that trainers share, each class once, then what each trainer adds."""
    from nnunet_collab.core.settings import Settings, schema_of
    from nnunet_collab.core.shipped import doorways
    from nnunet_collab.training.settings import StudentSettings

    trainers = {name: getattr(importlib.import_module(home), name) for name, home in sorted(doorways().items())}
    users: dict[type, list[str]] = {}
    for name, trainer in trainers.items():
        for kind in type(trainer.settings).__mro__:
            if issubclass(kind, Settings) and kind is not Settings:
                users.setdefault(kind, []).append(name)
    users[StudentSettings] = list(trainers)
    for kind, names in sorted(users.items(), key=lambda item: (-len(item[1]), item[0].__name__)):
        own = vars(kind).get("own_specs", {})
        schema = schema_of(kind)
        inherited = {field for base in kind.__mro__[1:] for field in vars(base).get("own_specs", {})}
        new = [field for field in own if field not in inherited]
        changed = [field for field in own if field in inherited]
        yield from ("", f"### {kind.__name__}", "")
        yield " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
        whose = "every trainer" if len(names) == len(trainers) else ", ".join(f"`{name}`" for name in names)
        yield from ("", f"Used by {whose}.", "")
        if new:
            yield from ("| setting | default | meaning |", "|---|---|---|")
            yield from (_row(field, schema) for field in new)
        if changed:
            yield from ("", f"Other defaults: {_changed(changed, schema)}.")


def all_presets() -> Iterator[str]:
    """The presets as a table."""
    from nnunet_collab.core.presets import presets

    yield from ("| preset | trainer | content |", "|---|---|---|")
    for preset in presets():
        yield f"| `{preset.name}` | `{preset.trainer}` | {_cell(preset.description)} |"


def _row(field: str, schema: Any) -> str:
    from nnunet_collab.core.setting_words import words

    node = schema["properties"][field]
    told = {"Value": words(schema, node), "Unit": node.get("unit"), "Source": node.get("source")}
    meaning = node.get("description", "") + "".join(f" {key}: {text}." for key, text in told.items() if text)
    return f"| `{field}` | {_default(node)} | {_cell(meaning)} |"


def _changed(fields: list[str], schema: Any) -> str:
    return ", ".join(f"`{field}` {_default(schema['properties'][field])}" for field in fields)


def _default(node: Any) -> str:
    value = node.get("default", "")
    if value == "":
        return "(empty)" if "default" in node else "-"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(item["name"] for item in value)
    return f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def escape_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks, and with indented examples after a colon."""
    example = -1  # indent of the text before an example; -1 outside of one
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if example >= 0 and (not line.strip() or indent > example):
            continue
        parts = _CODE.split(line)
        parts[::2] = (_MARKUP.sub(lambda match: f"\\{match[0]}", part) for part in parts[::2])
        lines[number] = "".join(parts)
        example = indent if _opens_example(lines[number : number + 3], indent) else -1
        if example >= 0:
            lines[number] += ":"


def _opens_example(lines: list[str], indent: int) -> bool:
    """Whether a line ends with a colon, and an empty line and an indented one follow."""
    if len(lines) < 3 or not lines[0].endswith(":") or lines[1].strip():
        return False
    return len(lines[2]) - len(lines[2].lstrip()) > indent


if __name__ == "__main__":
    sys.stdout.write("\n".join([*all_settings(), *all_presets()]))
