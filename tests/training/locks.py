"""Processes that run, run elsewhere or are gone, and what they leave in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import time

from nnunet_collab.core import process as process_module
from nnunet_collab.core.process import ProcessId, this_process
from nnunet_collab.training.lock import NAME

ELSEWHERE = ProcessId("0badcafe", 1, 1)


def another_here():
    """A process of this machine that runs, and is not this one."""
    pid = os.getppid()
    return ProcessId(this_process().place, pid, process_module._start(pid))


def gone_here():
    process = subprocess.Popen(["true"])
    process.wait()
    return ProcessId(this_process().place, process.pid, 1)


def leave_lock(folder, process, age_s=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    holder = {"host": "node7", "process": str(process), "since": "2026-01-02 03:04:05"}
    path.write_text(json.dumps(holder) if process != "damaged" else "{")
    now = time.time()
    os.utime(path, (now - age_s, now - age_s))
    return path
