"""Run the commands of a study, several runs at a time, and end all commands when the study ends."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.shipped import VARIABLE as DOORWAYS
from nnunet_collab.core.shipped import doorway_folder, extended
from nnunet_collab.study.lock import Lock
from nnunet_collab.study.runs import Run
from nnunet_collab.study.step import Command, Step, pending

PROGRAMS = Path(sys.executable).parent  # nnU-Net's commands of this environment, for any PATH
PATIENCE_S = 10.0  # time between SIGTERM and SIGKILL
OWN = "nnunet_collab"
_TAIL_LINES = 15


class Stopped(Exception):
    """The study was ended by a signal while a command ran, or before it could start."""


@dataclass(frozen=True)
class Failure:
    """Failure of a run.

    Attributes:
        run: Name of the run.
        reason: The end of the command's output, or a message.
    """

    run: str
    reason: str


@dataclass
class State:
    """Current state: the step of each run in progress, and the failures."""

    working: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


class Processes:
    """Starts commands, and ends the running ones, from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, command: Command, log: Path, variables: Mapping[str, str], lock: Lock | None) -> int:
        """Run a command to its end, its output appended to a log.

        Args:
            command: The command.
            log: Path of its log.
            variables: Additional environment variables.
            lock: Lock that the command holds, too.

        Returns:
            Its exit status.

        Raises:
            Stopped: If `stop` was called.
        """
        posix = os.name == "posix"
        environment = {**_environment(), **variables, **command.variables}
        with open(log, "ab") as file:
            file.write(f"\n$ {command.line()}\n".encode())
            file.flush()
            with self._guard:
                if self.stopped:
                    raise Stopped
                # A separate process group: Ctrl-C in the terminal reaches only the study, which ends whole groups.
                process = subprocess.Popen(
                    [*own_command(), *command.words[1:]] if command.words[0] == OWN else command.words,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=posix,
                    pass_fds=(lock.descriptor,) if lock is not None and posix else (),
                )
                self._running.add(process)
            if lock is not None:
                lock.note_command(process.pid)
            status = process.wait()
            with self._guard:
                self._running.discard(process)
                if self.stopped:
                    raise Stopped
        return status

    def stop(self) -> None:
        """Start no more commands, and end the running ones with all their children."""
        with self._guard:
            self.stopped = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))  # the rest of its group, too


@dataclass(frozen=True)
class Work:
    """Functions and paths that the threads need to work on runs.

    Attributes:
        steps_of: Function that returns the steps of a run.
        lock_of: Function that returns the lock of a run.
        logs: Folder of the logs.
        tell: Function that prints one line for the user.
    """

    steps_of: Callable[[Run], Sequence[Step]]
    lock_of: Callable[[Run], Lock]
    logs: Path
    tell: Callable[[str], None]


def work_on(
    runs: Sequence[Run],
    work: Work,
    processes: Processes,
    slots: Sequence[Mapping[str, str]],
    state: State,
    watch: Callable[[], None],
) -> None:
    """Work on all runs, one per slot at a time. If a run fails, the others continue.

    Args:
        runs: Runs in the order in which they start.
        work: Steps, locks and logs of the runs.
        processes: Processes of the commands; ended if an exception, such as Ctrl-C, leaves this function.
        slots: Environment variables of each thread.
        state: Current state; updated here.
        watch: Function that this thread calls repeatedly while runs are in progress.
    """
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for run in runs:
        waiting.put(run)
    threads = [
        threading.Thread(target=_work_in_slot, args=(waiting, work, processes, slot, state), daemon=True)
        for slot in slots[: max(1, len(runs))]
    ]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            watch()
            for thread in threads:
                thread.join(0.2)
    except BaseException:
        processes.stop()
        raise
    finally:
        for thread in threads:
            thread.join(PATIENCE_S)


def run_steps(
    run_name: str,
    steps: Sequence[Step],
    work: Work,
    processes: Processes,
    variables: Mapping[str, str],
    state: State,
    lock: Lock | None = None,
) -> Failure | None:
    """Run the steps that are pending.

    Returns:
        The failure, or None.
    """
    for step in pending(steps):
        if step.is_done():  # an earlier step did not change its results
            continue
        state.working[run_name] = step.title
        work.tell(f"{run_name}: {step.title}")
        log = work.logs / f"{run_name}_{step.name}.log"
        for command in step.commands:
            try:
                status = processes.run(command, log, variables, lock)
            except OSError as error:
                return Failure(run_name, f"{step.title}: {command.words[0]} cannot be started ({error}).")
            if status != 0:
                tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
                return Failure(
                    run_name, f"{step.title}: {command.words[0]} failed with status {status}; end of {log}:\n{tail}"
                )
        if not step.is_done():
            return Failure(
                run_name, f"{step.title}: its commands ended, but some of its results are missing. See {log}."
            )
    return None


def own_command() -> list[str]:
    """Command that starts `nnunet_collab` of this environment, even if it is not on the PATH."""
    script = PROGRAMS / OWN
    return [str(script)] if script.is_file() else [sys.executable, "-m", OWN]


def slots_of(jobs: int, device: str, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Environment variables of each of `jobs` threads: a GPU each, or one CPU thread each.

    Args:
        jobs: Number of runs at a time.
        device: Value of `-device`.
        gpus: Names of the GPUs, as in CUDA_VISIBLE_DEVICES.
    """
    if jobs == 1:
        return [{}]
    if device == "cuda" and gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(jobs)]
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} for _ in range(jobs)]


def _work_in_slot(
    waiting: queue.SimpleQueue[Run], work: Work, processes: Processes, slot: Mapping[str, str], state: State
) -> None:
    while not processes.stopped:
        try:
            run = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            steps = work.steps_of(run)
            if not pending(steps):
                continue
            failure = None
            with work.lock_of(run) as lock:
                while failure is None and pending(steps):
                    failure = run_steps(run.name, steps, work, processes, slot, state, lock)
                    steps = work.steps_of(run)  # what follows may depend on the results
        except Stopped:
            return
        except (CollabError, OSError) as error:
            failure = Failure(run.name, str(error))
        finally:
            state.working.pop(run.name, None)
        if failure is not None:
            state.failures.append(failure)
            work.tell(f"{run.name}: FAILED, {failure.reason.splitlines()[0]}")
        else:
            work.tell(f"{run.name}: done")


def _environment() -> dict[str, str]:
    """The user's environment, with our trainers for nnU-Net and the commands of this Python environment."""
    return {
        **os.environ,
        DOORWAYS: extended(os.environ.get(DOORWAYS, ""), doorway_folder()),
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and all of its group."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(process.pid, number)
        else:
            process.terminate()
