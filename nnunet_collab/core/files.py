"""Write files so that a crash at any moment leaves either the old file or the new one, never a damaged one.

A file is first written under a temporary name that identifies the process, then renamed. If the process is killed, the
next process that writes to the folder recognizes the temporary file by its name and removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.process import ProcessId, this_process

ENDING = ".partial"
ABANDONED_S = 3600  # seconds without a change after which a temporary file of another machine counts as abandoned
_ASIDE = re.compile(rf"\..+\.([0-9a-f]+-\d+-\d+){re.escape(ENDING)}")


def aside(path: Path) -> Path:
    """The temporary path under which this process writes a file or a folder before it renames it to `path`."""
    return path.with_name(f".{path.name}.{this_process()}{ENDING}")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    Raises:
        CollabError: If writing fails, e.g. on a full disk. `path` is unchanged, and the temporary file is removed.
    """
    temporary = aside(path)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        old = (
            "The file that was there before is untouched." if os.path.exists(path) else "There was no such file before."
        )
        raise CollabError(
            f"{path}: could not be written ({error}). {old} Free some disk space or fix the permissions, "
            f"then run the command again (training: with --c)."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a file that could not be written may not be removable
            temporary.unlink()


def remove_leftovers(folders: Iterable[Path]) -> list[Path]:
    """Remove the temporary files of processes that have ended.

    Args:
        folders: Folders to search, without their subfolders. Missing folders are skipped.

    Returns:
        The removed files. A file of another machine is removed if it has not changed for 1 hour.
    """
    removed = []
    for path in (file for folder in folders if folder.is_dir() for file in folder.glob(f".*{ENDING}")):
        match = _ASIDE.fullmatch(path.name)
        writer = ProcessId.parse(match[1]) if match else None
        with contextlib.suppress(OSError):  # renamed or removed by another process meanwhile
            if writer is not None and path.is_file() and (writer.is_gone or _is_abandoned(path, writer)):
                path.unlink()
                removed.append(path)
    return removed


def _is_abandoned(path: Path, writer: ProcessId) -> bool:
    return not writer.is_here and time.time() - path.stat().st_mtime > ABANDONED_S


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically."""
    write_atomically(path, lambda temporary: _dump(temporary, content))


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
