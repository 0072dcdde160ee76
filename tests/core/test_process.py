"""Processes are told apart: running, gone, another one of the same number, or not to be seen from here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nnunet_collab.core.process import ProcessId, this_process

WATCHED = """
import os, subprocess, sys, time, multiprocessing
from nnunet_collab.core import process

def work():
    process.end_with_parent()
    while True:  # busy, as a loader is
        sum(range(1000))

if __name__ == "__main__":
    for _ in range(3):
        child = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        child.start()
        print(child.pid, flush=True)
    time.sleep(600)
"""


def ended():
    """A process that ran and is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_this_process_runs_and_so_does_its_parent():
    me = this_process()
    assert (me.pid, me.is_here, me.is_gone) == (os.getpid(), True, False)
    assert this_process() == me


def test_what_is_written_down_is_read_back():
    me = this_process()
    assert ProcessId.parse(str(me)) == me


@pytest.mark.parametrize("text", ["", "x", "a-b", "a-1", "a-1-2-3", "-1-2", "a-x-2", "a-1-", "a--1-2"])
def test_what_is_no_process_is_none(text):
    assert ProcessId.parse(text) is None


def test_an_ended_process_is_gone():
    assert replace(this_process(), pid=ended()).is_gone


def test_another_process_of_the_same_number_is_another_one():
    me = this_process()
    assert replace(me, started=me.started - 1).is_gone


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 5], ids=["mine", "nobody"])
def test_of_another_place_nothing_is_certain(pid):
    other = ProcessId("00000000", pid, 1)
    assert (other.is_here, other.is_gone) == (False, False)


def test_a_zombie_is_gone():
    process = subprocess.Popen(["true"])
    try:
        zombie = replace(this_process(), pid=process.pid)
        deadline = time.monotonic() + 60
        while not zombie.is_gone and time.monotonic() < deadline:
            time.sleep(0.01)
        assert zombie.is_gone
    finally:
        process.wait()


def alive(pid):
    try:
        return "Z" not in open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc")
def test_helpers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    children = [int(parent.stdout.readline()) for _ in range(3)]
    assert all(map(alive, children))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60  # two seconds on a machine that is not busy
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))
