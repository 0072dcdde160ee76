r"""Means and paired tests; the sampling unit is the patient, not the case. Intervals are in `bootstrap.py`.

Cases of one patient (two phases, two lesions) are similar, so they are less evidence than cases of two patients. Tests
and intervals therefore take a unit per case: its patient if that is known, else the case itself.

**Test.** Wilcoxon's signed-rank test, two-sided, of the differences between two methods on the same cases, averaged per
unit. With n units no p below 2 / 2^n is possible: 0.0625 for five patients.

**Several comparisons.** Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats


class PairedTest(NamedTuple):
    """A two-sided Wilcoxon signed-rank test.

    Attributes:
        p: P-value in (0, 1]; NaN if no unit has a value.
        units: Number of units in the test, including those with a difference of 0.
    """

    p: float
    units: int


def mean_over_cases(values: NDArray[Any]) -> float:
    """Mean of `(cases, *K)` values over cases, then over the axes `K` from the last to the first; NaN is left out."""
    values = np.asarray(values, dtype=np.float64)
    means = weighted_means(np.ones((1, len(values))), values)
    while means.ndim > 1:
        means = nanmean(means, axis=means.ndim - 1)
    return float(means[0])


def weighted_means(weights: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """`(R, *K)` means of `(cases, *K)` values over the cases, for `(R, cases)` weights; NaN if there is no value."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    known = np.isfinite(flat)
    total, count = weights @ np.where(known, flat, 0.0), weights @ known.astype(np.float64)
    means = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.asarray(means).reshape(len(weights), *values.shape[1:])


def nanmean(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Mean without NaN along an axis; NaN, without a warning, if there is no value."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def paired_test(differences: NDArray[Any], units: Sequence[str]) -> PairedTest:
    """Wilcoxon signed-rank test that differences are symmetric around 0.

    Args:
        differences: `(cases,)`, method minus baseline; NaN where either has no value.
        units: One unit per case.

    Raises:
        ValueError: If there is not one unit per case.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if differences.shape != (len(units),):
        raise ValueError(
            f"paired_test: there must be one unit per case; got {differences.shape} values and {len(units)} units"
        )
    known = np.isfinite(differences)
    names, of_case = np.unique(np.asarray(units)[known], return_inverse=True)
    if len(names) == 0:
        return PairedTest(np.nan, 0)
    per_unit = np.bincount(of_case, weights=differences[known]) / np.bincount(of_case)
    if not per_unit.any():
        return PairedTest(1.0, len(names))  # no difference anywhere: nothing to rank
    # Values that are equal up to rounding are ties, whatever the order of the summation.
    return PairedTest(float(stats.wilcoxon(per_unit.round(12)).pvalue), len(names))


def smallest_p(units: int) -> float:
    """The smallest p of `paired_test` for this number of units (all differences of one sign): 0.0625 for 5."""
    return min(1.0, 2.0 / 2.0**units)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's method; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return [float(value) for value in corrected]
