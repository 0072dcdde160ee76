"""`nnunet_collab study`: compare methods fairly: a study file describes the comparison, the result is a report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_collab.core.errors import CollabError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab study FILE`."""
    parser.add_argument("file", metavar="STUDY.toml", type=Path, help="the study file; see README and studies/")
    parser.add_argument("-o", "--output", type=Path, help="the study's folder (default: study_<name> here)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="number of runs at a time, each with one GPU or CPU thread"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto: a GPU if there is one"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print the remaining commands, and run nothing")
    mode.add_argument("--status", action="store_true", help="print the progress of every run")
    mode.add_argument("--slurm", action="store_true", help="write a SLURM job array, one task per run, and run nothing")
    # Not `run`: that name holds the function of the command.
    mode.add_argument(
        "--run", dest="one", metavar="NAME", help="do one run, e.g. labels0, without the report, as a task of an array"
    )


def run(args: argparse.Namespace) -> int:
    """Check the study, then do the remaining work, or print it.

    Returns:
        0; 1 if a run failed; 130 or 143 if Ctrl-C or SIGTERM ended the study.

    Raises:
        CollabError: If the study is refused. Nothing is trained then.
    """
    if args.jobs < 1:
        raise CollabError(f"--jobs: must be at least 1; got {args.jobs}. Correct it.")

    from nnunet_collab.study import conduct
    from nnunet_collab.training.inspection import inspect_trainer

    device = device_of(args.device)
    study = conduct.check_study(args.file, args.output, device, inspect_trainer)
    if args.dry_run:
        conduct.print_commands(study)
        return 0
    if args.status:
        conduct.print_status(study)
        return 0
    if args.slurm:
        script = conduct.write_array(study, ["--device", args.device])
        print(f"wrote   {script}, {len(study.runs)} tasks\nnext    sbatch {script}")
        print(f"then    nnunet_collab study {args.file}, which writes the report when all tasks are done")
        return 0
    if args.one is not None:
        return conduct.conduct_one(study, args.one)
    print(f"reads   {study.places.preprocessed}\nwrites  {study.places.results} and {study.places.study}", flush=True)
    return conduct.conduct(study, _slots(args.jobs, device), progress=True)


def device_of(asked: str) -> str:
    """The value of nnU-Net's `-device`: `auto` is a GPU if there is one."""
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _slots(jobs: int, device: str) -> list[dict[str, str]]:
    from nnunet_collab.study.execution import slots_of

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = [name for name in visible.split(",") if name.strip()]
    else:
        import torch

        gpus = [str(number) for number in range(torch.cuda.device_count() if device == "cuda" else 0)]
    return slots_of(jobs, device, gpus)
