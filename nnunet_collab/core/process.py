"""Who writes a file: a process told apart from every other one, on this machine and on others that share the disk.

A process number alone is used again, and containers share host names. So a process is known by the place where its
number counts (host, boot, process namespace), its number, and the moment it started.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")  # Linux only; elsewhere processes are told apart by their numbers
CHECK_S = 0.5  # how often a process looks whether its parent is still there


@dataclass(frozen=True)
class ProcessId:
    """One process.

    Attributes:
        place: Where `pid` counts, 8 hexadecimal digits.
        pid: Its number there.
        started: When it started, in the ticks of that machine since its boot; 0 where this cannot be known.
    """

    place: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"{self.place}-{self.pid}-{self.started}"

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """The process that `str` wrote down, or None."""
        place, *numbers = text.split("-")
        if not place or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            return None
        return cls(place, int(numbers[0]), int(numbers[1]))

    @property
    def is_here(self) -> bool:
        """Whether this process could see it; on Windows it sees no other one."""
        return self.place == _place() and os.name != "nt"

    @property
    def is_gone(self) -> bool:
        """Whether it has ended for certain; never True of another place."""
        return self.is_here and not (_exists(self.pid) and self.started == _start(self.pid))


def this_process() -> ProcessId:
    """The process that asks."""
    return ProcessId(_place(), os.getpid(), _start(os.getpid()))


@cache
def _place() -> str:
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append((PROC / "sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        facts.append(os.readlink(PROC / "self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _start(pid: int) -> int:
    try:
        # The name of the program, in parentheses, may hold blanks; the start is the 20th field after it.
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """A process that has ended, and whose parent has not asked how: it writes nothing any more."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def end_with_parent() -> None:
    """End this helper process within a second of losing the process that started it, whatever ended that one.

    A thread looks, since what the kernel offers is Linux's alone and follows the thread that forked, not its process.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        _end_when(lambda: _is_lost(parent.pid or 0, lambda: parent.join(CHECK_S)) or not parent.is_alive())


def end_with_supervisor() -> None:
    """The same for a process that another program started, such as torchrun."""
    pid, pause = os.getppid(), threading.Event()
    _end_when(lambda: _is_lost(pid, lambda: pause.wait(CHECK_S)))


def _is_lost(pid: int, wait: Callable[[], object]) -> bool:
    wait()
    return os.getppid() != pid


def _end_when(lost: Callable[[], bool]) -> None:
    def watch() -> None:
        while not lost():
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
