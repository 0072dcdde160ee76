"""End a training cleanly on Ctrl-C or SIGTERM: no workers left, no half-written file, exit status 130 or 143."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

# Signal -> Python's default handler. Only that handler is replaced.
_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_installed: set[signal.Signals] = set()  # those with a handler of ours in this process
_masks = threading.local()  # signals that a thread blocked before it forked


class EndOnSignals:
    """Turns the two signals into SystemExit, which runs every `finally` block and every exit handler.

    Args:
        advice: Printed after the name of the signal.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Install the handlers; not if a signal has another handler already, and not in a thread (Python cannot)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, default in _SIGNALS.items():
            if signal.getsignal(number) == default:
                self.before[number] = default
                signal.signal(number, self._end)
                _installed.add(number)

    def restore(self) -> None:
        """Remove the handlers; safe to call again."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                signal.signal(number, handler)
                _installed.discard(number)
            self.before = {}

    def _end(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        threading.excepthook = lambda _: None  # threads that miss the workers would print more than the one line
        print(f"Ended by {signal.Signals(number).name}. {self.advice}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)


# A forked process has nothing to clean up: a signal ends it at once. Python's handlers would lose a signal that comes
# before the new process has run its first instruction, as when a pool is ended right after its start, and the parent
# would wait for ever. So the signals are held back until the new process has the system's own handlers.


def _before_fork() -> None:
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _installed) if _installed else None


def _after_fork_in_parent() -> None:
    if _masks.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _after_fork_in_child() -> None:
    for number in _installed:
        signal.signal(number, signal.SIG_DFL)
    _installed.clear()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
