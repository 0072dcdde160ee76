"""The one exception meant for users: its message says where, the rule, what was found, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence


class CollabError(RuntimeError):
    """A mistake in the user's input: a setting, a file, an argument or an environment variable.

    The command line prints the message without a traceback and exits with status 2.
    """


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, and the number of the remaining ones."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
