"""Files of a training: its curves, and the time and memory in its log."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_collab.report.sources import Source

_EPOCH = re.compile(r"epoch time: ([\d.]+) s", re.IGNORECASE)
_SPLIT = re.compile(r"This split has (\d+) training and (\d+) validation cases")
_SOFTWARE = {"nnunet_collab": "nnunet_collab_version", "torch": "torch_version", "cuDNN": "cudnn_version"}
_STREAMS = re.compile(r"labeled samples of (\d+) cases(?:, as nnU-Net has them,)? and \d+ unlabeled ones of (\d+)")


@dataclass(frozen=True)
class Fold:
    """One fold of a training. Values that were not logged are None or empty.

    Attributes:
        name: `fold_X`.
        curves: Content of curves.json.
        seconds: Time of each epoch in seconds, with its validation steps.
        labeled: Number of training cases with labels.
        unlabeled: Number of training cases without labels; 0 if the log names only labeled ones.
    validated: Cases validated on.
        device: `cpu`, or the name of the GPU.
        on_gpu: Whether the device is a GPU.
        processes: Number of processes that trained together.
        peak_memory_bytes: Peak memory allocated on the first GPU, in bytes.
        software: Name -> version, as far as the training recorded it.
    """

    name: str
    curves: Mapping[str, Any] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    labeled: int | None = None
    unlabeled: int | None = None
    validated: int | None = None
    device: str = ""
    on_gpu: bool = False
    processes: int = 1
    peak_memory_bytes: int | None = None
    software: Mapping[str, str] = field(default_factory=dict)


def read_folds(source: Source) -> list[Fold]:
    """The folds that made the source's validation, or all finished folds of its training; none if it is not found."""
    if source.run is None:
        return []
    finished = sorted(path.parent.name for path in source.run.glob("fold_*/checkpoint_final.pth"))
    return [_read_fold(source.run / name, source.facts.get("numTraining")) for name in source.folds or finished]


def _read_fold(folder: Path, all_cases: int | None) -> Fold:
    curves, debug = _json(folder / "curves.json"), _json(folder / "debug.json")
    logs = sorted(folder.glob("training_log_*.txt"))
    log = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in logs)
    seconds = curves.get("seconds_per_epoch") or [float(value) for value in _EPOCH.findall(log)]
    streams, split = _STREAMS.findall(log), _SPLIT.findall(log)
    labeled, unlabeled = _counts(streams, split, None if folder.name != "fold_all" else all_cases)
    device = str(debug.get("device", ""))
    return Fold(
        name=folder.name,
        curves=curves if curves.get("epochs") else {},
        seconds=tuple(seconds),
        labeled=labeled,
        unlabeled=unlabeled,
        validated=int(split[-1][1]) if split else None,
        device=str(debug.get("gpu_name") or device),
        on_gpu=device.startswith("cuda"),
        processes=int(curves.get("processes") or 1),
        peak_memory_bytes=curves.get("peak_memory_bytes"),
        software={name: str(debug[key]) for name, key in _SOFTWARE.items() if debug.get(key, "None") != "None"},
    )


def _counts(streams: list[Any], split: list[Any], all_cases: int | None) -> tuple[int | None, int | None]:
    """Numbers of labeled and unlabeled cases from the log; fold all has no line about its split."""
    if streams:
        return int(streams[-1][0]), int(streams[-1][1])
    labeled = int(split[-1][0]) if split else all_cases
    return labeled, None if labeled is None else 0


def _json(path: Path) -> dict[str, Any]:
    """An optional file: if it is missing or damaged, it is not reported."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
