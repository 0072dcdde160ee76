"""Running the commands of a study, several runs at a time, and ending all of them when the study is ended."""

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
from nnunet_collab.study.steps import Command, Step, pending

PROGRAMS = Path(sys.executable).parent  # nnU-Net's commands of this very environment, whatever the PATH
PATIENCE_S = 10.0  # between the two ways to end a command
OWN = "nnunet_collab"
_TAIL_LINES = 15


class Stopped(Exception):
    """The study was ended from outside while a command ran, or before it could start."""


@dataclass(frozen=True)
class Failure:
    """What went wrong in a run.

    Attributes:
        run: Its name.
        reason: The end of the command's output, or a message.
    """

    run: str
    reason: str


@dataclass
class State:
    """What is going on now: the step of each run that is being worked on, and what failed."""

    working: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


class Processes:
    """Starts commands and ends those that run, from whatever thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, command: Command, log: Path, variables: Mapping[str, str], lock: Lock | None) -> int:
        """Run a command to its end, its output appended to a log.

        Args:
            command: The command.
            log: Its log.
            variables: Further environment variables.
            lock: That the command shall hold, too.

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
                # A group of its own: Ctrl-C in the terminal reaches the study alone, which ends whole groups.
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
        """Let no further command start, and end those that run with all their children."""
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
    """What the threads need to work on runs.

    Attributes:
        steps_of: Steps of a run.
        lock_of: Lock of a run.
        logs: Folder of the logs.
        tell: Called with a line for people.
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
    """Work on all runs, as many at a time as there are slots; a run that fails does not keep others from going on.

    Args:
        runs: In the order in which they are begun.
        work: What is to be done.
        processes: That run the commands; ended when this function is left by an exception, such as Ctrl-C.
        slots: Environment variables of each of the threads.
        state: Is kept up to date.
        watch: Called again and again, from this thread, while runs are worked on.
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
        What went wrong, if something did.
    """
    for step in pending(steps):
        if step.is_done():  # an earlier step left its results as they were
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
            return Failure(run_name, f"{step.title}: its commands ended, but not all it makes is there. See {log}.")
    return None


def own_command() -> list[str]:
    """How `nnunet_collab` of this environment is started; it need not be on the PATH."""
    script = PROGRAMS / OWN
    return [str(script)] if script.is_file() else [sys.executable, "-m", OWN]


def slots_of(jobs: int, device: str, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Environment variables of each of `jobs` threads: a GPU each, or one CPU thread each.

    Args:
        jobs: How many runs are worked on at a time.
        device: Of `-device`.
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
            with work.lock_of(run) as lock:
                failure = run_steps(run.name, steps, work, processes, slot, state, lock)
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
    """The user's, in which nnU-Net finds our trainers and commands are those of this Python's environment."""
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
