"""Identify the process that writes a file, also if several machines share the disk.

A process number is not enough: numbers are reused, and containers share host names. So a process is identified by the
place in which its number is valid (host, boot, process namespace), by its number, and by its start time.
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

PROC = Path("/proc")  # Linux only; other systems use the process number alone
CHECK_S = 0.5  # seconds between two checks whether the parent process still runs


@dataclass(frozen=True)
class ProcessId:
    """Identity of a process.

    Attributes:
        place: Where `pid` is valid, as 8 hexadecimal digits.
        pid: Process number.
        started: Start time in clock ticks since the boot of the machine; 0 if it is not known.
    """

    place: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"{self.place}-{self.pid}-{self.started}"

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """The process that `str(ProcessId)` describes, or None if the text is not valid."""
        place, *numbers = text.split("-")
        if not place or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            return None
        return cls(place, int(numbers[0]), int(numbers[1]))

    @property
    def is_here(self) -> bool:
        """Whether the current process can check if it runs; never True on Windows."""
        return self.place == _place() and os.name != "nt"

    @property
    def is_gone(self) -> bool:
        """Whether it has certainly ended; never True for a process of another place."""
        return self.is_here and not (_exists(self.pid) and self.started == _start(self.pid))


def this_process() -> ProcessId:
    """The current process."""
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
        # The name of the program, in parentheses, may contain blanks. The start time is the 20th field after it.
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
    """Whether the process has ended but its parent has not read its status. Such a process writes nothing."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def end_with_parent() -> None:
    """End this worker process within 1 s after its parent process has ended, for whatever reason.

    A thread checks the parent. The kernel's own mechanism exists only on Linux, and it watches the thread that forked,
    not its process.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        _end_when(lambda: _is_lost(parent.pid or 0, lambda: parent.join(CHECK_S)) or not parent.is_alive())


def end_with_supervisor() -> None:
    """End this process within 1 s after the program that started it, e.g. torchrun, has ended."""
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
