"""Run a study, from its file to its report: the work of the command `nnunet_collab study`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tqdm import tqdm

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_atomically
from nnunet_collab.study.checks import Inspect, claim_folder, find_places, make_runs
from nnunet_collab.study.description import Description, read_description
from nnunet_collab.study.execution import Failure, Processes, State, Stopped, Work, own_command, run_steps, work_on
from nnunet_collab.study.lock import Lock
from nnunet_collab.study.runs import Places, Run
from nnunet_collab.study.slurm import array_script
from nnunet_collab.study.status import Progress, progress_of, table, write_table
from nnunet_collab.study.step import Step, pending
from nnunet_collab.study.steps import reports, steps_of

_LOOKS_EVERY_S = 2.0


class Ended(BaseException):
    """Raised in the main thread on SIGTERM, as KeyboardInterrupt is on Ctrl-C."""


@dataclass(frozen=True)
class Study:
    """A study that has been checked.

    Attributes:
        file: Its TOML file.
        described: Content of the file.
        places: Paths of all its files.
        runs: Runs in the order in which they start.
        device: Value of nnU-Net's `-device`.
    """

    file: Path
    described: Description
    places: Places
    runs: list[Run]
    device: str

    def steps(self, run: Run, *, ahead: bool = False) -> list[Step]:
        """Steps of a run; with `ahead`, also those of which it is not known yet whether they will be needed."""
        return steps_of(self.described, self.places, run, self.device, ahead=ahead)

    def reports(self) -> list[Step]:
        """Steps of the reports on all runs."""
        return reports(self.described, self.places, self.runs, self.file)

    def progress(self) -> list[Progress]:
        """Progress of all runs, read from the disk."""
        return [progress_of(self.described, self.places, run, self.steps(run)) for run in self.runs]

    def lock_of(self, run: Run) -> Lock:
        """In the results folder, since two studies, or two folders of one study, may have a run in common."""
        name = f"{run.trainer}__{self.described.plans}__{self.described.configuration}.lock"
        return Lock(self.places.results / ".study_locks" / name, f"run {run.name}")


def check_study(file: Path, folder: Path | None, device: str, inspect: Inspect) -> Study:
    """Read a study and check everything that can be checked before a training; nothing is written.

    Args:
        file: The study file.
        folder: Folder of the study; None: `study_<name>` in the current folder.
        device: Value of nnU-Net's `-device`.
        inspect: Function that returns what a trainer does with its settings.

    Raises:
        CollabError: For the reasons of `read_description`, `find_places` and `make_runs`.
    """
    described = read_description(file)
    places = find_places(described, folder or Path(f"study_{described.name}"))
    return Study(file.resolve(), described, places, make_runs(described, places, inspect), device)


def print_commands(study: Study) -> None:
    """Commands that `conduct` would run now, as lines for a shell; finished runs are comments."""
    print('# To type these commands yourself, run first: eval "$(nnunet_collab env)". Finished steps are left out.')
    left = False
    for run in study.runs:
        left = print_run(study, run) or left
    todo = study.reports() if left else pending(study.reports())
    print(f"\n# report{'' if todo else ': finished'}")
    _print_steps(todo)


def print_run(study: Study, run: Run) -> bool:
    """Print the commands of a run that are left; return whether there are any."""
    steps = study.steps(run, ahead=True)
    todo = pending(steps)
    print(f"\n# {run.name}: {'finished' if not todo else f'{len(steps) - len(todo)} of {len(steps)} steps done'}")
    if todo and run.arm.self_train is not None:
        print("# A round starts only if the one before raised the validation Dice. These lines take that for granted.")
    _print_steps(todo)
    return bool(todo)


def print_status(study: Study) -> None:
    """The table of the study's progress, read from the disk."""
    print(table(study.progress(), State()), end="")


def write_array(study: Study, options: Sequence[str]) -> Path:
    """Write the script of a SLURM job array, one task per run.

    Args:
        study: The study.
        options: Additional words of the command in each task.

    Returns:
        The script.
    """
    places = study.places
    claim_folder(study.described, places.study)
    places.logs.mkdir(exist_ok=True)
    words = [*own_command(), "study", str(study.file), "-o", str(places.study), *options]
    text = array_script(study.described, places, study.runs, words)
    script = places.study / "slurm.sh"

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    write_atomically(script, write)
    return script


def conduct_one(study: Study, name: str) -> int:
    """Do one run up to its scores, without the report: a task of a job array.

    Returns:
        Exit status: 0; 1 if it failed or another process works on it; 143 or 130 if a signal ended it.

    Raises:
        CollabError: If there is no such run.
    """
    run = next((run for run in study.runs if run.name == name), None)
    if run is None:
        names = ", ".join(run.name for run in study.runs)
        raise CollabError(f"--run: must be one of the study's runs, {names}; got {name!r}. Correct it.")
    claim_folder(study.described, study.places.study)
    return _conduct(study, [run], [{}], progress=False, report=False)


def conduct(study: Study, slots: Sequence[dict[str, str]], *, progress: bool) -> int:
    """Do all steps that are not done yet.

    Args:
        study: The study.
        slots: Environment variables of each thread that works on runs.
        progress: Whether to show a progress bar.

    Returns:
        Exit status: 0; 1 if a run failed; 143 or 130 if a signal ended the study.

    Raises:
        CollabError: If another process works on this study, or its folder belongs to another study.
    """
    with Lock(study.places.study / "lock", f"study {study.described.name}"):
        claim_folder(study.described, study.places.study)
        return _conduct(study, study.runs, slots, progress=progress, report=True)


def _conduct(
    study: Study, runs: Sequence[Run], slots: Sequence[dict[str, str]], *, progress: bool, report: bool
) -> int:
    study.places.logs.mkdir(exist_ok=True)
    state, processes = State(), Processes()
    began = time.monotonic()
    with _bar(study, runs, disable=not progress) as bar:

        def tell(line: str) -> None:
            bar.write(f"[{time.monotonic() - began:5.0f} s] {line}")

        work = Work(study.steps, study.lock_of, study.places.logs, tell)
        watch = _Watch(study, runs, state, bar, shows=report)
        try:
            with _ended_by_sigterm():
                work_on(runs, work, processes, slots, state, watch)
                if report and not state.failures:
                    failure = _in_thread_of_its_own(study, work, processes, state)
                    state.failures += [failure] if failure else []
        except (KeyboardInterrupt, Ended) as end:
            tell("Ended by a signal; all commands have ended, too. Start the study again to continue it.")
            return 130 if isinstance(end, KeyboardInterrupt) else 143
        finally:
            state.working.clear()
            watch.look()
    if report:
        print(f"\n{table(study.progress(), state)}", end="")
    for failure in state.failures:
        print(f"\n{failure.run}: FAILED, {failure.reason}")
    if report and not state.failures:
        pages = [str(study.places.study / step.name / "report.html") for step in study.reports()]
        print("\n" + "\n".join(f"report  {page}" for page in pages))
    return 1 if state.failures else 0


def _in_thread_of_its_own(study: Study, work: Work, processes: Processes, state: State) -> Failure | None:
    """Write the reports in a thread; the main thread waits, so that it receives signals."""
    found: list[Failure | None] = []

    def write() -> None:
        with suppress(Stopped):
            found.append(run_steps("study", study.reports(), work, processes, {}, state))

    thread = threading.Thread(target=write, daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
    except BaseException:
        processes.stop()
        raise
    return found[0] if found else Failure("study", "report: its thread ended too early.")


class _Watch:
    """Keeps the bar and the table in the study's folder up to date."""

    def __init__(self, study: Study, runs: Sequence[Run], state: State, bar: tqdm, *, shows: bool) -> None:
        self.study, self.runs, self.state, self.bar, self.shows = study, {run.name for run in runs}, state, bar, shows
        self.looked = 0.0
        self.text = ""

    def __call__(self) -> None:
        if time.monotonic() - self.looked > _LOOKS_EVERY_S:
            self.look()

    def look(self) -> None:
        self.looked = time.monotonic()
        progress = self.study.progress()
        made = sum(one.steps for one in progress if one.run.name in self.runs)
        self.bar.update(made - self.bar.n)
        text = table(progress, self.state)
        if self.shows and text != self.text:
            write_table(self.study.places.study / "status.txt", text)
            self.text = text


def _bar(study: Study, runs: Sequence[Run], *, disable: bool) -> tqdm:
    names = {run.name for run in runs}
    progress = [one for one in study.progress() if one.run.name in names]
    total, made = sum(one.of for one in progress), sum(one.steps for one in progress)
    return tqdm(desc=study.described.name, total=total, initial=made, unit="step", disable=disable or None, leave=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """In this context SIGTERM raises `Ended`. No effect outside of the main thread: signals cannot be set there."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Ended

    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_steps(steps: Sequence[Step]) -> None:
    for step in steps:
        print(f"# {step.title}")
        for command in step.commands:
            print(command.line())
