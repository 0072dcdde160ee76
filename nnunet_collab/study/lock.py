"""A lock that the operating system releases when its holders end, for any reason.

Its file says who holds it. Commands that a holder starts can hold it, too. So a training that still runs after its
study was killed keeps a second study out of its folder.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType

from nnunet_collab.core.errors import CollabError


class Lock:
    """A lock for `with`; only one process holds the lock of a file.

    Args:
        path: Path of its file, which is kept after the release.
        what: Description of the protected object, for the message.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what
        self.descriptor = -1
        self._commands: list[int] = []

    def __enter__(self) -> Lock:
        """Take the lock.

        Raises:
            CollabError: If another process holds it (the message has its id and machine), or the disk has no locks.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(self.descriptor)
        except OSError as error:
            os.close(self.descriptor)
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise CollabError(self._refusal()) from error
            raise CollabError(
                f"{self.path}: a lock must be taken there, so that nothing is trained twice at a time; this disk has "
                f"none ({error}). Use a folder on another disk."
            ) from error
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock; commands that hold it, too, keep it."""
        os.close(self.descriptor)

    def note_command(self, pid: int) -> None:
        """Record that a command holds the lock, too."""
        self._commands = [pid]
        self._write()

    def _write(self) -> None:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "commands": self._commands,
        }
        content = json.dumps(holder).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, content, 0) if hasattr(os, "pwrite") else os.write(self.descriptor, content)

    def _refusal(self) -> str:
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            commands = ", ".join(map(str, holder["commands"]))
            who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
            who += f", or its command, process {commands}, if that still runs" if commands else ""
        except (OSError, ValueError, KeyError, TypeError):  # its holder is writing it at this moment
            who = "another process"
        return (
            f"{self.what}: only one process may work on it at a time; now it is {who}. Wait until it ends, or end it."
        )


def _lock(descriptor: int) -> None:
    """Take the lock; raises OSError if another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
