r"""Intervals of means and paired tests; the sampling unit is the patient, not the case.

Cases of one patient (two phases, two lesions) are similar, so they are less evidence than cases of two patients. Both
functions below therefore take a unit per case: its patient if that is known, else the case itself.

**Interval.** Units are drawn with replacement, each with all its cases, and the mean is computed again; the interval
lies between two percentiles of the means. With few units plain percentiles give intervals that are too narrow, so they
are moved outward as if for Student's t with :math:`n` units ("expanded percentile"): the lower one is

.. math:: \Phi\left(-\sqrt{n / (n - 1)}\; t_{1 - \alpha/2,\, n - 1}\right)

Source: T. Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69(4), 2015, section 5.

**Test.** Wilcoxon's signed-rank test, two-sided, of the differences between two methods on the same cases, averaged per
unit. With n units no p below 2 / 2^n is possible: 0.0625 for five patients.

**Several comparisons.** Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 5000
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: Mean of the values; NaN without any.
        low: Lower end; NaN if fewer than two units have a value.
        high: Upper end; NaN if fewer than two units have a value.
    """

    mean: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """A two-sided Wilcoxon signed-rank test.

    Attributes:
        p: P-value in (0, 1]; NaN if no unit has a value.
        units: Number of units in the test, including those with a difference of 0.
    """

    p: float
    units: int


def bootstrap_interval(values: NDArray[Any], units: Sequence[str], *, seed: int = 0) -> Interval:
    """Mean and confidence interval (95 %) over cases.

    Args:
        values: `(cases, *K)`; the mean is taken over the cases first and then over the axes `K` from the last to the
            first, such as `(cases, seeds, classes)`: over classes, then over seeds. NaN is left out of every mean.
        units: One unit per case.
        seed: Seed of the random draws.

    Raises:
        ValueError: If there is not one unit per case.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) != len(units):
        raise ValueError(
            f"bootstrap_interval: there must be one unit per case; got {values.shape} values and {len(units)} units"
        )
    mean = mean_over_cases(values)
    known, shape = np.isfinite(values), values.shape[1:]
    flat, flat_known = np.where(known, values, 0.0).reshape(len(units), -1), known.reshape(len(units), -1).astype(float)
    has_value = flat_known.any(axis=1)
    names, of_case = np.unique(np.asarray(units)[has_value], return_inverse=True)
    n = len(names)
    if n < 2:
        return Interval(mean, np.nan, np.nan)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means = _means(counts[:, of_case], flat[has_value], flat_known[has_value], shape)
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1))
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def mean_over_cases(values: NDArray[Any]) -> float:
    """The mean of `(cases, *K)` values, as in `bootstrap_interval`."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values).reshape(len(values), -1)
    flat = np.where(known, values.reshape(len(values), -1), 0.0)
    return float(_means(np.ones((1, len(values))), flat, known.astype(float), values.shape[1:])[0])


def _means(
    weights: NDArray[Any], values: NDArray[Any], known: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """`(R,)` means of `(cases, K)` values, for `(R, cases)` weights; NaN if there is no value."""
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class without any value
        means: NDArray[np.float64] = ((weights @ values) / (weights @ known)).reshape(len(weights), *shape)
        while means.ndim > 1:
            means = np.nanmean(means, axis=-1)
    return means


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
