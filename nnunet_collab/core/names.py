"""Names that become paths: of cases, datasets, plans and runs. A name must not lead out of its folder."""

from __future__ import annotations

import unicodedata
from typing import Any

from nnunet_collab.core.errors import CollabError

MOST_BYTES = 200  # file systems allow 255, and endings are added


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
    """The name itself, if it can be that of a file or a folder and stays inside the folder it is put into.

    Args:
        where: What is named, and by which file or option; it starts the message.
        name: Any value.
        fix: How to fix it, in a sentence.

    Raises:
        CollabError: If it is no text, is empty, has a separator, a colon or a control character, begins with a dot, or
            is too long.
    """
    if fault := name_fault(name):
        shown = repr(name) if len(repr(name)) <= MOST_BYTES else f"{repr(name)[:40]}..."
        raise CollabError(f"{where}: a name that becomes a path must be plain; {shown} is not: {fault}. {fix}")
    return str(name)
