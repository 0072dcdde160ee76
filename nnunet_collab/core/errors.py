"""The one exception meant for users: its message says where, the rule, what was found, and how to mend it."""

from __future__ import annotations


class CollabError(RuntimeError):
    """A mistake in what the user gave us (a setting, a file, an environment variable), told in full.

    The command line prints the message without a traceback and exits with status 2.
    """
