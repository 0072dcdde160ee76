"""The folder and environment of the demo, and running nnU-Net's commands in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.shipped import doorway_folder

MARKER = ".nnunet_collab_demo"  # a folder with this file may be replaced


def chosen_device(asked: str) -> str:
    """Value for nnU-Net's `-device`; `auto` is a GPU if there is one."""
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def make_room(folder: Path, overwrite: bool) -> None:
    """Create the folder, or empty it if it holds an earlier demo.

    Raises:
        CollabError: If it must not be replaced.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise CollabError(
                f"{folder}: must be empty or hold an earlier demo; it holds other files. Name another folder."
            )
        if not overwrite:
            raise CollabError(f"{folder}: holds an earlier demo. Name another folder, or replace it with --overwrite.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def environment(paths: Mapping[str, Path]) -> dict[str, str]:
    """Variables that nnU-Net's commands need, with the trainers' folder; the user's variables do not change."""
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
    own = {name: str(path) for name, path in paths.items()}
    return {
        **os.environ,
        **own,
        "nnUNet_extTrainer": str(doorway_folder()),
        # Few processes: on a small machine, starting them takes longer than they save.
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        # The C library of Linux maps and unmaps large tensors at every use; steps on the CPU then take 20 % longer.
        "MALLOC_MMAP_THRESHOLD_": str(2**33),
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


class Commands:
    """Runs commands with their output in log files, and reports progress."""

    def __init__(self, logs: Path, environment: dict[str, str], began: float) -> None:
        self.logs = logs
        self.environment = environment
        self.began = began
        logs.mkdir(parents=True, exist_ok=True)

    def step(self, what: str) -> None:
        """Print the next step, and the time so far."""
        print(f"[{time.time() - self.began:4.0f} s] {what}", flush=True)

    def __call__(
        self,
        name: str,
        *command: object,
        variables: Mapping[str, str] | None = None,
        echo: Callable[[str], str | None] | None = None,
    ) -> None:
        """Run a command to its end.

        Args:
            name: Name of its log file.
            command: Program and arguments.
            variables: Additional environment variables.
            echo: Function that returns the text to print for a line of output, or None.

        Raises:
            CollabError: If it fails; the message has the end of its output.
        """
        log = self.logs / f"{name}.log"
        words = [str(word) for word in command]
        print(f"         $ {' '.join(words)}", flush=True)
        # Our own command by its module, because the scripts of this environment may not be on the PATH.
        start = [sys.executable, "-m", "nnunet_collab", *words[1:]] if words[0] == "nnunet_collab" else words
        environment = {**self.environment, **(variables or {})}
        with (
            open(log, "w", encoding="utf-8") as file,
            subprocess.Popen(
                start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
            ) as process,
        ):
            for line in process.stdout or ():
                file.write(line)
                shown = echo(line) if echo else None
                if shown:
                    print(f"         {shown}", flush=True)
        if process.returncode != 0:
            tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
            raise CollabError(f"{words[0]}: failed with status {process.returncode}; the end of {log}:\n{tail}")
