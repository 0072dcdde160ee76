"""Ctrl-C and a scheduler's SIGTERM end a training in order: workers gone, nothing half-written, status 130 or 143."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

# Signal -> what Python does with it by itself, the only handler that is replaced.
_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class EndOnSignals:
    """Turns the two signals into SystemExit, which runs every `finally` and what is registered for the exit.

    Args:
        advice: Printed after the name of the signal.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.pid = os.getpid()
        self.before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """From now on; not where somebody else handles a signal, nor in a thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, default in _SIGNALS.items():
            if signal.getsignal(number) == default:
                self.before[number] = default
                signal.signal(number, self._end)

    def restore(self) -> None:
        """Until now; safe to call again."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                signal.signal(number, handler)
            self.before = {}

    def _end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a forked helper has these handlers, too, but nothing to put in order
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        threading.excepthook = lambda _: None  # threads that miss the workers would print more than the one line
        print(f"Ended by {signal.Signals(number).name}. {self.advice}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)
