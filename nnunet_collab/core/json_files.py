"""Read JSON files that people edit. Every fault becomes a message with its position, not a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError

_BOM = b"\xef\xbb\xbf"
MOST_BYTES = 100_000_000  # a split of 10 000 cases has 2 MB


def read_json(path: Path, fix: str) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        fix: How to fix it, in a sentence; it ends the message.

    Raises:
        CollabError: If the file is missing, unreadable, empty or not JSON; starts with a byte order mark, which nnU-Net
            cannot read either; or has two entries of the same name in an object, one of which would be ignored.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise CollabError(f"{path}: the file must exist; it does not. {fix}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CollabError(f"{path}: it must be a file that can be read; it is not ({error}). {fix}") from error
    return parse_json(raw, str(path), fix)


def parse_json(raw: bytes, where: str, fix: str) -> Any:
    """The content of JSON text in UTF-8.

    Args:
        raw: The text.
        where: Name of the source; it starts the message.
        fix: How to fix it, in a sentence; it ends the message.

    Raises:
        CollabError: As `read_json`.
    """
    if raw.startswith(_BOM):
        raise CollabError(
            f"{where}: it must be UTF-8 without a byte order mark (BOM); it starts with a BOM, which nnU-Net cannot "
            f"read. Save it as `UTF-8`, not as `UTF-8 with BOM`."
        )
    if len(raw) > MOST_BYTES:
        raise CollabError(f"{where}: it must be a JSON file of at most {MOST_BYTES} bytes; it is larger. {fix}")
    if not raw.strip():
        raise CollabError(f"{where}: it must be JSON; it is empty. {fix}")
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repetition)
        if b"\\ud" in raw.lower():
            json.dumps(content, ensure_ascii=False).encode("utf-8")  # fails for half of a surrogate pair
        return content
    except RecursionError as error:
        raise CollabError(f"{where}: it must be JSON; it is nested too deeply. {fix}") from error
    except ValueError as error:
        raise CollabError(f"{where}: it must be JSON; it is not ({_reason(raw, error)}). {fix}") from error


def read_json_object(path: Path, fix: str) -> dict[str, Any]:
    """The content of a JSON file that holds an object, `{...}`, with at least one entry.

    Raises:
        CollabError: As `read_json`, or if the file does not hold such an object.
    """
    content = read_json(path, fix)
    if not isinstance(content, dict) or not content:
        raise CollabError(f"{path}: it must be a JSON object with entries; it is {shown(content)}. {fix}")
    return content


def json_object_or_empty(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object; an empty object if the file is missing or damaged."""
    try:
        return read_json_object(path, "")
    except CollabError:
        return {}


def shown(value: Any, most: int = 60) -> str:
    """A JSON value as it is written in the file, shortened to `most` characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= most else f"{text[:most]}..."


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the entry {twice!r} occurs twice")
    return content


def _reason(raw: bytes, error: ValueError) -> str:
    """The reason in plain words: that of Python, or a clearer one for the most frequent mistakes."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "an escape sequence such as \\ud83d is only half of a character"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    place = f"line {error.lineno}, column {error.colno}"
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].strip()
    if error.msg.startswith("Unterminated string"):
        return f"a text is not closed, from {place}"
    if not after:
        return f"it ends too early, at {place}"
    if (before.endswith(",") and after[0] in "]}") or (after[0] == "," and after[1:].lstrip()[:1] in ("]", "}")):
        return f"a comma stands before a closing bracket, at {place}"
    return f"{error.msg}, at {place}"
