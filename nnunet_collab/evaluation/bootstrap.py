r"""Bootstrap over patients and seeds: intervals of means and of paired differences, ranks, and false claims.

**Two sources of chance.** Other test patients, and other trainings. A sample first draws patients with replacement,
each with all its cases; they are the same for all methods, which makes differences paired. On these patients every seed
of a method has a mean. The sample then draws the mean of as many new seeds: from a normal distribution around the mean
of the seeds, with their variance divided by their number (parametric bootstrap; drawing three seeds with replacement
would give ten different means at most, and too small a spread). Every seed predicts the same patients, so the two
sources are crossed, as in A. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007. A method with one
seed shows nothing of the second source: only its patients are drawn.

**Paired seeds.** Where two methods have the same seeds, they start from the same weights and see the same labeled
batches. Then the mean of new seeds is drawn for both together, from their differences seed by seed. This is right, if
less powerful, where equal seeds mean nothing. Otherwise each method's seeds are drawn on their own.

**Few of both.** Resampling :math:`n` patients makes the spread too small by :math:`\sqrt{(n - 1) / n}`, and percentiles
ignore that it is only estimated. Two corrections:

- Percentiles are moved outward as if for Student's t with :math:`n` patients ("expanded percentile"): the lower one is
  :math:`\Phi(-\sqrt{n / (n - 1)}\; t_{1 - \alpha/2,\, n - 1})`. Source: T. Hesterberg, What Teachers Should Know About
  the Bootstrap, The American Statistician 69(4), 2015, section 5.
- Where seeds matter, fewer degrees of freedom than :math:`n - 1` are left: samples are moved away from their mean by
  the factor :math:`t_{\nu} / t_{n - 1}`, with :math:`\nu` from the variances :math:`V` of the mean due to patients and
  to seeds, :math:`\nu = (\sum V)^2 / \sum (V^2 / \nu_V)`. Source: F. Satterthwaite, Biometrics Bulletin 2(6), 1946.

**False claims.** The chance that "better than the baseline" is false: the share of samples in which the paired
difference is 0 or of the other sign, moved from percentiles to Student's t as above, so that it is below 0.025 exactly
where the 95 % interval lies on the better side of 0.

**Ranks.** The share of samples in which a method is first. Methods that are equal in a sample share it. Source:
M. Wiesenfarth et al., Methods and open-source toolkit for analyzing and visualizing challenge results, Scientific
Reports 11, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunet_collab.evaluation.statistics import nanmean, weighted_means

RESAMPLES = 5000
LEVEL = 0.95
Floats = NDArray[np.float64]


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


class Bootstrap(NamedTuple):
    """The samples of a mean or a difference, with what the corrections for few patients and seeds need.

    Attributes:
        mean: Of all patients and seeds.
        samples: `(R,)`, moved away from the mean where seeds leave few degrees of freedom; empty with fewer than two
            units.
        units: Number of patients (or cases) with a value.
    """

    mean: float
    samples: Floats
    units: int

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        if not len(self.samples):
            return Interval(self.mean, np.nan, np.nan)
        tail = stats.norm.cdf(-_expansion(self.units) * stats.t.ppf((1 + LEVEL) / 2, self.units - 1))
        low, high = np.nanquantile(self.samples, [tail, 1 - tail])
        return Interval(self.mean, float(low), float(high))

    def chance_of_false_claim(self, *, higher_is_better: bool) -> float:
        """The chance, in (0, 1], that a difference of this mean is no improvement; NaN without an interval."""
        known = self.samples[np.isfinite(self.samples)]
        if not len(known):
            return float("nan")
        wrong = known <= 0 if higher_is_better else known >= 0
        share = (np.count_nonzero(wrong) + 1) / (len(known) + 1)
        return float(stats.t.cdf(stats.norm.ppf(share) / _expansion(self.units), self.units - 1))


def bootstrap_of_mean(values: NDArray[Any], units: Sequence[str], *, seed: int = 0) -> Bootstrap:
    """Mean over cases, then over classes, then over seeds.

    Args:
        values: `(cases, seeds, classes)`. NaN is left out of every mean.
        units: The patient of each case, or the case itself.
        seed: Of the random draws.

    Raises:
        ValueError: If the values have other axes or there is not one unit per case.
    """
    values = _checked("bootstrap_of_mean", values, units)
    known = np.isfinite(values).any(axis=(1, 2))
    counts, n = _patients(units, np.asarray(known), seed)
    of_seeds = _with_original(values[known], counts)  # (1 + R, seeds): first of all patients, then of the drawn ones
    center = nanmean(of_seeds, axis=1)
    return _combined(center, [(of_seeds, seed + 1)], n)


def bootstrap_of_difference(
    method: NDArray[Any], baseline: NDArray[Any], units: Sequence[str], *, paired_seeds: bool = False, seed: int = 0
) -> Bootstrap:
    """Paired difference, method minus baseline: over seeds first, then over classes, then over cases.

    A case counts with the classes that have a value in both methods.

    Args:
        method: `(cases, seeds, classes)`.
        baseline: `(cases, seeds, classes)`; the number of seeds may differ if they are not paired.
        units: The patient of each case, or the case itself.
        paired_seeds: Whether the seeds of both are the same, in the same order.
        seed: Of the random draws.

    Raises:
        ValueError: If the values have other axes or there is not one unit per case.
    """
    both = [_checked("bootstrap_of_difference", values, units) for values in (method, baseline)]
    means = [nanmean(values, axis=1) for values in both]
    difference = nanmean(means[0] - means[1], axis=1)
    known = np.isfinite(difference)
    counts, n = _patients(units, known, seed)
    center = _with_original(difference[known, None, None], counts)[:, 0]
    shared = np.isfinite(means[0] - means[1])[:, None, :]
    if paired_seeds:
        both = [both[0] - both[1]]
        means = [nanmean(both[0], axis=1)]
    seeds = []
    for number, (values, mean) in enumerate(zip(both, means, strict=True)):
        effects = nanmean(np.where(shared, values - mean[:, None, :], np.nan), axis=2)  # (cases, seeds)
        of_seeds = _with_original(effects[known, :, None], counts)
        seeds.append((-of_seeds if number else of_seeds, seed + 1 + number))
    return _combined(center, seeds, n)


def shares_of_first_rank(
    methods: Sequence[NDArray[Any]],
    units: Sequence[str],
    *,
    higher_is_better: bool,
    paired_seeds: bool = False,
    seed: int = 0,
) -> list[float]:
    """Share of the samples in which each method is first, by the mean of `bootstrap_of_mean`; they sum to 1.

    Args:
        methods: One `(cases, seeds, classes)` per method, of the same cases.
        units: The patient of each case, or the case itself.
        higher_is_better: Whether the largest mean is first, or the smallest.
        paired_seeds: Whether the seeds of all are the same, in the same order.
        seed: Of the random draws.

    Returns:
        One share per method; all NaN with fewer than two units or without any value.
    """
    checked = [_checked("shares_of_first_rank", values, units) for values in methods]
    known = np.any([np.isfinite(values).any(axis=(1, 2)) for values in checked], axis=0)
    counts, n = _patients(units, known, seed)
    if n < 2:
        return [float("nan")] * len(checked)
    samples = []
    for number, values in enumerate(checked):
        of_seeds = _with_original(values[known], counts)[1:]
        samples.append(nanmean(of_seeds, axis=1) + _seed_effects(of_seeds, seed + 1 + (0 if paired_seeds else number)))
    scores = np.where(np.isfinite(samples), samples, -np.inf if higher_is_better else np.inf)
    best = scores.max(axis=0) if higher_is_better else scores.min(axis=0)
    first = (scores == best) & np.isfinite(best)
    shared = first / np.maximum(first.sum(axis=0), 1)
    return [float(share) for share in shared.sum(axis=1) / max(np.isfinite(best).sum(), 1)]


def _checked(where: str, values: NDArray[Any], units: Sequence[str]) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or len(values) != len(units):
        raise ValueError(
            f"{where}: values must be (cases, seeds, classes), with one unit per case; got {values.shape} values and "
            f"{len(units)} units"
        )
    return values


def _expansion(units: int) -> float:
    return float(np.sqrt(units / (units - 1)))


def _patients(units: Sequence[str], known: NDArray[np.bool_], seed: int) -> tuple[Floats, int]:
    """How often each case with a value is drawn, `(R, cases)`, and the number of units; no draw for fewer than two."""
    names, of_case = np.unique(np.asarray(units)[known], return_inverse=True)
    n = len(names)
    if n < 2:
        return np.zeros((0, int(known.sum()))), n
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return counts[:, of_case].astype(np.float64), n


def _with_original(values: Floats, counts: Floats) -> Floats:
    """`(1 + R, seeds)` means over cases and classes: of all cases, then of the drawn ones."""
    weights = np.concatenate([np.ones((1, len(values))), counts])
    return nanmean(weighted_means(weights, values), axis=2)


def _seed_effects(of_seeds: Floats, seed: int) -> Floats:
    """`(R,)`: drawn deviation of the mean of new seeds, for the `(R, seeds)` means of the seeds in each sample.

    A normal number per seed weighs its deviation, which gives the variance of the mean; methods with the same `seed`
    have the same numbers, so that what their seeds have in common cancels in a difference.
    """
    drawn = np.random.default_rng(seed).standard_normal(of_seeds.shape)
    count = np.isfinite(of_seeds).sum(axis=1)
    total = np.nansum(drawn * (of_seeds - nanmean(of_seeds, axis=1)[:, None]), axis=1)
    return np.asarray(
        np.divide(total, np.sqrt((count - 1.0).clip(0) * count), out=np.zeros(len(count)), where=count > 1)
    )


def _variance_of_mean(of_seeds: Floats) -> Floats:
    """`(R,)`: variance between the seeds divided by their number; 0 for a single seed."""
    count = np.isfinite(of_seeds).sum(axis=1)
    squares = np.nansum((of_seeds - nanmean(of_seeds, axis=1)[:, None]) ** 2, axis=1)
    return np.asarray(np.divide(squares, (count - 1) * count, out=np.zeros(len(count)), where=count > 1))


def _combined(center: Floats, methods: Sequence[tuple[Floats, int]], n: int) -> Bootstrap:
    """Patients and seeds together.

    Args:
        center: `(1 + R,)`: the mean or difference of all patients, then in each sample.
        methods: Per method, what its seeds have: `(1 + R, seeds)`; and the seed of its draws.
        n: Number of units.
    """
    mean = float(center[0])
    if n < 2:
        return Bootstrap(mean, np.zeros(0), n)
    samples = center[1:] + sum(_seed_effects(of_seeds[1:], seed) for of_seeds, seed in methods)
    parts = [(float(np.nanvar(center[1:])) * n / (n - 1), n - 1)]
    for of_seeds, _ in methods:
        known = int(np.isfinite(of_seeds[0]).sum())
        parts += [(float(_variance_of_mean(of_seeds[:1])[0]), known - 1)] if known > 1 else []
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return Bootstrap(mean, samples, n)
    freedom = total**2 / sum(variance**2 / free for variance, free in parts)
    level = (1 + LEVEL) / 2
    return Bootstrap(mean, mean + (samples - mean) * stats.t.ppf(level, freedom) / stats.t.ppf(level, n - 1), n)
