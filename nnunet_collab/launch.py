r"""Train with torchrun, with the arguments of nnUNetv2_train: on several machines, or on CPUs.

    torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \
        -m nnunet_collab.launch 27 2d 0 -tr CTRCLTrainer --npz

Run this command on each machine. HOST is one of the machines.

nnU-Net can start processes itself (`-num_gpus`), but only on one machine with CUDA. Here torchrun starts the processes
and sets environment variables that identify each of them. The training itself is that of nnU-Net.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.process import end_with_supervisor

if TYPE_CHECKING:
    import torch

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankInfo:
    """Position of this process among the processes of torchrun.

    Attributes:
        rank: Index among all processes.
        local_rank: Index among the processes on this machine.
        world_size: Number of processes.
        local_world_size: Number of processes on this machine.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


def main(argv: Sequence[str] | None = None) -> int:
    """Train as one of the processes of torchrun.

    Args:
        argv: Arguments of nnUNetv2_train; None for those of the process.

    Returns:
        The exit status: 0, or 2 if the input is wrong; then a message is printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(argv)
    try:
        check_arguments(args)
        if os.environ.get("TORCHELASTIC_RUN_ID"):  # torchrun is the parent; if it is killed, this process must end
            end_with_supervisor()
        launch(args, read_rank_info(os.environ, argv))
    except CollabError as error:
        print(f"nnunet_collab.launch, process {os.environ.get('RANK', 0)}: {error}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The arguments of nnUNetv2_train, with the same names and defaults."""
    parser = argparse.ArgumentParser(
        prog="nnunet_collab.launch", description="nnUNetv2_train for torchrun: several machines, or CPUs."
    )
    parser.add_argument("dataset_name_or_id", help="dataset to train with")
    parser.add_argument("configuration", help="2d, 3d_fullres or another configuration of the plans")
    parser.add_argument("fold", help="number of a fold, or all")
    parser.add_argument("-tr", default="nnUNetTrainer", help="trainer, e.g. CTRCLTrainer")
    parser.add_argument("-p", default="nnUNetPlans", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-pretrained_weights", help="checkpoint to start from")
    parser.add_argument("-num_gpus", type=int, default=1, help="not used; set --nproc_per_node of torchrun")
    parser.add_argument("--npz", action="store_true", help="save the probabilities of the validation cases")
    parser.add_argument("--c", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--val", action="store_true", help="only validate a finished training")
    parser.add_argument("--val_best", action="store_true", help="validate checkpoint_best instead of checkpoint_final")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoint")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu"), help="cuda (nccl) or cpu (gloo)")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse wrong and contradictory arguments before any process waits for the others.

    Raises:
        CollabError: If arguments are wrong; the message names them.
    """
    if args.fold != "all" and not args.fold.isdecimal():
        raise CollabError(f"fold: must be a number such as 0, or all; got {args.fold!r}. Correct it.")
    if args.num_gpus != 1:
        raise CollabError(
            f"-num_gpus: torchrun sets the number of processes; got {args.num_gpus}. "
            f"Leave it out, and write torchrun --nproc_per_node={args.num_gpus}."
        )
    exclusive = [("c", "val"), ("c", "pretrained_weights"), ("val_best", "disable_checkpointing")]
    for first, second in exclusive:
        if getattr(args, first) and getattr(args, second):
            flags = [f"-{name}" if name == "pretrained_weights" else f"--{name}" for name in (first, second)]
            raise CollabError(f"{' and '.join(flags)}: cannot be used together; got both. Leave one out.")


def read_rank_info(environment: Mapping[str, str], argv: Sequence[str]) -> RankInfo:
    """The position of this process, from the environment variables of torchrun.

    Args:
        environment: Environment variables.
        argv: Arguments of this program, for the message.

    Raises:
        CollabError: If torchrun did not start this process; the message contains the right command.
    """
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise CollabError(
            f"it must be started by torchrun, which sets {', '.join(missing)}; these are not set. Write\n"
            f"    torchrun --standalone --nproc_per_node=2 -m nnunet_collab.launch {shlex.join(argv)}\n"
            "for two processes on this machine. With several machines, run the command on each of them. Replace "
            "--standalone by --nnodes with their number, --rdzv_backend c10d and --rdzv_endpoint HOST:29500, where "
            "HOST is one of them."
        )
    return RankInfo(*(int(environment[name]) for name in VARIABLES[:4]))


def launch(args: argparse.Namespace, rank_info: RankInfo) -> None:
    """Join the other processes, train and validate.

    Args:
        args: Arguments, from `make_parser`.
        rank_info: Position of this process, from `read_rank_info`.

    Raises:
        CollabError: If there is no GPU for this process, or the trainer cannot use the one it has.
    """
    import torch.distributed as dist

    device = prepare_device(args.device, rank_info)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    train(args, device)
    # Not called after an exception: the other processes may wait forever. This process ends, and torchrun ends them.
    dist.destroy_process_group()


def prepare_device(kind: str, rank_info: RankInfo) -> torch.device:
    """Set up torch as nnUNetv2_train does, and return the device of this process.

    Args:
        kind: `cuda` or `cpu`.
        rank_info: Position of this process.

    Raises:
        CollabError: If this machine has fewer GPUs than processes.
    """
    import torch

    from nnunet_collab.core.shipped import available_cores

    if kind == "cpu":
        torch.set_num_threads(max(1, available_cores() // rank_info.local_world_size))
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if rank_info.local_world_size > count:
        raise CollabError(
            f"-device cuda: each process needs its own GPU; got {rank_info.local_world_size} processes and "
            f"{count} GPUs on this machine. Lower --nproc_per_node, or train with -device cpu."
        )
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda", rank_info.local_rank)
    torch.cuda.set_device(device)
    return device


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Train and validate as nnUNetv2_train does in each of its processes.

    Args:
        args: Arguments, from `make_parser`.
        device: Device of this process.

    Raises:
        CollabError: If the trainer uses another device.
    """
    from nnunetv2.run import run_training as nnunet

    fold = args.fold if args.fold == "all" else int(args.fold)
    trainer: Any = nnunet.get_trainer_from_args(
        args.dataset_name_or_id, args.configuration, fold, args.tr, args.p, args.c, device=device
    )
    if trainer.device != device:
        raise CollabError(
            f"-tr {args.tr}: the trainer must use {device}, the device of this process; it uses {trainer.device}, as "
            "nnU-Net's own trainers do. Use a trainer of nnunet_collab, or nnUNetv2_train -num_gpus on one machine."
        )
    trainer.disable_checkpointing = args.disable_checkpointing
    nnunet.maybe_load_checkpoint(trainer, args.c, args.val, args.pretrained_weights)
    if not args.val:
        trainer.run_training()
    if args.val_best:
        trainer.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_best.pth")))
    trainer.perform_actual_validation(args.npz)


if __name__ == "__main__":  # spawned worker processes import this file again and must not train
    sys.exit(main())
