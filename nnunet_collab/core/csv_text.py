"""CSV files whose text a spreadsheet shows and does not run.

A spreadsheet takes a cell that starts with `=`, `+`, `-`, `@`, a tab or a carriage return for a formula, quoted or not,
and names of cases and classes come from files of others. Such a text gets an apostrophe in front, as OWASP advises
("CSV Injection"), and loses it again when this package reads the file. Numbers stay as they are.
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
    """Write a table, whole or not at all.

    Raises:
        CollabError: If the file cannot be written.
    """
    safe = _of_texts(frame, _harmless)
    # Python before 3.13 does not quote a carriage return, and the rest of the text would be a cell of its own.
    texts = [*safe.columns, *safe.select_dtypes(exclude=["number", "bool"]).to_numpy().ravel()]
    quoting = csv.QUOTE_ALL if any("\r" in text for text in texts if isinstance(text, str)) else csv.QUOTE_MINIMAL
    write_atomically(path, partial(safe.to_csv, index=False, quoting=quoting))


def restored(frame: pd.DataFrame) -> pd.DataFrame:
    """The texts of a table as they were before `write_csv`."""
    return _of_texts(frame, _original)


def _of_texts(frame: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """The table with every text changed, those of the head, too."""
    texts = frame.select_dtypes(exclude=["number", "bool"])
    return frame.assign(**{name: texts[name].map(change) for name in texts}).rename(columns=change)


def _looks_like_formula(text: str) -> bool:
    # An apostrophe of the text's own is doubled, so that it is not taken away when read.
    return text.lstrip(_MARK).startswith(_FORMULA)


def _harmless(value: Any) -> Any:
    return _MARK + value if isinstance(value, str) and _looks_like_formula(value) else value


def _original(value: Any) -> Any:
    marked = isinstance(value, str) and value.startswith(_MARK) and _looks_like_formula(value)
    return value[1:] if marked else value
