"""One training at a time writes into a results folder.

Two that were started together would mix: the final checkpoint of one, the best one of the other, one plans.json. So a
training holds a lock file in its fold folder and in that of every student it publishes: who holds it, touched again and
again while its process lives. A lock whose process is gone is taken over; of a process that cannot be seen from here
(another machine, another container) the silence tells.
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
BEAT_S = 30.0  # between two signs of life
SILENT_S = 600.0  # without one, a training that cannot be seen from here is taken for dead: 20 beats


@dataclass(frozen=True)
class Holder:
    """What a lock file says.

    Attributes:
        host: Name of the machine.
        process: Written by `str(ProcessId)`.
        since: Local time there.
    """

    host: str
    process: str
    since: str


class FolderLocks:
    """Locks of the folders a training writes into; reentrant in one process.

    Args:
        folders: Fold folders, in the order in which they are taken.

    Raises:
        CollabError: If another training holds one of them; those taken before are given back.
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
        """Raise if another training has taken over, because this one gave no sign of life for too long.

        Raises:
            CollabError: Before anything of the other one is overwritten.
        """
        for path in self._held:
            holder = _read(path)
            if holder is None or holder.process != self._me:
                raise CollabError(
                    f"{path}: must name this training, process {os.getpid()}; it was taken over or removed while this "
                    f"one slept ({holder or 'there is no lock'}). This training ends here; what it saved before may "
                    f"have been replaced. Look which of the two still runs before you continue one with --c."
                )

    def release(self) -> None:
        """Give the folders back, and remove those that were made for a lock alone; safe to call again."""
        if self._me != str(this_process()):  # a forked helper must not unlock what its parent holds
            return
        self._stop.set()
        atexit.unregister(self.release)
        for path in self._held:
            holder = _read(path)
            if holder is not None and holder.process == self._me:
                path.unlink(missing_ok=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty, so needed
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
                with contextlib.suppress(OSError):  # a disk that is away for a moment
                    os.utime(path)


def _claim(mine: Path, path: Path) -> bool:
    """Put a complete lock where there is none: linking fails where a file is, on every kind of disk that has links."""
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
    """Who holds it; None if there is no lock, or none that can be read."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _refuse_if_alive(path: Path, holder: Holder | None, *, now: float) -> None:
    process = None if holder is None else ProcessId.parse(holder.process)
    if process is not None and process.is_gone:
        return
    try:
        silent = now - path.stat().st_mtime  # both by the clock of the disk
    except OSError:
        return  # released in this moment
    seen = process is not None and process.is_here
    if not seen and silent > SILENT_S:
        return
    who = "a training"
    if holder is not None and process is not None:
        who = f"process {process.pid} on {holder.host}, since {holder.since},"
    state = "is running"
    if not seen:
        state = f"gave a sign of life {max(0, round(silent))} s ago, and counts as dead after {SILENT_S:.0f} s without"
    raise CollabError(
        f"{path.parent}: one training at a time may write here; {who} {state}. Wait for it or end it, or start this "
        f"one under another run_name. If that training certainly runs no more, delete {path}."
    )


def _remove_stale(path: Path, holder: Holder | None) -> None:
    """Rename, then remove, so that of two that find a stale lock none removes the new one of the other."""
    taken = aside(path.with_name(f"{NAME}.stale"))
    try:
        os.replace(path, taken)
    except FileNotFoundError:
        return
    if _read(taken) != holder:  # the other one was faster: this is its lock, and goes back
        with contextlib.suppress(OSError):
            os.link(taken, path)
    taken.unlink(missing_ok=True)
