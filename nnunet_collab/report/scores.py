"""The numbers of the report as data frames; each becomes a CSV file with every digit."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from nnunet_collab.evaluation.metrics import ALL_CLASSES, FLAGS
from nnunet_collab.evaluation.statistics import bootstrap_interval, holm, mean_over_cases, paired_test
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.grouping import Method


def metrics_of(comparison: Comparison) -> list[str]:
    """Columns of the metrics on the page, in order; MAE is for 2D images. Metrics without values are left out."""
    metrics = ["dice", "jaccard", "hd95_mm", "hd95_voxel", "asd_mm", "asd_voxel"]
    if comparison.distance_unit == "pixel":
        metrics = ["dice", "jaccard", "hd95_voxel", "asd_voxel", "mae"]
    columns = {column for method in comparison.methods for result in method.results for column in result.frame}
    return [metric for metric in metrics if metric in columns]


def distance_of(comparison: Comparison) -> str:
    """The HD95 that represents the distances: in mm, or in pixels if there is no spacing."""
    return "hd95_mm" if comparison.distance_unit == "mm" else "hd95_voxel"


def scores_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per class and method; the mean of the classes comes first.

    Per metric: the mean over cases, averaged over the seeds; its 95 % interval (`_low`, `_high`); its standard
    deviation over the seeds (`_std_seeds`) and the number of cases with a value (`_cases`, the minimum over seeds).
    The flags of empty masks are sums over cases and seeds.
    """
    rows = []
    for index, name in classes_and_mean(comparison):
        for method in comparison.methods:
            row: dict[str, Any] = {"dataset": comparison.dataset, "class": name, "method": method.label}
            row["seeds"] = len(method.results)
            for metric in metrics_of(comparison):
                values = comparison.over_seeds(method, metric)[:, :, index]
                interval = bootstrap_interval(values, comparison.units)
                per_seed = [mean_over_cases(values[:, i]) for i in range(values.shape[1])]
                row |= {metric: interval.mean, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
                row[f"{metric}_std_seeds"] = np.std(per_seed, ddof=1) if len(per_seed) > 1 else np.nan
                row[f"{metric}_cases"] = int(np.isfinite(values).any(axis=2).sum(axis=0).min())
            for flag in FLAGS:
                row[flag] = int(np.nansum(comparison.over_seeds(method, flag)[:, :, index]))
            rows.append(row)
    return pd.DataFrame(rows)


def comparisons_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per metric, class and method except the baseline: mean difference, its interval, p and Holm's p.

    For each metric, two groups of tests are corrected: those of all methods on the mean of the classes, and those of
    all methods on all single classes. The mean of the classes uses the classes of a case with a value in both methods.
    """
    baseline = comparison.baseline
    rows: list[dict[str, Any]] = []
    for metric in metrics_of(comparison) if baseline else []:
        for index, name in classes_and_mean(comparison):
            for method in comparison.methods[1:]:
                difference = mean_over_seeds(comparison, method, metric) - mean_over_seeds(comparison, baseline, metric)
                per_case = nanmean(difference[:, index], axis=1)
                interval, test = bootstrap_interval(per_case, comparison.units), paired_test(per_case, comparison.units)
                rows.append(
                    {
                        "dataset": comparison.dataset, "metric": metric, "class": name, "method": method.label,
                        "baseline": baseline.label if baseline else "", "difference": interval.mean,
                        "difference_low": interval.low, "difference_high": interval.high, "units": test.units,
                        "p": test.p,
                    }
                )  # fmt: skip
    families: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault((row["metric"], row["class"] == ALL_CLASSES), []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
    return pd.DataFrame(rows)


def cases_frame(comparison: Comparison) -> pd.DataFrame:
    """Every case and class of every result."""
    frames = [
        result.frame.assign(
            dataset=comparison.dataset, method=method.label, result=result.source.name, seed=result.seed
        )
        for method in comparison.methods
        for result in method.results
    ]
    table = pd.concat(frames, ignore_index=True)
    first = ["dataset", "method", "result", "seed", "case", "class"]
    return table[[*first, *table.columns.drop(first)]]


def published_frame(dataset: str) -> pd.DataFrame:
    """Numbers of papers on this dataset, as printed; no row for a dataset that no paper uses."""
    content = json.loads(files("nnunet_collab.report").joinpath("published.json").read_text(encoding="utf-8"))
    name = re.sub(r"[^a-z]", "", re.sub(r"^Dataset\d+_", "", dataset).lower())
    known = [
        key
        for key, aliases in content["datasets"].items()
        if any(name == alias or (len(alias) > 3 and name.startswith(alias)) for alias in aliases)
    ]
    return pd.DataFrame([row for row in content["rows"] if row["dataset"] in known])


def classes_and_mean(comparison: Comparison) -> list[tuple[list[int], str]]:
    """Columns of the values and the name: of all classes together, then of each class."""
    everything = (list(range(len(comparison.classes))), ALL_CLASSES)
    return [everything, *(([i], name) for i, name in enumerate(comparison.classes))]


def mean_over_seeds(comparison: Comparison, method: Method | None, metric: str) -> Any:
    """Values `(cases, classes)`; NaN without a method."""
    return nanmean(comparison.over_seeds(method, metric), axis=1) if method else np.nan


def nanmean(values: Any, axis: int) -> Any:
    """Mean without NaN; NaN, without a warning, if there is no value."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
