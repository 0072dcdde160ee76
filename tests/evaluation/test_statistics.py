"""Intervals cover what they promise on simulated patients; tests are scipy's; Holm's correction by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_collab.evaluation import statistics
from nnunet_collab.evaluation.metrics import ALL_CLASSES, summarize
from nnunet_collab.evaluation.statistics import bootstrap_interval, holm, paired_test


def coverage(make, units, *, rounds=400):
    """Share of simulated test sets whose interval holds the true mean, 0."""
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(make(rng), units, seed=round_) for round_ in range(rounds)]
    return np.mean([i.low <= 0 <= i.high for i in intervals])


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 600)


@pytest.mark.parametrize("n", [6, 40])
def test_95_of_100_intervals_hold_the_truth_also_with_few_cases(few_resamples, n):
    # Plain percentiles would reach 0.86 with six cases.
    assert coverage(lambda rng: rng.normal(size=n), [str(i) for i in range(n)]) == pytest.approx(0.95, abs=0.03)


def test_cases_of_one_patient_count_as_one_draw(few_resamples):
    patients = [str(i // 4) for i in range(48)]

    def make(rng):  # four cases each, nearly the same
        return np.repeat(rng.normal(size=12), 4) + 0.1 * rng.normal(size=48)

    assert coverage(make, patients) == pytest.approx(0.95, abs=0.03)
    assert coverage(make, [str(i) for i in range(48)]) < 0.75  # as if the cases were independent


def test_the_interval_is_scipys_between_the_expanded_percentiles():
    values = np.random.default_rng(0).gamma(2.0, size=25)
    got = bootstrap_interval(values, [str(i) for i in range(25)], seed=3)
    level = 1 - 2 * stats.norm.cdf(-math.sqrt(25 / 24) * stats.t.ppf(0.975, 24))
    want = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", confidence_level=level, rng=1)
    assert got.mean == pytest.approx(values.mean(), rel=1e-12)
    assert (got.low, got.high) == pytest.approx(tuple(want.confidence_interval), abs=0.03)
    assert got == bootstrap_interval(values, [str(i) for i in range(25)], seed=3)
    assert got != bootstrap_interval(values, [str(i) for i in range(25)], seed=4)


def test_the_mean_is_that_of_the_evaluation_and_nan_is_left_out():
    rng = np.random.default_rng(2)
    dice = rng.random((7, 3))
    dice[1, 0] = dice[4, 1] = np.nan
    dice[:, 2] = np.nan  # a class without any value
    rows = [
        {"case": str(case), "class": str(c), "dice": dice[case, c], "missed": 0, "false_positive": 0, "both_empty": 0}
        for case, c in itertools.product(range(7), range(3))
    ]
    summary = summarize(pd.DataFrame(rows)).set_index(["class", "statistic"])["dice"]
    cases = [str(case) for case in range(7)]
    assert bootstrap_interval(dice, cases).mean == pytest.approx(summary[(ALL_CLASSES, "mean")], rel=1e-12)
    assert bootstrap_interval(dice[:, 0], cases).mean == pytest.approx(summary[("0", "mean")], rel=1e-12)
    seeds = np.stack([dice, dice + 1], axis=1)
    assert bootstrap_interval(seeds, cases).mean == pytest.approx(summary[(ALL_CLASSES, "mean")] + 0.5, rel=1e-12)


def test_too_little_for_an_interval():
    assert all(math.isnan(x) for x in bootstrap_interval(np.full(3, np.nan), list("abc")))
    one = bootstrap_interval(np.array([0.5, 0.7, np.nan]), ["p", "p", "q"])
    assert one.mean == pytest.approx(0.6)
    assert (math.isnan(one.low), math.isnan(one.high)) == (True, True)
    same = bootstrap_interval(np.full(4, 0.25), list("abcd"))
    assert same == (0.25, 0.25, 0.25)


def test_the_paired_test_is_scipys_on_the_means_of_the_patients():
    rng = np.random.default_rng(5)
    differences = rng.normal(0.3, size=18)
    assert paired_test(differences, [str(i) for i in range(18)]) == (
        pytest.approx(stats.wilcoxon(differences).pvalue),
        18,
    )
    patients = [f"p{i % 9}" for i in range(18)]
    means = [(differences[i] + differences[i + 9]) / 2 for i in range(9)]
    assert paired_test(differences, patients) == (pytest.approx(stats.wilcoxon(means).pvalue), 9)
    with_gaps = np.append(differences, [np.nan, np.nan])
    assert paired_test(with_gaps, [*patients, "p0", "p99"]) == paired_test(differences, patients)


def test_the_smallest_possible_p_no_difference_and_no_value():
    assert paired_test(np.arange(1.0, 6.0), list("abcde")) == (pytest.approx(2 / 2**5), 5)
    assert paired_test(np.zeros(4), list("abcd")) == (1.0, 4)
    nothing = paired_test(np.full(2, np.nan), ["a", "b"])
    assert (math.isnan(nothing.p), nothing.units) == (True, 0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    got = holm([0.02, math.nan, 0.04])
    assert got[::2] == pytest.approx([0.04, 0.04])
    assert math.isnan(got[1])
    assert holm([]) == []


def test_one_unit_per_case():
    with pytest.raises(
        ValueError, match=r"bootstrap_interval: there must be one unit per case; got \(3,\) values and 2 units"
    ):
        bootstrap_interval(np.zeros(3), ["a", "b"])
    with pytest.raises(
        ValueError, match=r"paired_test: there must be one unit per case; got \(3,\) values and 2 units"
    ):
        paired_test(np.zeros(3), ["a", "b"])
