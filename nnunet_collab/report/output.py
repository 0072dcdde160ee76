"""The folder of a report: which files may be replaced, and how it is written completely or not at all.

A report lists its files in `report_files.json`. A folder is an earlier report if it has that list and only the files in
the list. Only such a folder is replaced, and only with --overwrite.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_json

LIST = "report_files.json"


def refuse_output(output: Path, *, overwrite: bool) -> None:
    """Raise unless a report may be written to `output`. Call it before the measurement, and again after it.

    Raises:
        CollabError: If it is a link or a file, its parent does not exist, it holds anything but an earlier report, or
            it holds one and `overwrite` is False.
    """
    if output.is_symlink():
        raise CollabError(
            f"report: -o must not be a link; {output} is a link to {os.readlink(output)}. Name that folder, or "
            "another one."
        )
    if not output.parent.is_dir() or output.is_file():
        raise CollabError(
            f"report: -o must be in a folder that exists; got {output}. Create that folder, or name another."
        )
    if not output.exists() or not any(output.iterdir()):
        return
    if strange := sorted(_files(output) - _listed_files(output)):
        raise CollabError(
            f"report: -o must be new or hold only an earlier report; {output} also holds {listed(strange)}. Name "
            "another folder."
        )
    if not overwrite:
        raise CollabError(
            f"report: {output} holds a report already. Name another folder, or replace it with --overwrite."
        )


def write_folder(output: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Let `write` fill a temporary folder next to `output`, then rename it to `output`.

    Raises:
        CollabError: If the system refuses, or for the reasons of `refuse_output`, since the folder may change while
            `write` runs. `output` is then unchanged.
    """
    partial = _beside(output, "partial")
    former = _beside(output, "former")
    try:
        partial.mkdir()
        write(partial)
        write_json(partial / LIST, sorted({*_files(partial), LIST}))
        refuse_output(output, overwrite=overwrite)
        if output.exists():
            output.rename(former)
        partial.rename(output)
    except OSError as error:
        raise CollabError(
            f"report: {output} could not be written ({error}). Free some disk space or fix the permissions, then run "
            "the command again."
        ) from error
    finally:
        if former.exists() and not output.exists():
            former.rename(output)
        for folder in (partial, former):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(output: Path) -> list[Path]:
    """Remove temporary folders next to `output` that killed reports left on this machine.

    An earlier report that a killed command had moved aside, but not yet replaced, is moved back.

    Returns:
        What was removed or moved back. Folders of living processes, or of other machines, are not touched.
    """
    pattern = re.compile(rf"\.{re.escape(output.name)}\.{re.escape(_host())}\.(\d+)\.(partial|former)")
    found = []
    for path in sorted(output.parent.iterdir()) if output.parent.is_dir() else []:
        match = pattern.fullmatch(path.name)
        if not match or path.is_symlink() or not path.is_dir() or _is_alive(int(match.group(1))):
            continue
        if match.group(2) == "former" and not output.exists():
            path.rename(output)
        else:
            shutil.rmtree(path, ignore_errors=True)
        found.append(path)
    return found


def _beside(output: Path, kind: str) -> Path:
    """A folder of this process; it is in the same folder, so that it can be renamed."""
    return output.with_name(f".{output.name}.{_host()}.{os.getpid()}.{kind}")


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # on Windows signal 0 is Ctrl-C, which would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


def _files(folder: Path) -> set[str]:
    """All files, links and empty folders in the folder, with `/` between the names; links are not followed."""
    found = set()
    for root, folders, files in os.walk(folder):
        at = Path(root)
        empty = [at / name for name in folders if not (at / name).is_symlink() and not any((at / name).iterdir())]
        links = [at / name for name in folders if (at / name).is_symlink()]
        found |= {path.relative_to(folder).as_posix() for path in (*empty, *links, *(at / name for name in files))}
    return found


def _listed_files(folder: Path) -> set[str]:
    """Files that the report in the folder lists; empty if there is no list."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return set(map(str, json.loads((folder / LIST).read_text(encoding="utf-8"))))
    return set()
