"""Describe the type and the bounds of a setting in words, and the fault of a value in one sentence.

Both come from the JSON schema that pydantic makes of a settings class. So the printed page, the messages and the schema
for editors always state the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

Schema = Mapping[str, Any]

_NOUNS = {
    "number": "a finite number",
    "integer": "an integer",
    "string": "a text",
    "boolean": "true or false",
    "object": "a JSON object",
    "null": "null",
}
_LONGEST = 200  # largest number of characters of a value in a message


def words(schema: Schema, node: Schema) -> str:
    """The rule for a value, such as "a finite number in [0, 1)".

    Args:
        schema: The JSON schema of the settings class, for its `$defs`.
        node: The part of the schema that describes the value.
    """
    if "rule" in node:
        return str(node["rule"])
    node = _resolved(schema, node)
    if "anyOf" in node:
        return " or ".join(words(schema, option) for option in node["anyOf"])
    if "enum" in node:
        return f"one of {', '.join(map(repr, node['enum']))}"
    if "const" in node:
        return repr(node["const"])
    kind = node.get("type")
    if kind == "array":
        return _list_words(schema, node)
    if kind == "string" and "pattern" in node:
        return f"a text that matches {node['pattern']}"
    return f"{_NOUNS.get(str(kind), 'a JSON value')}{_bounds(node)}"


def explain(error: ValidationError, schema: Schema, where: str, prefix: str = "") -> str:
    """One sentence about the first fault: where it is, the setting, the rule, the value found; then the meaning.

    Args:
        error: The error of pydantic.
        schema: The JSON schema of the settings class.
        where: Source of the value, such as the name of the environment variable.
        prefix: Start of the setting's full name, such as "students.CNN.".
    """
    fault = error.errors(include_url=False)[0]
    name, node, owner = _find(schema, fault["loc"], prefix)
    if fault["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown setting {name!r}. Valid settings: {', '.join(owner.get('properties', {}))}."
    if fault["type"] in ("missing", "missing_argument"):
        return f"{where}: setting {name!r} is required; it has no default."
    if not fault["loc"]:
        return f"{where}: {fault['msg']}."
    if fault["type"] == "dataclass_exact_type":
        rule = f"an instance of {_resolved(schema, node).get('title')}"
    else:
        rule = words(schema, node)
    found = fault["input"]
    meaning = f" Meaning: {node['description']}" if "description" in node else ""
    return f"{where}: setting {name!r} must be {rule}; got {shown(found)} ({type(found).__name__}).{meaning}"


def shown(value: object) -> str:
    """The `repr` of a value, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits
        text = "a number too long to print"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _list_words(schema: Schema, node: Schema) -> str:
    least, most = node.get("minItems", 0), node.get("maxItems")
    if least == most:
        size = f" of {least} items"
    elif most is not None:
        size = f" of {least} to {most} items"
    else:
        size = f" of at least {least} item{'s' * (least > 1)}" if least else ""
    return f"a list{size}, each {words(schema, node['items'])}" if "items" in node else f"a list{size}"


def _bounds(node: Schema) -> str:
    lower = "[" if "minimum" in node else "(" if "exclusiveMinimum" in node else ""
    upper = "]" if "maximum" in node else ")" if "exclusiveMaximum" in node else ""
    least = node.get("minimum", node.get("exclusiveMinimum"))
    most = node.get("maximum", node.get("exclusiveMaximum"))
    if lower and upper:
        return f" in {lower}{least}, {most}{upper}"
    if lower:
        return f" {'>=' if lower == '[' else '>'} {least}"
    return f" {'<=' if upper == ']' else '<'} {most}" if upper else ""


def _resolved(schema: Schema, node: Schema) -> Schema:
    reference = node.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else node


def _find(schema: Schema, location: tuple[int | str, ...], prefix: str) -> tuple[str, Schema, Schema]:
    """For pydantic's `location`: the name of the setting, its schema, and the schema of the object that holds it."""
    name, node, owner = "", _resolved(schema, schema), schema
    for step in location:
        node = _resolved(schema, node)
        options = [_resolved(schema, option) for option in node.get("anyOf", [node])]
        if isinstance(step, int):
            name += f"[{step}]"
            node = next((option["items"] for option in options if "items" in option), {})
            continue
        holders = [option for option in options if "properties" in option]
        if holders:
            owner = holders[0]
            node = owner["properties"].get(step, {})
        elif any(option.get("type") == "object" for option in options):
            node = {}
        else:
            continue  # pydantic's name for one of several types
        name += f"{'.' * bool(name)}{step}"
    return prefix + name, node, owner
