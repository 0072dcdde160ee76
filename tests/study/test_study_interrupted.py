"""A study that was interrupted at any moment and is started again ends with the same tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from studying import HEAD, LABELS, SMALL, TEST

from nnunet_collab.study import execution

ONE_ARM = HEAD + "postprocessing = true\n" + TEST + LABELS
ROOT = Path(__file__).parents[2]


def undisturbed(lab):
    """The outcome without an interruption, and at how many places commands could have died."""
    assert lab.run()[0] == 0
    outcome, points = lab.outcome(), (lab.root / "points").stat().st_size
    shutil.rmtree(lab.folder)
    shutil.rmtree(lab.results)
    lab.forget()
    return outcome, points


def dies_and_goes_on(lab, at, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_DIES_AT", str(at))
        status, printed = lab.run()
    assert status == 1, at
    assert "failed with status -9" in printed
    assert lab.run()[0] == 0
    outcome = lab.outcome()
    shutil.rmtree(lab.folder)
    shutil.rmtree(lab.results)
    lab.forget()
    return outcome


def test_a_training_and_a_prediction_that_die(lab, monkeypatch):
    lab.study(HEAD + TEST + LABELS)
    expected, points = undisturbed(lab)
    for at in (4, 11, points - 3):
        assert dies_and_goes_on(lab, at, monkeypatch) == expected


@pytest.mark.slow
def test_commands_that_die_at_every_stage(lab, monkeypatch):
    lab.study(ONE_ARM)
    expected, points = undisturbed(lab)
    assert points > 20
    for at in range(1, points + 1):
        assert dies_and_goes_on(lab, at, monkeypatch) == expected, at


def test_a_training_goes_on_where_it_was(lab, monkeypatch):
    monkeypatch.setenv("FAKE_DIES_AT", "6")  # after the second of three epochs
    lab.run()
    latest = lab.results / "SupervisedTrainer_labels0__nnUNetPlans__2d" / "fold_0" / "checkpoint_latest.pth"
    begun = latest.read_text()
    monkeypatch.delenv("FAKE_DIES_AT")
    assert lab.run()[0] == 0
    assert latest.read_text().startswith(begun[:-1])


# ---------------------------------------------------------------- the study itself is ended


def start(lab, *, jobs=1, **variables):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]), **variables}
    words = [sys.executable, str(Path(__file__).with_name("conducting.py")), str(lab.root), str(jobs)]
    return subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that run in the background of a shell inherit a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def waiting_command(lab, process):
    """The process of the command that waits to be ended."""
    path = lab.root / "waiting"
    for _ in range(1200):
        if path.exists() and path.read_text():
            return int(path.read_text())
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no command waits")


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_the_commands_too(lab, sent, status):
    expected, _ = undisturbed(lab)
    process = start(lab, FAKE_WAITS_AT="6")
    command = waiting_command(lab, process)
    process.send_signal(sent)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status, out
    assert "Start the study again to continue it." in out
    assert not is_alive(command)
    assert lab.run()[0] == 0
    assert lab.outcome() == expected


@pytest.mark.slow
def test_a_study_that_is_killed_with_its_commands_goes_on(lab):
    lab.study(SMALL)
    expected, points = undisturbed(lab)
    for at in (3, points // 2 + 2, points):
        process = start(lab, FAKE_WAITS_AT=str(at))
        command = waiting_command(lab, process)
        process.kill()
        process.communicate()
        # The command has outlived the study; a second one must not work beside it.
        status, printed = lab.run()
        if at != points:  # the report belongs to no run
            assert status == 1
            assert f"or its command, process {command}, if that still runs" in printed
        os.kill(command, signal.SIGKILL)
        while is_alive(command):
            time.sleep(0.05)
        (lab.root / "waiting").unlink()
        assert lab.run()[0] == 0
        assert lab.outcome() == expected
        shutil.rmtree(lab.folder)
        shutil.rmtree(lab.results)
        lab.forget()


@pytest.mark.slow
def test_the_same_study_is_not_run_twice_at_a_time(lab):
    process = start(lab, FAKE_WAITS_AT="2")
    waiting_command(lab, process)
    try:
        with pytest.raises(Exception, match=f"study toy: only one process .* now it is process {process.pid} on "):
            lab.run()
        # From another folder, it is the run that is locked.
        lab.folder = lab.root / "elsewhere"
        status, printed = lab.run()
        assert status == 1
        assert "labels0: FAILED, run labels0: only one process may work on it at a time" in printed
        assert "fixmatch0: done" in printed
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_commands_that_ignore_sigterm_are_killed(lab, monkeypatch):
    monkeypatch.setattr(execution, "PATIENCE_S", 0.3)
    processes = execution.Processes()
    script = "trap '' TERM; sleep 60 & echo $! > child; wait; sleep 60"
    monkeypatch.chdir(lab.root)
    thread = threading.Thread(target=_ignore_stopped, args=(processes, ("bash", "-c", script), lab.root / "log"))
    thread.start()
    child = lab.root / "child"
    while not (child.exists() and child.read_text()):
        time.sleep(0.02)
    processes.stop()
    thread.join(10)
    assert not thread.is_alive()
    pid = int(child.read_text())
    for _ in range(100):
        if not (Path(f"/proc/{pid}").exists() and is_alive(pid)):
            return
        time.sleep(0.05)
    raise AssertionError("a child of the command is alive")


def _ignore_stopped(processes, words, log):
    with contextlib.suppress(execution.Stopped):
        processes.run(execution.Command(words), log, {}, None)
