"""Writing files so that a crash at any moment leaves the old one or the new one, never a broken one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, make sure it is on disk, and rename it.

    Raises:
        CollabError: If writing fails, e.g. on a full disk; `path` is as it was, and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
            f"{path}: could not be written ({error}). {old} Free some disk space or mend the permissions, "
            f"then run the command again (training: with --c)."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be written, it need not be removable
            temporary.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically."""
    write_atomically(path, lambda temporary: _dump(temporary, content))


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
