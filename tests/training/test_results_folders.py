"""A training begins in folders of its own, without half-written files and without cases of a former split."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.training.interruption import EndOnSignals
from nnunet_collab.training.results_folders import ResultsFolders

CASES = ("a", "b", "c")


@pytest.fixture
def folders(tmp_path):
    fold = tmp_path / "Trainer__plans__2d" / "fold_0"
    fold.mkdir(parents=True)
    results = ResultsFolders(fold, ["CNN"], [].append, first=True)
    yield results
    results.release()


def validated(folder, cases, summary=None):
    """What nnU-Net's validation leaves, with probabilities."""
    validation = folder / "validation"
    validation.mkdir(parents=True, exist_ok=True)
    for case in cases:
        for ending in (".nii.gz", ".npz", ".pkl"):
            (validation / f"{case}{ending}").write_text(case)
    rows = [{"prediction_file": str(validation / f"{case}.nii.gz")} for case in (summary or cases)]
    (validation / "summary.json").write_text(json.dumps({"metric_per_case": rows}))
    return validation


def test_a_training_that_begins_finds_no_validation_of_a_former_one(folders):
    for fold in folders.folds:
        validated(fold, ["a", "c", "renamed"])
    folders.start_anew(CASES, ".nii.gz")  # "renamed" is a case of the former dataset, as its summary says
    assert [list((fold / "validation").iterdir()) for fold in folders.folds] == [[], []]


def test_files_of_the_user_stay(folders):
    validation = validated(folders.folds[1], ["a"])
    own = [validation / name for name in ("notes.txt", "a.csv", "summary.json.bak", "figure.png", "other.npz")]
    for path in own:
        path.write_text("mine")
    (validation / "old").mkdir()
    folders.start_anew(CASES, ".nii.gz")
    assert sorted(validation.iterdir()) == sorted([*own, validation / "old"])
    assert {path.read_text() for path in own} == {"mine"}


@pytest.mark.parametrize("damage", [None, "", "{", "[]", '{"metric_per_case": 3}', '{"metric_per_case": [{}]}'])
def test_predictions_of_unknown_cases_are_refused_not_removed(folders, damage):
    validation = validated(folders.folds[1], ["a", "who"], summary=["a"])
    if damage is not None:
        (validation / "summary.json").write_text(damage)
    with pytest.raises(CollabError) as caught:
        folders.start_anew(CASES, ".nii.gz")
    assert f"{validation}: must hold no predictions when a training starts; who.nii.gz belongs to no case" in str(
        caught.value
    )
    assert (validation / "who.nii.gz").exists()
    assert (validation / "a.nii.gz").exists()  # nothing is removed before all is checked


def test_other_processes_of_a_distributed_run_remove_and_lock_nothing(tmp_path):
    fold = tmp_path / "Trainer__plans__2d" / "fold_0"
    validation = validated(fold, ["a"])
    results = ResultsFolders(fold, ["CNN"], [].append, first=False)
    results.hold()
    try:
        results.start_anew(CASES, ".nii.gz")
        results.check()
    finally:
        results.release()
    assert len(list(validation.iterdir())) == 4
    assert [path.name for path in fold.iterdir()] == ["validation"]


def test_holding_removes_what_a_killed_run_left_half_written(folders):
    for folder in (folders.folds[0], folders.folds[0].parent):
        (folder / ".plans.json.00000000-1-1.partial").write_text("of another machine, fresh")
        old = folder / ".checkpoint_latest.pth.00000000-2-1.partial"
        old.write_text("half")
        os.utime(old, (0, 0))
    folders.hold()
    left = sorted(path.name for path in folders.folds[0].iterdir())
    assert left == [".plans.json.00000000-1-1.partial", "training.lock"]


@pytest.fixture
def handlers():
    """Python's own, whatever pytest has installed, and pytest's again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_in_order_with_one_line(number, status, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards
    signals = EndOnSignals("Continue with --c.")
    signals.install()
    cleaned = []
    with pytest.raises(SystemExit) as caught:  # noqa: PT012
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)
    assert caught.value.code == status
    assert cleaned == [True]
    assert capfd.readouterr().err == f"Ended by {number.name}. Continue with --c.\n"
    signals.restore()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


EARLY_SIGNALS = """
import os, signal, time
from nnunet_collab.training.interruption import EndOnSignals
if hasattr(os, "sched_setaffinity"):  # one core: the new process has not begun when its parent ends it
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
signal.signal(signal.SIGINT, signal.default_int_handler)
EndOnSignals("").install()
for number in [signal.SIGTERM, signal.SIGINT] * 20:
    pid = os.fork()
    if pid == 0:
        time.sleep(5)
        os._exit(0)
    os.kill(pid, number)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number, status
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
print("all ended")
"""


def test_a_signal_ends_a_worker_that_has_only_just_been_forked():
    done = subprocess.run([sys.executable, "-c", EARLY_SIGNALS], capture_output=True, text=True)
    assert done.stdout == "all ended\n", done.stderr


@pytest.mark.usefixtures("handlers")
def test_handlers_of_somebody_else_are_left_alone():
    mine = lambda *_: None  # noqa: E731
    signal.signal(signal.SIGTERM, mine)
    signals = EndOnSignals("")
    signals.install()
    assert signal.getsignal(signal.SIGTERM) is mine
    signals.restore()
    assert signal.getsignal(signal.SIGTERM) is mine
