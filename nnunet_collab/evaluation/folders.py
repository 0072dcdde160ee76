"""A folder of predictions against a folder of labels: one row of metrics per case and class.

Files are paired by name and read with nnU-Net's own reader, so NIfTI, nrrd, PNG and every other format of nnU-Net work, with
its axis order (the last axis of the file first) and spacing. All files are read and checked before the first metric is
computed, and all problems are told at once: an evaluation that stops at its last case helps nobody.

Classes come from dataset.json: every label or region but the background. The ignore label counts where the *label* has it;
those voxels are background in both masks and leave the denominator of MAE (`metrics.py` says more).
PNG, BMP and TIFF images of nnU-Net's 2D reader have no spacing: their distances are in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.metrics import case_metrics, in_voxels

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
SPACING_TOLERANCE = 1e-3  # relative; headers round to about 1e-6, resampling errors are larger
_SHOWN = 20  # problems or names listed before "and n more"


@dataclass(frozen=True)
class Plan:
    """What will be compared with what; made by `plan_evaluation`, cheap to send to a worker process.

    Attributes:
        predictions: Folder of predictions.
        labels: Folder of labels.
        dataset_json: The file that names the classes.
        file_ending: Of predictions and labels, e.g. `.nii.gz`.
        reader: nnU-Net's reader class for it.
        classes: Class or region name -> its label values.
        ignore: The ignore label's value, or None.
        cases: Names of the files in both folders, without the ending.
        without_label: Predicted cases that have no label.
        without_prediction: Labelled cases that have no prediction.
        distance_unit: `mm`, or `pixel` for images without spacing, or `voxel` if that was asked for.
    """

    predictions: Path
    labels: Path
    dataset_json: Path
    file_ending: str
    reader: type[Any]
    classes: dict[str, tuple[int, ...]]
    ignore: int | None
    cases: tuple[str, ...]
    without_label: tuple[str, ...]
    without_prediction: tuple[str, ...]
    distance_unit: str


def evaluate_folders(
    predictions: Path,
    labels: Path,
    *,
    dataset_json: Path | None = None,
    processes: int = 2,
    allow_missing: bool = False,
    voxels: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every prediction against the label of the same name.

    In a script of your own, call this under `if __name__ == "__main__":`, because the worker processes are spawned.

    Args:
        predictions: Folder of predicted segmentations.
        labels: Folder of labels.
        dataset_json: Names the classes. If None, it is looked for in `predictions` (nnU-Net puts it there), in the two
            folders above, in `labels`, and in the folder above that.
        processes: Worker processes; 1 works without any.
        allow_missing: Leave out files without a partner, instead of raising.
        voxels: Distances in voxels instead of mm; the columns are then `hd_voxel`, `hd95_voxel` and `asd_voxel`.
        progress: Show progress bars.

    Returns:
        One row per case and class: `case`, `class`, the metrics and flags of `case_metrics`, and `distance_unit`. In its
        `attrs`, `without_label` and `without_prediction` list what was left out.

    Raises:
        CollabError: If a folder or dataset.json is missing or unusable, no prediction has a label, files lack a partner,
            cannot be read, differ in shape or spacing, or hold values that dataset.json does not name.
    """
    plan = plan_evaluation(predictions, labels, dataset_json=dataset_json, voxels=voxels)
    return measure(plan, processes=processes, allow_missing=allow_missing, progress=progress)


def plan_evaluation(predictions: Path, labels: Path, *, dataset_json: Path | None = None, voxels: bool = False) -> Plan:
    """Find the classes and pair the files by name; reads dataset.json and two folder listings, no image.

    Raises:
        CollabError: If a folder or dataset.json is missing or unusable, or no prediction has a label.
    """
    for role, folder in (("predictions", predictions), ("labels", labels)):
        if not folder.is_dir():
            raise CollabError(f"evaluate: the folder of {role} must exist; got {folder}. Check the path.")
    source = _find_dataset_json(predictions, labels, dataset_json)
    ending, classes, ignore, reader = _read_dataset_json(source, labels)

    predicted, labelled = _case_names(predictions, ending), _case_names(labels, ending)
    if not predicted & labelled:
        raise CollabError(
            f"evaluate: a prediction needs a label of the same name, ending in {ending!r} as {source} says; got "
            f"{_listed(predicted)} in {predictions} and {_listed(labelled)} in {labels}. Check the two folders."
        )
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    without_spacing = issubclass(reader, NaturalImage2DIO)
    return Plan(
        predictions=predictions,
        labels=labels,
        dataset_json=source,
        file_ending=ending,
        reader=reader,
        classes=classes,
        ignore=ignore,
        cases=tuple(sorted(predicted & labelled)),
        without_label=tuple(sorted(predicted - labelled)),
        without_prediction=tuple(sorted(labelled - predicted)),
        distance_unit="voxel" if voxels else "pixel" if without_spacing else "mm",
    )


def measure(plan: Plan, *, processes: int = 2, allow_missing: bool = False, progress: bool = True) -> pd.DataFrame:
    """Check every pair of files, then measure every pair; arguments, result and errors as for `evaluate_folders`."""
    import pandas as pd

    if processes < 1:
        raise CollabError(f"evaluate: the number of processes must be at least 1; got {processes}. Set it with --np.")
    problems = [] if allow_missing else _unpaired(plan)
    with _workers(min(processes, len(plan.cases)), progress) as run:
        for found in run("checking", partial(_check_case, plan), plan.cases):
            problems += found
        if problems:
            raise CollabError(
                f"evaluate: predictions and labels must fit each other; found {len(problems)} problem(s), and computed "
                f"nothing.\n  predictions: {plan.predictions}\n  labels:      {plan.labels}\n"
                + "\n".join(f"  - {problem}" for problem in problems[:_SHOWN])
                + (f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
            )
        rows = [row for case in run("measuring", partial(_measure_case, plan), plan.cases) for row in case]
    frame = pd.DataFrame(rows)
    frame.attrs.update(without_label=list(plan.without_label), without_prediction=list(plan.without_prediction))
    return frame.rename(columns=in_voxels) if plan.distance_unit == "voxel" else frame


def _find_dataset_json(predictions: Path, labels: Path, given: Path | None) -> Path:
    """The file that was given, or the first one found around the two folders."""
    folders = (predictions, predictions.parent, predictions.parent.parent, labels, labels.parent)
    candidates = [folder.resolve() / "dataset.json" for folder in folders] if given is None else [given]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CollabError(
        f"evaluate: dataset.json must name the classes; none found at {', '.join(map(str, candidates))}. "
        "Give its path with --dataset-json."
    )


def _read_dataset_json(
    path: Path, labels: Path
) -> tuple[str, dict[str, tuple[int, ...]], int | None, type[Any]]:
    """File ending, foreground classes, ignore value and reader class that a dataset.json states."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ending = str(content["file_ending"])
        values = {
            str(name): tuple(int(v) for v in (value if isinstance(value, list) else [value]))
            for name, value in content["labels"].items()
        }
        # Several readers claim .tif; only trying one on a file tells which can.
        example = next((str(f) for f in sorted(labels.glob(f"*{ending}"))), None) if "tif" in ending.lower() else None
        reader = determine_reader_writer_from_dataset_json(content, example, verbose=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise CollabError(
            f"evaluate: dataset.json must be nnU-Net's, with `labels` (name -> value, or list of values) and a `file_ending` "
            f"that nnU-Net can read; {path} gave {type(error).__name__}: {error}. Mend it, or give another with --dataset-json."
        ) from error
    ignore = values.pop("ignore", (None,))[0]
    classes = {name: of_class for name, of_class in values.items() if any(of_class)}
    if not classes:
        raise CollabError(f"evaluate: dataset.json must name a foreground class; `labels` in {path} has none. Add it there.")
    return ending, classes, ignore, reader


def _case_names(folder: Path, ending: str) -> set[str]:
    """Names of the files with that ending, without it; hidden files are not cases."""
    names = (file.name for file in folder.iterdir() if file.is_file())
    return {name[: -len(ending)] for name in names if name.endswith(ending) and not name.startswith(".")}


def _listed(names: Sequence[str] | set[str]) -> str:
    """How many there are and which, cut short if there are many."""
    some = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({some})" if names else "none"
