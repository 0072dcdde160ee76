"""Check names of cases, datasets, plans and runs. They become paths and must not point outside their folder."""

from __future__ import annotations

import unicodedata
from typing import Any

from nnunet_collab.core.errors import CollabError

MOST_BYTES = 200  # file systems allow 255 bytes, and file endings are added to the name


def name_fault(name: Any) -> str | None:
    """Why a value cannot be the name of a file or a folder, or None if it can."""
    if not isinstance(name, str):
        return "it is not a text"
    if not name.strip():
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it has a path separator"
    if name.startswith("."):
        return "it begins with a dot"
    if name != name.strip() or name.endswith("."):
        return "it begins or ends with a space or ends with a dot, which some systems drop"
    if ":" in name:
        return "it has a colon, which names a drive on some systems"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return "it has a control character"
    if len(name.encode()) > MOST_BYTES:
        return f"it has more than {MOST_BYTES} bytes"
    return None


def require_plain_name(where: str, name: Any, fix: str = "Rename it.") -> str:
    """Return the name if it can name a file or a folder and does not point outside its folder.

    Args:
        where: What is named, and the file or option that gives the name; it starts the message.
        name: Any value.
        fix: How to fix it, in a sentence.

    Raises:
        CollabError: If it is not a string, is empty or too long, starts with a dot, or contains a path separator, a
            colon or a control character.
    """
    if fault := name_fault(name):
        shown = repr(name) if len(repr(name)) <= MOST_BYTES else f"{repr(name)[:40]}..."
        raise CollabError(f"{where}: the name must be a valid file name; {shown} is not: {fault}. {fix}")
    return str(name)
