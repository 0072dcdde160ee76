"""The numbers of the report as data frames; each becomes a CSV file with every digit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_collab.evaluation.bootstrap import bootstrap_of_difference, bootstrap_of_mean, shares_of_first_rank
from nnunet_collab.evaluation.metrics import ALL_CLASSES, FLAGS
from nnunet_collab.evaluation.statistics import holm, mean_over_cases, nanmean, paired_test
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.grouping import Method
from nnunet_collab.report.measures import higher_is_better, metrics_of, possible


def scores_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per class and method; the mean of the classes comes first.

    Per metric: the mean over cases, averaged over the seeds; its 95 % interval over patients and seeds (`_low`,
    `_high`); its standard deviation over the seeds (`_std_seeds`) and the number of cases with a value (`_cases`, the
    minimum over seeds). The flags of empty masks are sums over cases and seeds.
    """
    rows = []
    for index, name in classes_and_mean(comparison):
        for method in comparison.methods:
            row: dict[str, Any] = {"dataset": comparison.dataset, "class": name, "method": method.label}
            row["seeds"] = len(method.results)
            for metric in metrics_of(comparison):
                values = comparison.over_seeds(method, metric)[:, :, index]
                interval = bootstrap_of_mean(values, comparison.units).interval
                per_seed = [mean_over_cases(values[:, i]) for i in range(values.shape[1])]
                # The normal distribution of few seeds that differ much reaches values that cannot be.
                low, high = np.clip([interval.low, interval.high], *possible(metric))
                row |= {metric: interval.mean, f"{metric}_low": low, f"{metric}_high": high}
                row[f"{metric}_std_seeds"] = np.std(per_seed, ddof=1) if len(per_seed) > 1 else np.nan
                row[f"{metric}_cases"] = int(np.isfinite(values).any(axis=2).sum(axis=0).min())
            for flag in FLAGS:
                row[flag] = int(np.nansum(comparison.over_seeds(method, flag)[:, :, index]))
            rows.append(row)
    return pd.DataFrame(rows)


def comparisons_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per metric, class and method except the baseline: mean difference, its interval, p and Holm's p.

    The interval is over patients and seeds; `false_claim` is the chance that "better than the baseline" is false; see
    `evaluation.bootstrap`. Of the relative volume error, sizes are compared, without their sign.

    For each metric, two groups of tests are corrected: those of all methods on the mean of the classes, and those of
    all methods on all single classes. The mean of the classes uses the classes of a case with a value in both methods.
    """
    baseline = comparison.baseline
    rows: list[dict[str, Any]] = []
    if baseline is None:
        return pd.DataFrame(rows)
    for metric in metrics_of(comparison):
        for index, name in classes_and_mean(comparison):
            for method in comparison.methods[1:]:
                values, base = (to_compare(comparison, m, metric)[:, :, index] for m in (method, baseline))
                found = bootstrap_of_difference(
                    values, base, comparison.units, paired_seeds=same_seeds([method, baseline])
                )
                per_case = nanmean(nanmean(values, axis=1) - nanmean(base, axis=1), axis=1)
                interval, test = found.interval, paired_test(per_case, comparison.units)
                least, largest = possible(metric)
                low, high = np.clip([interval.low, interval.high], least - largest, largest - least)
                rows.append(
                    {
                        "dataset": comparison.dataset, "metric": metric, "class": name, "method": method.label,
                        "baseline": baseline.label, "difference": interval.mean,
                        "difference_low": low, "difference_high": high, "units": test.units,
                        "false_claim": found.chance_of_false_claim(higher_is_better=higher_is_better(metric)),
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


def ranks_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per metric, class and method: its rank by the mean, and how often it is first in the bootstrap.

    Methods whose means are equal share the better rank.
    """
    rows: list[dict[str, Any]] = []
    for metric in metrics_of(comparison) if len(comparison.methods) > 1 else []:
        values = [to_compare(comparison, method, metric) for method in comparison.methods]
        sign = -1 if higher_is_better(metric) else 1
        for index, name in classes_and_mean(comparison):
            of_class = [v[:, :, index] for v in values]
            means = [sign * mean_over_cases(v) for v in of_class]
            shares = shares_of_first_rank(
                of_class,
                comparison.units,
                higher_is_better=higher_is_better(metric),
                paired_seeds=same_seeds(comparison.methods),
            )
            for method, mean, share in zip(comparison.methods, means, shares, strict=True):
                rank = 1 + sum(other < mean for other in means) if np.isfinite(mean) else np.nan
                rows.append(
                    {
                        "dataset": comparison.dataset, "metric": metric, "class": name, "method": method.label,
                        "rank": rank, "share_first": share,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def same_seeds(methods: Sequence[Method]) -> bool:
    """Whether all methods have the same known seeds; then these are in the same order, too."""
    seeds = [[result.seed for result in method.results] for method in methods]
    return None not in seeds[0] and all(other == seeds[0] for other in seeds)


def to_compare(comparison: Comparison, method: Method, metric: str) -> NDArray[np.float64]:
    """`(cases, seeds, classes)` values that are better the larger, or the smaller, they are: errors without a sign."""
    values = comparison.over_seeds(method, metric)
    return np.abs(values) if metric == "rve" else values


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
