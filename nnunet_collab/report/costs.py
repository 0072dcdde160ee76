"""Data, time and memory of the trainings, from their logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.tables import EMPTY, Cell, Table, known, number

if TYPE_CHECKING:
    from nnunet_collab.report.grouping import Method, Result
    from nnunet_collab.report.runs import Fold


def training_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per fold of each training; NaN for values that were not logged.

    `seconds_per_iteration` is the median over the epochs of an epoch's time, validation steps included, divided by its
    training iterations. `hours` is the time of all epochs; `gpu_hours` is `hours` times the number of GPUs, NaN without
    a GPU.
    """
    rows = [
        _training_row(comparison, method, result, fold)
        for method in comparison.methods
        for result in method.results
        for fold in result.folds
    ]
    return pd.DataFrame(rows)


def _training_row(comparison: Comparison, method: Method, result: Result, fold: Fold) -> dict[str, Any]:
    settings = result.source.record.get("settings", {})
    iterations = settings.get("iterations_per_epoch")
    hours = sum(fold.seconds) / 3600 if fold.seconds else np.nan
    return {
        "dataset": comparison.dataset,
        "method": method.label,
        "training": result.source.run.name if result.source.run else "",
        "fold": fold.name.removeprefix("fold_"),
        "seed": _or_nan(result.seed),
        "labeled_cases": _or_nan(fold.labeled),
        "unlabeled_cases": _or_nan(fold.unlabeled),
        "epochs": len(fold.seconds) or _or_nan(settings.get("epochs")),
        "iterations_per_epoch": _or_nan(iterations),
        "seconds_per_iteration": np.median(fold.seconds) / iterations if fold.seconds and iterations else np.nan,
        "hours": hours,
        "gpu_hours": hours * fold.processes if fold.on_gpu else np.nan,
        "processes": fold.processes,
        "peak_memory_gb": np.nan if fold.peak_memory_bytes is None else fold.peak_memory_bytes / 1e9,
        "device": fold.device or EMPTY,
    }


def training_table(comparison: Comparison, frame: pd.DataFrame) -> Table:
    """One line per training and fold."""
    columns = {
        "seed": ("seed", 0),
        "fold": ("fold", None),
        "labeled_cases": ("labeled cases", 0),
        "unlabeled_cases": ("unlabeled cases", 0),
        "epochs": ("epochs", 0),
        "iterations_per_epoch": ("iterations per epoch", 0),
        "seconds_per_iteration": ("seconds per iteration", 3),
        "hours": ("hours", 2),
        "gpu_hours": ("GPU hours", 2),
        "peak_memory_gb": ("peak GPU memory, GB", 2),
        "device": ("device", None),
    }
    rows = [
        [
            Cell(row["method"]),
            *(Cell(str(row[c]) if digits is None else number(row[c], digits)) for c, (_, digits) in columns.items()),
        ]
        for row in frame.to_dict("records")
    ]
    head = ["method", *(title for title, _ in columns.values())]
    note = (
        "Hours are the sum over all epochs with their validation steps, GPU hours are hours times GPUs, and the peak "
        "is that of the first GPU."
    )
    return Table("training", "Trainings", head, rows, {"dataset": comparison.dataset}, note)


def _or_nan(value: float | None) -> float:
    return value if known(value) and value is not None else np.nan
