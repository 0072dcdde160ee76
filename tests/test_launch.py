"""`python -m nnunet_collab.launch`: nnUNetv2_train's arguments, torchrun's environment, and clear refusals."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from nnunetv2.run import run_training as nnunet

from nnunet_collab import launch
from nnunet_collab.core.errors import CollabError

ROOT = Path(__file__).parents[1]
TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
COMMAND_LINES = [
    "27 2d 0",
    "Dataset027_ACDC 3d_fullres all -tr CTRCLTrainer -p nnUNetResEncUNetMPlans --npz",
    "27 2d 4 -tr CTRCLTrainer --c --val_best -device cpu",
    "27 2d 4 --val --disable_checkpointing -pretrained_weights w.pth",
]


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_understands_a_command_line_as_nnunet_does(line, monkeypatch, torch_threads):
    seen = []
    monkeypatch.setattr(nnunet, "run_training", lambda *args, device: seen.append((*args, device.type)))
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", *line.split()])
    nnunet.run_training_entry()
    a = launch.make_parser().parse_args(line.split())
    ours = (
        a.dataset_name_or_id,
        a.configuration,
        a.fold,
        a.tr,
        a.p,
        a.pretrained_weights,
        a.num_gpus,
        a.npz,
        a.c,
        a.val,
    )
    assert [(*ours, a.disable_checkpointing, a.val_best, a.device)] == seen


def test_has_every_option_of_nnunet_and_no_other(monkeypatch, capsys):
    def options(call):
        with pytest.raises(SystemExit):
            call()
        usage = capsys.readouterr().out.split("\n\n")[0]
        return {word.strip("[]") for word in usage.split() if word.startswith("[-")}

    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "--help"])
    assert options(nnunet.run_training_entry) == options(lambda: launch.main(["--help"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("27 2d first", r"fold: must be a number such as 0, or all; got 'first'"),
        ("27 2d 0 -num_gpus 4", r"-num_gpus: torchrun sets .* got 4\. .* torchrun --nproc_per_node=4"),
        ("27 2d 0 --c --val", r"--c and --val: cannot be used together; got both"),
        ("27 2d 0 --c -pretrained_weights w.pth", r"--c and -pretrained_weights: cannot be used together"),
        (
            "27 2d 0 --val_best --disable_checkpointing",
            r"--disable_checkpointing: cannot be used together",
        ),
    ],
)
def test_refuses_arguments_that_contradict_themselves(line, message):
    with pytest.raises(CollabError, match=message):
        launch.check_arguments(launch.make_parser().parse_args(line.split()))


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_accepts_what_nnunet_accepts(line):
    launch.check_arguments(launch.make_parser().parse_args(line.split()))


def test_reads_its_place_from_torchrun():
    rank_info = launch.read_rank_info({**TORCHRUN, **MEETING}, [])
    assert rank_info == launch.RankInfo(rank=5, local_rank=1, world_size=8, local_world_size=4)


@pytest.mark.parametrize("missing", [*TORCHRUN, *MEETING])
def test_names_the_variable_that_torchrun_did_not_set(missing):
    environment = {**TORCHRUN, **MEETING}
    del environment[missing]
    with pytest.raises(CollabError, match=rf"must be started by torchrun, which sets {missing}; these are not set"):
        launch.read_rank_info(environment, [])


@pytest.mark.slow
def test_without_torchrun_says_which_command_to_write():
    arguments = ["27", "2d", "0", "-tr", "CTRCLTrainer", "-p", "my plans"]
    environment = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nnunet_collab.launch", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("nnunet_collab.launch, process 0: it must be started by torchrun")
    wanted = "torchrun --standalone --nproc_per_node=2 -m nnunet_collab.launch 27 2d 0 -tr CTRCLTrainer -p 'my plans'"
    assert wanted in done.stderr


# ---------------------------------------------------------------- devices


def pretend_gpus(monkeypatch, count):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return chosen


def test_takes_the_gpu_of_its_number_on_this_machine_not_among_all(monkeypatch, torch_threads):
    chosen = pretend_gpus(monkeypatch, 4)
    device = launch.prepare_device("cuda", launch.RankInfo(rank=5, local_rank=1, world_size=8, local_world_size=4))
    assert device == torch.device("cuda", 1)
    assert chosen == [device]
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("count", [0, 3])
def test_refuses_more_processes_than_gpus(count, monkeypatch):
    chosen = pretend_gpus(monkeypatch, count)
    with pytest.raises(
        CollabError, match=rf"got 4 processes and {count} GPUs on this machine\. Lower --nproc_per_node"
    ):
        launch.prepare_device("cuda", launch.RankInfo(0, 0, 4, 4))
    assert chosen == []


@pytest.mark.parametrize(("processes", "threads"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_processes_on_the_cpu_share_its_cores(processes, threads, monkeypatch, torch_threads):
    monkeypatch.setattr("nnunet_collab.core.shipped.available_cores", lambda: 6)
    assert launch.prepare_device("cpu", launch.RankInfo(0, 0, 16, processes)) == torch.device("cpu")
    assert torch.get_num_threads() == threads


# ---------------------------------------------------------------- training


@pytest.fixture
def calls(monkeypatch, torch_threads):
    """A run of one process with a trainer that only writes down what is asked of it, in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    log = []

    def note(name):
        return lambda *args: log.append((name, *args))

    trainer = SimpleNamespace(
        output_folder="run/fold_0",
        **{name: note(name) for name in ("run_training", "load_checkpoint", "perform_actual_validation")},
    )

    def get_trainer(*args, device):
        log.append(("build", *args, device.type, dist.get_backend(), dist.get_world_size()))
        trainer.device = trainer.insists_on if hasattr(trainer, "insists_on") else device
        return trainer

    monkeypatch.setattr(nnunet, "get_trainer_from_args", get_trainer)
    monkeypatch.setattr(nnunet, "maybe_load_checkpoint", note("maybe_load"))
    yield SimpleNamespace(log=log, trainer=trainer)
    if dist.is_initialized():
        dist.destroy_process_group()


def test_trains_and_validates_within_a_process_group(calls):
    assert launch.main(["27", "2d", "0", "-tr", "CTRCLTrainer", "-p", "somePlans", "--npz", "-device", "cpu"]) == 0
    assert calls.log == [
        ("build", "27", "2d", 0, "CTRCLTrainer", "somePlans", False, "cpu", "gloo", 1),
        ("maybe_load", calls.trainer, False, False, None),
        ("run_training",),
        ("perform_actual_validation", True),
    ]
    assert calls.trainer.disable_checkpointing is False
    assert not dist.is_initialized()


def test_continues_and_validates_the_best_checkpoint(calls):
    assert launch.main(["27", "2d", "all", "--c", "--val_best", "-device", "cpu"]) == 0
    assert [step[0] for step in calls.log] == [
        "build", "maybe_load", "run_training", "load_checkpoint", "perform_actual_validation",
    ]  # fmt: skip
    assert calls.log[0][3:7] == ("all", "nnUNetTrainer", "nnUNetPlans", True)
    assert calls.log[1][2:] == (True, False, None)
    assert Path(calls.log[3][1]) == Path("run/fold_0/checkpoint_best.pth")


def test_validation_alone_does_not_train(calls):
    assert launch.main(["27", "2d", "0", "--val", "--disable_checkpointing", "-device", "cpu"]) == 0
    assert [step[0] for step in calls.log] == ["build", "maybe_load", "perform_actual_validation"]
    assert calls.log[1][2:] == (False, True, None)
    assert calls.trainer.disable_checkpointing is True


def test_refuses_a_trainer_that_insists_on_another_device(calls, capsys):
    calls.trainer.insists_on = torch.device("cuda", 0)
    assert launch.main(["27", "2d", "0", "-device", "cpu"]) == 2
    assert [step[0] for step in calls.log] == ["build"]
    err = capsys.readouterr().err
    assert "-tr nnUNetTrainer: the trainer must use cpu, the device of this process; it uses cuda:0" in err
