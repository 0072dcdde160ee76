"""The settings in which the compared trainings differ, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.tables import EMPTY, Cell, Table

if TYPE_CHECKING:
    from nnunet_collab.report.grouping import Method

_NOT_COMPARED = ("seed", "run_name")


def settings_table(comparison: Comparison) -> Table | None:
    """The settings and students in which the methods differ; None if fewer than two methods have settings."""
    flat = {m.label: _flat(settings) for m in comparison.methods if (settings := settings_of(m))}
    if len(flat) < 2:
        return None
    names = [{student["name"] for student in settings_of(m).get("students", [])} for m in comparison.methods]
    for values in flat.values():
        _shorten(values, set.union(*names) - set.intersection(*names))
    keys = sorted({key for values in flat.values() for key in values})
    differing = [key for key in keys if _differs(key, list(flat.values()))]
    rows = [[Cell(key), *(Cell(_text(values.get(key, EMPTY))) for values in flat.values())] for key in differing]
    title = "Settings that differ between the methods that have them"
    note = "Of the first seed; a setting that only one method has is in the foldable parts below."
    return Table("", title, ["setting", *flat], rows, {"dataset": comparison.dataset}, note)


def _differs(key: str, settings: list[dict[str, Any]]) -> bool:
    values = {str(one[key]) for one in settings if key in one}
    # A setting that only some methods have gets a line only if it says which networks were trained.
    return len(values) > 1 or (key.startswith("students.") and any(key not in one for one in settings))


def _shorten(values: dict[str, Any], students: set[str]) -> None:
    """For a student that some methods do not have, keep only one line: its network."""
    for name in students:
        own = [key for key in values if key.startswith(f"students.{name}.")]
        network = values.get(f"students.{name}.network", "yes")
        for key in own:
            del values[key]
        if own:
            values[f"students.{name}"] = network


def settings_of(method: Method) -> Mapping[str, Any]:
    """The settings of a method's first seed, with the trainer's name; empty if they are not known."""
    record = method.results[0].source.record
    return {"trainer": record["trainer"], **record["settings"]} if record else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings; entries of a list that have names are identified by them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _NOT_COMPARED and not prefix:
            continue
        if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
            for item in value:
                flat |= _flat({k: v for k, v in item.items() if k != "name"}, f"{prefix}{key}.{item['name']}.")
        elif isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return {"": "none", "None": "default"}.get(str(value), str(value))
