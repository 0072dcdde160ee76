"""Running a Python program to its end: in a new process, or in a child of one that has imported nnU-Net already."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

HANGING_S = 900  # no command takes a tenth of it on a machine that is not busy
FORK_SERVER = Path(__file__).with_name("interpreter") / "fork_server.py"


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


def shown(done):
    """The end of what a command printed."""
    return f"--- stdout\n{done.out[-6000:]}\n--- stderr\n{done.err[-6000:]}"


def run_new(arguments, environment, folder):
    """`python *arguments`, in a session of its own, so that a command that hangs can be ended with all its children."""
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=HANGING_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes, which have sessions of their own
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{arguments} hangs\n{shown(Done(-1, out, err))}") from None
    return Done(process.returncode, out, err)


class ForkServer:
    """The process that has imported nnU-Net; started by the first command, as the imports take longer than that."""

    def __init__(self):
        self.lock, self.process, self.address = threading.Lock(), None, None

    def run(self, arguments, environment, folder):
        """As `run_new`, but the Python path, the threads and the GPUs are those of the first command."""
        with self.lock:
            if self.process is None:
                self.start(environment)
        with tempfile.TemporaryDirectory() as printed:
            out, err = Path(printed, "out"), Path(printed, "err")
            request = {"arguments": arguments, "environment": environment, "folder": str(folder)}
            code = self.ask({**request, "out": str(out), "err": str(err)})
            done = Done(code, *(path.read_text(errors="replace") for path in (out, err)))
        assert code is not None, f"{arguments} hangs\n{shown(done)}"
        return done

    def start(self, environment):
        folder = tempfile.TemporaryDirectory()
        self.address = str(Path(folder.name, "socket"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            command = [sys.executable, str(FORK_SERVER), str(listener.fileno())]
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
            )
        atexit.register(folder.cleanup)
        atexit.register(self.process.communicate)  # the end of its standard input ends it

    def ask(self, request):
        """The exit code, or None if the command hangs, and was ended."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.address)
            connection.settimeout(HANGING_S)
            stream = connection.makefile("rw")
            print(json.dumps(request), file=stream, flush=True)
            process = int(stream.readline())
            try:
                return int(stream.readline())
            except TimeoutError:
                os.killpg(process, signal.SIGKILL)
                return None


run_forked = ForkServer().run
