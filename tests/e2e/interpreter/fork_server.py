"""Has imported torch and nnU-Net, and runs commands in children that start from there: python fork_server.py FD

FD is a socket that listens. A client sends a line of JSON: `arguments` (of Python: a path, or `-m` and a module, then
those of the program), `environment`, `folder`, and the files `out` and `err`. The answer is two lines: the number of
the process, which leads a session of its own, and its exit code. The server ends when its standard input does.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import runpy
import select
import socket
import sys
from pathlib import Path

import numpy as np


def preload():
    """Import what the commands need. None of it may start a thread or look for a GPU: children could use neither."""

    import nnunet_collab.launch
    import nnunet_collab.methods.ctrcl  # noqa: F401


def serve(listener):
    """Returns the request in the child that is to run it, and None in the server when that ends."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return answer(connection)
        connection.close()
        reap()


def reap():
    """Forget the children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def answer(connection):
    """Fork the command and tell the client of it; returns in the command's process only."""
    with connection, connection.makefile("rw") as stream:
        request = json.loads(stream.readline())
        process = os.fork()
        if process == 0:
            return request
        print(process, file=stream, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), file=stream, flush=True)
    os._exit(0)


def become(request):
    """Take on everything that a new process would have: its session, folder, files, variables and random numbers."""
    os.setsid()
    os.chdir(request["folder"])
    for number, name in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    np.random.seed()  # noqa: NPY002


def run(arguments):
    """As `python *arguments`."""
    program, *sys.argv[1:] = arguments
    if program == "-m":
        module = sys.argv.pop(1)
        sys.path[0] = os.getcwd()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0], sys.path[0] = program, str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")


def exit_code(arguments):
    """Of `python *arguments`, with what Python prints about its end."""
    try:
        run(arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return 1 if isinstance(end.code, str) else end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def leave():
    """End here: to take torch and nnU-Net apart, module by module, would take seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    code = 0
    atexit.register(leave)  # the first to be registered is the last to be called, when all threads have ended
    preload()
    gc.freeze()  # or children would copy the memory of all objects to count them
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        request = serve(listener)
    if request is not None:
        become(request)
        code = exit_code(request["arguments"])
