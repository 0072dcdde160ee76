"""A child of the process that has imported nnU-Net behaves as a new process does, seen from outside."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e_nnunet import INTERPRETER, ROOT
from running import run_forked, run_new

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(INTERPRETER), str(ROOT)]), "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "", "E2E_FORK": "1", "ONLY": "here",
}  # fmt: skip
FACTS = """
import atexit, json, os, sys
atexit.register(print, "at exit")
print(json.dumps([__name__, sys.argv, sys.path[0], os.getcwd(), os.environ.get("ONLY"), os.getsid(0) == os.getpid()]))
"""
ENDS = {  # program, its exit code, and the last line of its standard error
    "quiet": ("", 0, ""),
    "number": ("import sys; sys.exit(3)", 3, ""),
    "words": ("import sys; sys.exit('no')", 1, "no"),
    "exception": ("raise ValueError('wrong')", 1, "ValueError: wrong"),
    "killed": ("import os, signal; os.killpg(os.getpgrp(), signal.SIGKILL)", -signal.SIGKILL, ""),
    "thread": (
        "import sys, threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('late', file=sys.stderr))).start()",
        0,
        "late",
    ),
    "child": (
        "import multiprocessing, sys\n"
        "worker = multiprocessing.get_context('fork').Process(target=sys.exit, args=(5,))\n"
        "worker.start(); worker.join(); sys.exit(worker.exitcode)",
        5,
        "",
    ),
}  # fmt: skip


@pytest.fixture(params=[run_new, run_forked], ids=["new", "forked"])
def run(request, tmp_path):
    return lambda *arguments: request.param([str(word) for word in arguments], ENVIRONMENT, tmp_path)


def test_a_program_finds_what_it_would_find_in_a_new_process(run, tmp_path):
    path = tmp_path / "folder" / "facts.py"
    path.parent.mkdir()
    path.write_text(FACTS)
    done = run(path, "a", "b c")
    facts, last = done.out.splitlines()
    assert json.loads(facts) == ["__main__", [str(path), "a", "b c"], str(path.parent), str(tmp_path), "here", True]
    assert (done.code, last) == (0, "at exit")


@pytest.mark.parametrize("name", ENDS)
def test_it_ends_in_the_same_way(name, run, tmp_path):
    source, code, last = ENDS[name]
    path = tmp_path / "program.py"
    path.write_text(source)
    done = run(path)
    assert (done.code, (done.err.splitlines() or [""])[-1]) == (code, last)


def test_a_module_is_run_as_with_dash_m(run):
    done = run("-m", "nnunet_collab", "--version")
    assert (done.code, done.out.split()[0]) == (0, "nnunet_collab")


def test_no_two_commands_share_random_numbers_and_many_run_at_a_time(tmp_path):
    path = tmp_path / "draws.py"
    path.write_text("import random, numpy; print(random.random(), numpy.random.rand())")
    before = set(threading.enumerate())
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: run_forked([str(path)], ENVIRONMENT, tmp_path), range(8)))
    assert [one.code for one in done] == [0] * 8
    assert len({number for one in done for number in one.out.split()}) == 16
    assert not set(threading.enumerate()) - before
