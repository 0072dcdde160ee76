"""How a command ends: for every expected failure it prints one line and sets an exit status, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from nnunet_collab.core.errors import CollabError

REFUSED, FAILED = 2, 1


def status_of(work: Callable[[], int]) -> int:
    """Run a command and return its exit status.

    Args:
        work: Function that runs the command and returns the exit status.

    Returns:
        The status of the command; 2 after a `CollabError`; 1 after an error of the operating system (no permission,
        a full disk, no such folder); 130 after Ctrl-C; 141 if the reader of the output has closed it. Each failure but
        the last prints one line.
    """
    try:
        status = work()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader, e.g. `head`, has closed our output. Without this, Python would fail when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # the status of a command that SIGPIPE ends
    except CollabError as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        return refuse("interrupted. Complete files are kept. To continue, run the same command again.", 128 + 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        return refuse(
            f"{where}the operating system reports: {reason}. Fix the path, the permissions or the disk, then run the "
            "command again.",
            FAILED,
        )


def refuse(message: str, status: int = REFUSED) -> int:
    """Print a message to standard error; returns the exit status."""
    print(f"nnunet_collab: {message}", file=sys.stderr)
    return status
