"""CSV files whose texts a spreadsheet shows as they are, and does not run as formulas.

A spreadsheet treats a cell that starts with `=`, `+`, `-`, `@`, a tab or a carriage return as a formula, quoted or not.
Names of cases and classes may come from untrusted files. Such a text gets an apostrophe in front, as OWASP advises
("CSV Injection"). The apostrophe is removed when this package reads the file. Numbers are not changed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_collab.core.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARK = "'"


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table atomically.

    Raises:
        CollabError: If the file cannot be written.
    """
    safe = _of_texts(frame, _harmless)
    # Python before 3.13 does not quote a carriage return, and the rest of the text would be a cell of its own.
    texts = [*safe.columns, *safe.select_dtypes(exclude=["number", "bool"]).to_numpy().ravel()]
    quoting = csv.QUOTE_ALL if any("\r" in text for text in texts if isinstance(text, str)) else csv.QUOTE_MINIMAL
    write_atomically(path, partial(safe.to_csv, index=False, quoting=quoting))


def restored(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its texts as they were before `write_csv`."""
    return _of_texts(frame, original)


def _of_texts(frame: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """The table with `change` applied to every text, including the column names."""
    texts = frame.select_dtypes(exclude=["number", "bool"])
    return frame.assign(**{name: texts[name].map(change) for name in texts}).rename(columns=change)


def _looks_like_formula(text: str) -> bool:
    # A text that already starts with an apostrophe gets a second one, so that reading removes only that one.
    return text.lstrip(_MARK).startswith(_FORMULA)


def _harmless(value: Any) -> Any:
    return _MARK + value if isinstance(value, str) and _looks_like_formula(value) else value


def original(value: Any) -> Any:
    """A cell as it was before `write_csv`."""
    marked = isinstance(value, str) and value.startswith(_MARK) and _looks_like_formula(value)
    return value[1:] if marked else value
