"""Real processes that hold a results folder and load data: two starts, and every way to end one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc")]

SCRIPT = """
import sys, time
from pathlib import Path
import torch
from nnunet_collab.data.loaders import in_background
from nnunet_collab.training.results_folders import ResultsFolders

class Source:
    def generate_train_batch(self):
        return {"data": torch.zeros(100_000)}

class Dying:
    def generate_train_batch(self):
        raise ValueError("case_007 cannot be read")

results = ResultsFolders(Path(sys.argv[1]), ["CNN"], print, first=True)
results.hold()
batches = in_background(Dying() if "dying" in sys.argv else Source(), (0,), start=0, workers=2, pin_memory=False)
next(batches)
print(*[worker.pid for worker in batches._processes], flush=True)
while True:
    next(batches)
"""


def hear_interrupts():
    """Tests that run in the background of a shell inherit a SIGINT that is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip


def workers(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return [int(pid) for pid in line.split()]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def assert_gone(pids):
    deadline = time.monotonic() + 60  # two seconds on a machine that is not busy
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


@pytest.fixture
def fold(tmp_path):
    folder = tmp_path / "Trainer__plans__2d" / "fold_0"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("number", "status", "whole_group"),
    [
        (signal.SIGTERM, 143, False),
        (signal.SIGTERM, 143, True),
        (signal.SIGINT, 130, True),
        (signal.SIGKILL, -9, False),
    ],
    ids=["SIGTERM", "SIGTERM-to-all", "Ctrl-C", "kill"],
)
def test_two_starts_then_an_end_of_the_first_then_a_third(fold, number, status, whole_group):
    first = begin(fold)
    pids = workers(first)
    second = begin(fold)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 1
    refusal = f"CollabError: {fold}: one training at a time may write here; process {first.pid} on "
    assert refusal in err.strip().splitlines()[-1]
    (os.killpg if whole_group else os.kill)(first.pid, number)
    _, err = first.communicate(timeout=300)
    assert first.returncode == status
    if number == signal.SIGTERM and whole_group:
        assert "Ended by SIGTERM." in err  # a worker may be missed before the main process hears of it
    elif number != signal.SIGKILL:
        assert err == f"Ended by {number.name}. What was saved in {fold} before is intact; continue with --c.\n"
    assert_gone(pids)
    left = [path for path in fold.parents[1].rglob("*") if path.is_file()]
    assert len(left) == (2 if number == signal.SIGKILL else 0)  # the locks of a killed one
    third = begin(fold)
    workers(third)
    assert json.loads((fold / "training.lock").read_text())["process"].split("-")[1] == str(third.pid)
    third.terminate()
    third.communicate(timeout=300)


def test_after_a_workers_error_that_error_is_the_last_line(fold):
    process = begin(fold, "dying")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1] == "a process that loads data failed: ValueError: case_007 cannot be read"
    assert "no longer alive" not in err
    assert [path for path in fold.parents[1].rglob("*") if path.is_file()] == []
