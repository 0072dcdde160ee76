"""Two processes on the CPU: the gradients of one with the whole batch, and a training from torchrun to publication."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ddp_gradients import CASES
from e2e_nnunet import DATASETS, KILLED_TRAIN, STUDENTS, TINY, Training, differing_tensors, read_json

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("ddp_gradients.py")
TORCHRUN = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="session")
def gradients(workspace):
    """Of every case: those of one process and those of two."""
    results = []
    for number, start in {1: (SCRIPT,), 2: (*TORCHRUN, SCRIPT)}.items():
        output = workspace.root / f"gradients_{number}.pt"
        workspace.run(*start, workspace.root / "batches.pt", output, group="gradients", new=number > 1)
        results.append(torch.load(output, weights_only=True))
    return results


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradients_of_one(case, gradients):
    alone, shared = (result[case] for result in gradients)
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert shared["terms"].keys() == alone["terms"].keys()
    for name, value in alone["terms"].items():
        assert value != 0, name
        assert shared["terms"][name] == pytest.approx(value, rel=1e-5), name
    assert shared["gradients"].keys() == alone["gradients"].keys()
    for student in STUDENTS:
        names = [name for name in alone["gradients"] if f".{student}." in name]
        assert len(names) > 20
        # Biases before a normalization have gradient 0 but for rounding: compare with the whole student, too.
        whole = torch.stack([alone["gradients"][name].norm() for name in names]).norm()
        for name in names:
            a, b = alone["gradients"][name], shared["gradients"][name]
            assert (a - b).norm() <= 1e-4 * a.norm() + 1e-6 * whole, name


@pytest.fixture(scope="session")
def shared_training(workspace):
    """CTRCLTrainer in two processes, with two validation cases."""
    return launch(workspace, "torchrun", "--npz")


def launch(workspace, group, *flags, start=("-m", "nnunet_collab.launch"), **options):
    arguments = (DATASETS["plain"], "2d", 1, "-tr", "CTRCLTrainer", "-device", "cpu")
    options |= {"settings": TINY, "group": group, "workers": 1, "new": True}
    done = workspace.run(*TORCHRUN, *start, *arguments, *flags, **options)
    return Training(workspace, "plain", "2d", done, group, number=1)


def test_torchrun_trains_publishes_and_validates(shared_training):
    run = shared_training.checkpoint()
    assert run["nnunet_collab"]["iteration"] == 4
    states = [state["torch"] for state in run["nnunet_collab"]["random_states"]]
    assert len(states) == 2
    assert not torch.equal(*states)  # dropout differs between processes
    assert all(len(values) == 2 for values in run["logging"].values())
    for folder in (shared_training.fold, *map(shared_training.student, STUDENTS)):
        summary = read_json(folder / "validation" / "summary.json")
        assert len(summary["metric_per_case"]) == 2  # one case for each process
        assert len(list((folder / "validation").glob("*.npz"))) == 2
    for student in STUDENTS:
        assert shared_training.checkpoint(student)["trainer_name"] == "nnUNetTrainer"


def test_when_one_process_is_killed_the_other_ends_and_both_continue_exactly(shared_training, workspace):
    group = "torchrun_killed"
    killed = launch(workspace, group, start=(KILLED_TRAIN, "step:6"), fails=True)
    assert "SIGKILL" in killed.done.err
    assert not (killed.fold / "checkpoint_final.pth").exists()
    assert killed.checkpoint(name="checkpoint_latest.pth")["current_epoch"] == 1
    continued = launch(workspace, group, "--c")
    ours, theirs = continued.checkpoint(), shared_training.checkpoint()
    assert differing_tensors(ours["network_weights"], theirs["network_weights"]) == []
    assert curves(ours) == curves(theirs)


def curves(checkpoint):
    return {key: values for key, values in checkpoint["logging"].items() if not key.endswith("_timestamps")}
