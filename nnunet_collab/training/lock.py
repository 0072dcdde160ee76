"""Ensure that one training at a time writes into a results folder.

Two trainings in one folder would mix their files: the final checkpoint of one, the best checkpoint of the other, one
plans.json. So a training holds a lock file in its fold folder and in that of every student it publishes. The file names
the process, which touches it at regular intervals (heartbeat). A lock whose process has ended is taken over. If the
process cannot be seen from here (another machine or container), a lock without a recent heartbeat is taken over.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import aside
from nnunet_collab.core.process import ProcessId, this_process

NAME = "training.lock"
BEAT_S = 30.0  # time between two heartbeats
SILENT_S = 600.0  # 20 heartbeats missed: a process that cannot be seen from here counts as dead


@dataclass(frozen=True)
class Holder:
    """Content of a lock file.

    Attributes:
        host: Name of the machine.
        process: The process, as `str(ProcessId)` writes it.
        since: Local time on that machine when the lock was taken.
    """

    host: str
    process: str
    since: str


class FolderLocks:
    """Locks of the folders that a training writes into; reentrant within one process.

    Args:
        folders: Fold folders, in the order in which they are taken.

    Raises:
        CollabError: If another training holds one of them; locks taken before are released.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._held: list[Path] = []
        self._made: list[Path] = []
        self._stop = threading.Event()
        self._me = str(this_process())
        atexit.register(self.release)
        try:
            for folder in folders:
                self._take(folder)
        except BaseException:
            self.release()
            raise
        threading.Thread(target=self._beat, name="training lock", daemon=True).start()

    def check(self) -> None:
        """Raise if another training has taken over because this one sent no heartbeat for too long.

        Raises:
            CollabError: If so, before a file of the other training is overwritten.
        """
        for path in self._held:
            holder = _read(path)
            if holder is None or holder.process != self._me:
                raise CollabError(
                    f"{path}: must name this training, process {os.getpid()}; it was taken over or removed while this "
                    f"one was paused ({holder or 'there is no lock'}). This training ends here; what it saved "
                    f"before may "
                    f"have been replaced. Check which of the two still runs before you continue one with --c."
                )

    def release(self) -> None:
        """Release the locks, and remove folders that were created only for a lock; safe to call again."""
        if self._me != str(this_process()):  # a forked process must not release the locks of its parent
            return
        self._stop.set()
        atexit.unregister(self.release)
        for path in self._held:
            holder = _read(path)
            if holder is not None and holder.process == self._me:
                path.unlink(missing_ok=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty: keep it
                folder.rmdir()
        self._held, self._made = [], []

    def _take(self, folder: Path) -> None:
        self._made += [path for path in (folder.parent, folder) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        mine = aside(path)
        holder = Holder(platform.node(), self._me, datetime.now().isoformat(sep=" ", timespec="seconds"))
        mine.write_text(json.dumps(asdict(holder)), encoding="utf-8")
        try:
            while not _claim(mine, path):
                found = _read(path)
                if found is not None and found.process == self._me:  # this process holds it already
                    return
                _refuse_if_alive(path, found, now=mine.stat().st_mtime)
                _remove_stale(path, found)
            self._held.append(path)
        finally:
            mine.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            for path in self._held:
                with contextlib.suppress(OSError):  # a disk that is briefly unavailable
                    os.utime(path)


def _claim(mine: Path, path: Path) -> bool:
    """Create a complete lock file in one step: linking fails if the file exists, on every disk that has links."""
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError:  # a disk without links
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(mine.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    os.utime(path)
    return True


def _read(path: Path) -> Holder | None:
    """Holder of the lock; None if there is no lock, or it cannot be read."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _refuse_if_alive(path: Path, holder: Holder | None, *, now: float) -> None:
    process = None if holder is None else ProcessId.parse(holder.process)
    if process is not None and process.is_gone:
        return
    try:
        silent = now - path.stat().st_mtime  # both times are from the clock of the disk
    except OSError:
        return  # released at this moment
    seen = process is not None and process.is_here
    if not seen and silent > SILENT_S:
        return
    who = "a training"
    if holder is not None and process is not None:
        who = f"process {process.pid} on {holder.host}, since {holder.since},"
    state = "is running"
    if not seen:
        state = f"sent its last heartbeat {max(0, round(silent))} s ago, and counts as dead after {SILENT_S:.0f} s"
    raise CollabError(
        f"{path.parent}: one training at a time may write here; {who} {state}. Wait for it or end it, or start this "
        f"one under another run_name. If that training has certainly ended, delete {path}."
    )


def _remove_stale(path: Path, holder: Holder | None) -> None:
    """Rename, then remove: so of two processes that find a stale lock, neither removes the other's new lock."""
    taken = aside(path.with_name(f"{NAME}.stale"))
    try:
        os.replace(path, taken)
    except FileNotFoundError:
        return
    if _read(taken) != holder:  # the other process was faster: put its lock back
        with contextlib.suppress(OSError):
            os.link(taken, path)
    taken.unlink(missing_ok=True)
