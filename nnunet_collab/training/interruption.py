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


class EndOnSignals:
    """Turns the two signals into SystemExit, which runs every `finally` block and every exit handler.

    Args:
        advice: Printed after the name of the signal.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.pid = os.getpid()
        self.before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Install the handlers; not if a signal has another handler already, and not in a thread (Python cannot)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, default in _SIGNALS.items():
            if signal.getsignal(number) == default:
                self.before[number] = default
                signal.signal(number, self._end)

    def restore(self) -> None:
        """Remove the handlers; safe to call again."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                signal.signal(number, handler)
            self.before = {}

    def _end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a forked process inherits the handlers but has nothing to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        threading.excepthook = lambda _: None  # threads that miss the workers would print more than the one line
        print(f"Ended by {signal.Signals(number).name}. {self.advice}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)
