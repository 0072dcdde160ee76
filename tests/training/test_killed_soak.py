"""Thirty kills over the three kinds of state, at steps and within half-written files: nothing differs, nothing is left.

Each start is forked from this process, which has imported torch already; that is what makes thirty of them affordable.
"""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from tiny import make_batch, make_semi_supervised_batch, make_trainer

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.data.loaders import in_background
from nnunet_collab.methods.crln.trainer import CRLNTrainer
from nnunet_collab.methods.ctrcl import CTRCLTrainer
from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]

ONE = {"students": {"CNN": {}}}
RUNS = {
    "plain": (CTRCLTrainer, {}, make_batch),
    "teacher": (MeanTeacherTrainer, ONE, make_semi_supervised_batch),
    "prototypes": (CRLNTrainer, ONE, make_semi_supervised_batch),
}
STEPS = 12
KILLS = 10  # of each kind


class Numbers:
    """Draws the number that a batch is made from, in a worker process."""

    def generate_train_batch(self):
        return {"seed": int(torch.randint(0, 10**6, (1,)))}


def train(folder, kind, die_at, pids):
    """From the latest checkpoint to the end; killed at the event of this number, each step and each file being one."""
    trainer_class, changes, make = RUNS[kind]
    events = itertools.count(1)

    def event():
        if next(events) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    save = torch.save

    def save_half_first(content, path):
        whole = io.BytesIO()
        save(content, whole)
        Path(path).write_bytes(whole.getvalue()[: whole.tell() // 2])
        event()
        save(content, path)

    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "save", save_half_first)
    trainer = make_trainer(trainer_class, folder, patch, changes=changes)
    trainer.results.hold()
    latest = Path(trainer.output_folder, "checkpoint_latest.pth")
    if latest.is_file():
        trainer.load_checkpoint(str(latest))
        checkpoints.restore_random_states(trainer._resume_states)
    batches = in_background(Numbers(), (0,), start=trainer.iteration, workers=1, pin_memory=False)
    while trainer.iteration < STEPS:
        seed = next(batches)["seed"]
        pids.write_text("\n".join(str(worker.pid) for worker in batches._processes))
        event()
        trainer.train_step(make(trainer, seed=seed))
        trainer.save_checkpoint(str(latest))
    trainer.save_checkpoint(str(latest.with_name("checkpoint_final.pth")))
    batches._finish()
    trainer.results.release()


def start(folder, kind, die_at=0):
    """Exit code and the process ids of the workers."""
    pids = folder / "pids"
    process = multiprocessing.get_context("fork").Process(target=train, args=(folder, kind, die_at, pids))
    process.start()
    process.join()
    return process.exitcode, [int(pid) for pid in pids.read_text().split()] if pids.exists() else []


def running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until_gone(pids):
    for _ in range(600):
        if not any(map(running, pids)):
            return
        multiprocessing.Event().wait(0.1)
    raise AssertionError(f"{[pid for pid in pids if running(pid)]} outlived their parent")


def tensors(value, where=""):
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{where}/{key}")
    elif isinstance(value, (list, tuple)):
        for key, item in enumerate(value):
            yield from tensors(item, f"{where}/{key}")


@pytest.mark.parametrize("kind", RUNS)
def test_killed_again_and_again_a_training_ends_bit_for_bit_as_if_it_never_was(kind, tmp_path):
    torch.set_num_threads(1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    assert start(whole, kind)[0] == 0
    kills = 0
    for attempt in itertools.count():
        # Early and late, at steps (odd events) and in the middle of files (even ones).
        code, pids = start(broken, kind, die_at=1 + (attempt * 2 + attempt // 3) % 4 if kills < KILLS else 0)
        wait_until_gone(pids)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills == KILLS
    final = [next(folder.rglob("checkpoint_final.pth")) for folder in (whole, broken)]
    ours, theirs = (checkpoints.load_training(path) for path in final)
    for checkpoint in (ours, theirs):  # no seed says where Python's and numpy's generators start
        for state in checkpoint["nnunet_collab"]["random_states"]:
            state.pop("numpy")
    expected = dict(tensors(ours))
    found = dict(tensors(theirs))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    left = [p.name for p in broken.rglob("*") if p.name.endswith((".partial", ".lock")) or ".stale" in p.name]
    assert left == []
