"""Killed and continued with --c, a training ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import copy
import signal

import pytest
import torch
from e2e_nnunet import DATASETS, KILLED_TRAIN, STUDENTS, TINY, Training, differing_tensors, digest

pytestmark = pytest.mark.slow

WHILE_TRAINING = "step:6"  # in the second epoch, after the CNN's step and before the Transformer's
WHILE_SAVING = "save:checkpoint_final.pth"


def killed(workspace, moment, kind, configuration, group, workers=0):
    arguments = (DATASETS[kind], configuration, 0, "-tr", "CTRCLTrainer", "-device", "cpu")
    options = {"settings": TINY, "group": group, "workers": workers}
    done = workspace.run(KILLED_TRAIN, moment, *arguments, fails=True, **options)
    assert done.code == -signal.SIGKILL, done.err
    return Training(workspace, kind, configuration, done, group)


def assert_same(a, b, where=""):
    """Nested values are equal in every bit; NaN equals NaN."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where


def set_chance_apart(checkpoint):
    """What the seed determines, and the states of Python's and numpy's generators: no seed says where they start."""
    determined = copy.deepcopy(checkpoint)
    for key in [key for key in determined["logging"] if key.endswith("_timestamps")]:
        del determined["logging"][key]
    states = determined["nnunet_collab"]["random_states"]
    return determined, [{key: state.pop(key) for key in ("python", "numpy")} for state in states]


def assert_ends_alike(training, reference, interrupted, students=STUDENTS):
    """The same checkpoints and models; `interrupted` is the checkpoint that the training was continued from."""
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        ours, generators = set_chance_apart(training.checkpoint(name=name))
        theirs, _ = set_chance_apart(reference.checkpoint(name=name))
        assert differing_tensors(ours["network_weights"], theirs["network_weights"]) == []
        assert_same(ours, theirs, name)
        assert_same(generators, set_chance_apart(interrupted)[1], name)
    assert not (training.fold / "checkpoint_latest.pth").exists()
    for student in students:
        assert (training.student(student) / "validation" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("moment", "workers", "configuration"),
    [(WHILE_TRAINING, 1, "2d"), (WHILE_SAVING, 0, "2d"), (WHILE_TRAINING, 0, "3d_fullres")],
    ids=["training-with-a-loader-process", "saving", "training-3d"],
)
def test_killed_and_continued_equals_uninterrupted(moment, workers, configuration, workspace, trainings):
    # The uninterrupted 2d training had no loader process and the 3d one had one: batches do not depend on it.
    reference = trainings["plain", configuration]
    group = f"killed_{moment.partition(':')[0]}_{configuration}"
    training = killed(workspace, moment, "plain", configuration, group, workers)
    left = {path.name for path in training.fold.iterdir()}
    assert "checkpoint_latest.pth" in left
    assert "checkpoint_final.pth" not in left
    partial = [name for name in left if name.endswith(".partial")]
    assert len(partial) == (moment == WHILE_SAVING)  # the half-written file was there, under another name
    interrupted = training.checkpoint(name="checkpoint_latest.pth")
    assert interrupted["current_epoch"] == 1
    done = workspace.train("plain", configuration, "--c", group=group, workers=workers, new=True)
    assert "logging issue" not in done.out  # nnU-Net's words for curves out of step with the epochs
    assert_ends_alike(training, reference, interrupted)


def test_killed_while_replacing_a_checkpoint_the_old_one_is_intact(workspace, trainings):
    """`checkpoint_final` exists already when --c writes it again: the case that a file written in place loses."""
    reference = trainings["plain", "2d"]
    training = Training(workspace, "plain", "2d", reference.done, group="replaced")
    training.fold.mkdir(parents=True)
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        (training.fold / name).write_bytes((reference.fold / name).read_bytes())
    arguments = (DATASETS["plain"], "2d", 0, "-tr", "CTRCLTrainer", "-device", "cpu", "--c")
    done = workspace.run(KILLED_TRAIN, WHILE_SAVING, *arguments, fails=True, settings=TINY, group="replaced")
    assert done.code == -signal.SIGKILL, done.err
    assert digest(training.fold / "checkpoint_final.pth") == digest(reference.fold / "checkpoint_final.pth")
