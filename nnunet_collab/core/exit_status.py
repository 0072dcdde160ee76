"""How a command ends: every foreseeable end is one line and an exit status, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from nnunet_collab.core.errors import CollabError

REFUSED, FAILED = 2, 1


def status_of(work: Callable[[], int]) -> int:
    """Do the work of a command and say how it ended.

    Args:
        work: Returns the exit status.

    Returns:
        Its status; 2 after a `CollabError`; 1 if the system refuses something (no permission, a full disk, no such
        folder); 130 after Ctrl-C; 141 if nobody reads the output any more. All but the last are told in a line.
    """
    try:
        status = work()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Who reads our output has seen enough, as `head` does; nothing more is to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as if by the signal that ends other commands then
    except CollabError as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        return refuse("interrupted. What is complete is kept; run the same command again.", 128 + 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        return refuse(
            f"{where}the system refused it ({reason}). Fix the path, the permissions or the disk, then run the "
            "command again.",
            FAILED,
        )


def refuse(message: str, status: int = REFUSED) -> int:
    """Print a message to standard error; returns the exit status."""
    print(f"nnunet_collab: {message}", file=sys.stderr)
    return status
