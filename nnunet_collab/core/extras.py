"""Packages that are imported when they are asked for; each comes with an extra of this package."""

from __future__ import annotations

import importlib
from typing import Any

from nnunet_collab.core.errors import CollabError


def require_package(name: str, extra: str, purpose: str) -> Any:
    """The module.

    Args:
        name: Name of the package.
        extra: Extra of this package that brings it.
        purpose: Who needs it and for what; it starts the message.

    Raises:
        CollabError: If it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CollabError(
            f"{purpose} needs the package {name}; it cannot be imported ({error}). Install it: pip install "
            f"'nnunet-collab[{extra}]'"
        ) from error
