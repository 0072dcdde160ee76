"""A job array for SLURM: one task per run, requeued when its time limit is reached or its machine fails."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunet_collab.study.description import Description
from nnunet_collab.study.runs import Places, Run

_WARNED_S = 300  # before the time limit, so that a task can end its commands and be queued again

_BODY = """
set -u
runs=({runs})
run="${{runs[$SLURM_ARRAY_TASK_ID]}}"
child=""
{setup}
# On SIGTERM (preemption): end the commands; SLURM queues the task again if it is configured to.
# At the time limit: the same, and queue the task again. The training continues from its last checkpoint.
end() {{ kill -TERM "$child" 2>/dev/null; wait "$child"; }}
trap 'end; exit 143' TERM
trap 'end; scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"; exit 0' USR1
{command} --run "$run" &
child=$!
wait "$child"
"""


def array_script(study: Description, places: Places, runs: Sequence[Run], command: Sequence[str]) -> str:
    """The script that `sbatch` takes.

    Args:
        study: Study with the options of `sbatch`.
        places: Paths of the study.
        runs: Runs, one per task.
        command: Words of `nnunet_collab study FILE ...`, to which each task adds `--run NAME`.
    """
    at_once = f"%{study.slurm.at_once}" if study.slurm.at_once else ""
    options = [
        f"--job-name={study.name}",
        f"--array=0-{len(runs) - 1}{at_once}",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{_WARNED_S}",
        f"--output={_for_sbatch(places.logs / 'slurm_%A_%a.log')}",
        *study.slurm.options,
    ]
    head = "\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in options)])
    return head + "\n" + _BODY.format(
        runs=" ".join(run.name for run in runs), setup="\n".join(study.slurm.setup), command=shlex.join(command)
    )  # fmt: skip


def _for_sbatch(path: Path) -> str:
    """A path as sbatch reads it: quoted if it has spaces."""
    return f'"{path}"' if " " in str(path) else str(path)
