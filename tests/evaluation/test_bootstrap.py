"""Intervals cover what they promise on simulated patients and seeds; samples are those of loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_collab.evaluation import bootstrap
from nnunet_collab.evaluation.bootstrap import (
    bootstrap_of_difference,
    bootstrap_of_mean,
    shares_of_first_rank,
)
from nnunet_collab.evaluation.metrics import ALL_CLASSES, summarize


def interval(values, units, seed=0):
    """Of `(cases,)` or `(cases, classes)` values of one seed, or `(cases, seeds, classes)`."""
    values = np.asarray(values, dtype=float)
    if values.ndim < 3:
        values = values.reshape(len(values), 1, -1)
    return bootstrap_of_mean(values, units, seed=seed).interval


def named(n):
    return [str(i) for i in range(n)]


def coverage(make, units, *, rounds=400):
    """Share of simulated test sets whose interval holds the true mean, 0."""
    rng = np.random.default_rng(1)
    intervals = [interval(make(rng), units, seed=round_) for round_ in range(rounds)]
    return np.mean([i.low <= 0 <= i.high for i in intervals])


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 600)


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 40])
def test_95_of_100_intervals_hold_the_truth_also_with_few_cases(few_resamples, n):
    # Plain percentiles would reach 0.86 with six cases.
    assert coverage(lambda rng: rng.normal(size=n), named(n)) == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
def test_cases_of_one_patient_count_as_one_draw(few_resamples):
    patients = [str(i // 4) for i in range(48)]

    def make(rng):  # four cases each, nearly the same
        return np.repeat(rng.normal(size=12), 4) + 0.1 * rng.normal(size=48)

    assert coverage(make, patients) == pytest.approx(0.95, abs=0.03)
    assert coverage(make, named(48)) < 0.75  # as if the cases were independent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "spread", "least"),
    [(3, 0.0, 0.92), (3, 0.4, 0.92), (3, 3.0, 0.92), (5, 1.0, 0.92), (10, 0.4, 0.92)],
)
def test_seeds_are_in_the_interval(few_resamples, seeds, spread, least):
    """Crossed: every seed has an effect on all patients, every patient one on all seeds, and each pair its own."""

    def make(rng):
        patients, effects = rng.normal(size=(10, 1, 1)), spread * rng.normal(size=(1, seeds, 1))
        return patients + effects + 0.3 * rng.normal(size=(10, seeds, 1))

    assert least < coverage(make, named(10)) <= 0.99
    if spread == 3:  # as it was, with patients alone
        assert coverage(lambda rng: make(rng).mean(axis=1), named(10)) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0])
def test_the_interval_of_a_paired_difference_covers_it_and_few_claims_are_false(few_resamples, spread):
    rng = np.random.default_rng(3)
    held, claimed, rounds = 0, 0, 400
    for round_ in range(rounds):
        patients = 5 * rng.normal(size=(12, 1, 1))  # most of the spread is shared, so the difference is known well
        pair = [
            patients + 0.5 * rng.normal(size=(12, 1, 1)) + spread * rng.normal(size=(1, 3, 1)) + np.zeros((12, 3, 2))
            for _ in range(2)
        ]
        found = bootstrap_of_difference(*pair, named(12), seed=round_)
        held += found.interval.low <= 0 <= found.interval.high
        claimed += found.chance_of_false_claim(higher_is_better=True) < 0.05
    assert 0.92 < held / rounds <= 0.995
    assert claimed / rounds < 0.09  # without a difference, a claim at 0.05 is made this often


def test_the_interval_is_scipys_between_the_expanded_percentiles():
    values = np.random.default_rng(0).gamma(2.0, size=25)
    got = interval(values, named(25), seed=3)
    level = 1 - 2 * stats.norm.cdf(-math.sqrt(25 / 24) * stats.t.ppf(0.975, 24))
    want = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", confidence_level=level, rng=1)
    assert got.mean == pytest.approx(values.mean(), rel=1e-12)
    assert (got.low, got.high) == pytest.approx(tuple(want.confidence_interval), abs=0.03)
    assert got == interval(values, named(25), seed=3)
    assert got != interval(values, named(25), seed=4)


def test_with_one_patient_effect_only_the_interval_is_students():
    """All patients alike: what is left is the mean of three seeds, whose interval is known exactly."""
    rng, widths = np.random.default_rng(0), []
    for round_ in range(10):
        effects = rng.normal(size=3)
        got = interval(np.broadcast_to(effects[None, :, None], (6, 3, 1)), named(6), seed=round_)
        half = stats.t.ppf(0.975, 2) * effects.std(ddof=1) / math.sqrt(3)
        assert got.mean == pytest.approx(effects.mean())
        widths.append((got.high - got.low) / (2 * half))
    assert np.mean(widths) == pytest.approx(math.sqrt(6 / 5), abs=0.05)  # wider by the expansion for six patients


def nan_mean(values):
    known = [v for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known else math.nan


def spread_of_mean(values):
    """Standard deviation of the mean of some values; 0 for one value."""
    return math.sqrt(math.fsum(d**2 for d in deviations(values)))


def deviations(values):
    """Deviation of each value from their mean, divided so that the squares sum to the variance of the mean."""
    mean, count = math.fsum(values) / len(values), len(values)
    return [(v - mean) / math.sqrt(count * (count - 1)) if count > 1 else 0.0 for v in values]


def drawn_effect(values, normal):
    return math.fsum(n * d for n, d in zip(normal, deviations(values), strict=True))


def loop_of_difference(method, baseline, cases):
    """The difference on drawn cases, and what each seed of each method would change, by loops in float64."""

    def at(values, case, k):
        return nan_mean(values[case, :, k])

    def in_both(case, k):
        return not math.isnan(at(method, case, k) - at(baseline, case, k))

    classes = range(method.shape[2])
    per_case = [nan_mean([at(method, c, k) - at(baseline, c, k) for k in classes]) for c in cases]
    effects = []
    for values in (method, baseline):
        of_seed = []
        for s in range(values.shape[1]):
            cells = [[values[c, s, k] - at(values, c, k) for k in classes if in_both(c, k)] for c in cases]
            of_seed.append(nan_mean([nan_mean(cell) for cell in cells]))
        effects.append(of_seed)
    return nan_mean(per_case), effects


@pytest.mark.parametrize("seeds", [(3, 2), (1, 1), (3, 1)])
def test_samples_are_those_of_loops_over_drawn_patients_and_seeds(monkeypatch, seeds):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 30)
    rng = np.random.default_rng(7)
    units = ["a", "b", "b", "c", "d", "e"]
    method, baseline = (rng.random((6, s, 3)) for s in seeds)
    method[1, 0, 2] = baseline[3, 0, 0] = np.nan
    got = bootstrap_of_difference(method, baseline, units, seed=5)
    counts = np.random.default_rng(5).multinomial(5, [0.2] * 5, size=30)
    normal = [np.random.default_rng(6 + i).standard_normal((30, s)) for i, s in enumerate(seeds)]
    want = []
    for r in range(30):
        cases = [c for c, unit in enumerate(units) for _ in range(counts[r]["abcde".index(unit)])]
        difference, (ours, theirs) = loop_of_difference(method, baseline, cases)
        want.append(difference + drawn_effect(ours, normal[0][r]) - drawn_effect(theirs, normal[1][r]))
    whole, effects = loop_of_difference(method, baseline, range(6))
    spreads = [spread_of_mean(of_seed) for of_seed in effects]
    assert got.mean == pytest.approx(whole, rel=1e-12)
    factor = (got.samples - got.mean) / (np.array(want) - got.mean)
    assert factor == pytest.approx(factor[0], rel=1e-7)  # moved away from the mean alike
    # Satterthwaite's degrees of freedom, of five patients and of the seeds.
    patients = [
        loop_of_difference(method, baseline, [c for c, u in enumerate(units) for _ in range(row["abcde".index(u)])])[0]
        for row in counts
    ]
    parts = [(np.var(patients) * 5 / 4, 4), *((v**2, s - 1) for v, s in zip(spreads, seeds, strict=True) if s > 1)]
    freedom = sum(v for v, _ in parts) ** 2 / sum(v**2 / f for v, f in parts)
    assert factor[0] == pytest.approx(stats.t.ppf(0.975, freedom) / stats.t.ppf(0.975, 4), rel=1e-9)


def test_a_planted_difference_is_found_and_its_sign_is_kept():
    rng = np.random.default_rng(0)
    baseline = rng.random((20, 1, 2)) * 0.2 + 0.6 + 0.002 * rng.normal(size=(20, 3, 2))
    better = baseline + 0.05 + 0.005 * rng.normal(size=baseline.shape)
    found = bootstrap_of_difference(better, baseline, named(20))
    assert found.mean == pytest.approx(0.05, abs=0.002)
    assert 0 < found.interval.low < 0.05 < found.interval.high
    assert found.chance_of_false_claim(higher_is_better=True) < 0.01
    assert found.chance_of_false_claim(higher_is_better=False) > 0.99
    back = bootstrap_of_difference(baseline, better, named(20))
    assert back.mean == pytest.approx(-found.mean)
    assert back.interval.high < 0
    # Far more precise than two intervals would be that ignore the pairs.
    assert found.interval.high - found.interval.low < 0.3 * np.ptp(interval(baseline, named(20))[1:])


def test_paired_seeds_take_out_what_the_seeds_have_in_common():
    rng = np.random.default_rng(0)
    luck = np.array([0.0, -0.3, 0.1])[None, :, None]  # the second seed fails with both methods
    baseline = 0.6 + 0.05 * rng.normal(size=(12, 1, 2)) + luck + 0.004 * rng.normal(size=(12, 3, 2))
    better = baseline + 0.04 + 0.004 * rng.normal(size=(12, 3, 2))
    alone, paired = (
        bootstrap_of_difference(better, baseline, named(12), paired_seeds=paired_seeds)
        for paired_seeds in (False, True)
    )
    assert alone.mean == paired.mean == pytest.approx(0.04, abs=0.003)
    assert alone.interval.low < 0 < 0.03 < paired.interval.low
    assert paired.chance_of_false_claim(higher_is_better=True) < 0.01
    shares = [
        shares_of_first_rank([baseline, better], named(12), higher_is_better=True, paired_seeds=paired_seeds)
        for paired_seeds in (False, True)
    ]
    assert shares[0][1] < 0.8
    assert shares[1][1] > 0.99
    # A seed by itself, as in a table of differences of the seeds.
    of_seeds = (better - baseline).mean(axis=(0, 2))
    patients = bootstrap_of_mean((better - baseline).mean(axis=1, keepdims=True), named(12))
    variance = np.var(patients.samples) + of_seeds.var(ddof=1) / 3
    scale = np.std(paired.samples) / np.sqrt(variance)
    assert 0.9 < scale < 2  # wider by few degrees of freedom


def test_identical_methods_have_no_difference_and_a_claim_is_false():
    values = np.random.default_rng(0).random((8, 1, 3))
    same = bootstrap_of_difference(values, values, named(8))
    assert same.interval == (0, 0, 0)
    assert same.chance_of_false_claim(higher_is_better=True) == same.chance_of_false_claim(higher_is_better=False) == 1
    seeds = np.random.default_rng(1).random((8, 3, 3))
    alike = bootstrap_of_difference(seeds, seeds, named(8))
    assert alike.mean == 0
    assert alike.interval.low < 0 < alike.interval.high  # another three seeds would not be the same
    assert 0.4 < alike.chance_of_false_claim(higher_is_better=True) < 0.6


@pytest.mark.parametrize("shift", [-0.06, -0.02, 0.0, 0.02, 0.06])
def test_the_chance_is_below_a_fortieth_exactly_where_the_interval_is_on_the_better_side(shift):
    rng = np.random.default_rng(2)
    for seed in range(6):
        method, baseline = 0.1 * rng.normal(size=(9, 3, 1)) + shift, 0.02 * rng.normal(size=(9, 2, 1))
        found = bootstrap_of_difference(method, baseline, named(9), seed=seed)
        low, high = found.interval[1:]
        if min(abs(low), abs(high)) > 1e-3:
            assert (found.chance_of_false_claim(higher_is_better=True) < 0.025) == (low > 0)
            assert (found.chance_of_false_claim(higher_is_better=False) < 0.025) == (high < 0)


def test_few_patients_cannot_make_a_claim_certain():
    four = bootstrap_of_difference(np.ones((4, 1, 1)) + np.arange(4)[:, None, None], np.zeros((4, 1, 1)), named(4))
    assert 0.01 < four.chance_of_false_claim(higher_is_better=True) < 0.06
    nothing = bootstrap_of_difference(np.full((3, 1, 1), np.nan), np.zeros((3, 1, 1)), named(3))
    assert math.isnan(nothing.chance_of_false_claim(higher_is_better=True))
    assert all(map(math.isnan, nothing.interval))


def test_ranks_by_hand_and_planted():
    rng = np.random.default_rng(0)
    base = rng.random((15, 2, 2))
    shares = shares_of_first_rank([base, base + 0.2, base - 0.1], named(15), higher_is_better=True)
    assert shares == pytest.approx([0, 1, 0], abs=0.2)
    assert shares[1] > 0.8
    turned = shares_of_first_rank([base, base + 0.2, base - 0.1], named(15), higher_is_better=False)
    assert turned[2] > turned[0] > turned[1]
    one = base[:, :1]
    assert shares_of_first_rank([one, one, one - 1], named(15), higher_is_better=True) == [0.5, 0.5, 0]
    # Two patients, of whom each method is better on one: only samples of one of them, half of all, have a winner.
    two = [np.array([[[1.0]], [[0.0]]]), np.array([[[0.0]], [[1.0]]])]
    assert shares_of_first_rank(two, named(2), higher_is_better=True) == pytest.approx([0.5, 0.5], abs=0.03)
    missing = np.full((15, 1, 2), np.nan)
    assert shares_of_first_rank([missing, one], named(15), higher_is_better=False) == [0, 1]
    assert all(map(math.isnan, shares_of_first_rank([one, one], ["p"] * 15, higher_is_better=True)))


def test_shares_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 60)
    rng = np.random.default_rng(4)
    methods = [rng.random((5, s, 1)) for s in (3, 2, 1)]
    counts = np.random.default_rng(9).multinomial(5, [0.2] * 5, size=60)
    normal = [np.random.default_rng(10 + i).standard_normal((60, s)) for i, s in enumerate((3, 2, 1))]
    first = [0.0] * 3
    for r in range(60):
        scores = []
        for number, values in enumerate(methods):
            seeds = range(values.shape[1])
            of_seed = [math.fsum(counts[r, c] * values[c, s, 0] for c in range(5)) / 5 for s in seeds]
            scores.append(math.fsum(of_seed) / len(seeds) + drawn_effect(of_seed, normal[number][r]))
        first[scores.index(max(scores))] += 1 / 60
    assert shares_of_first_rank(methods, named(5), higher_is_better=True, seed=9) == pytest.approx(first)


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
    cases = named(7)
    assert interval(dice, cases).mean == pytest.approx(summary[(ALL_CLASSES, "mean")], rel=1e-12)
    assert interval(dice[:, 0], cases).mean == pytest.approx(summary[("0", "mean")], rel=1e-12)
    seeds = np.stack([dice, dice + 1], axis=1)
    assert interval(seeds, cases).mean == pytest.approx(summary[(ALL_CLASSES, "mean")] + 0.5, rel=1e-12)


def test_too_little_for_an_interval():
    assert all(math.isnan(x) for x in interval(np.full(3, np.nan), list("abc")))
    one = interval(np.array([0.5, 0.7, np.nan]), ["p", "p", "q"])
    assert one.mean == pytest.approx(0.6)
    assert (math.isnan(one.low), math.isnan(one.high)) == (True, True)
    assert interval(np.full(4, 0.25), list("abcd")) == (0.25, 0.25, 0.25)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"bootstrap_of_mean: values must be .* got \(3, 1, 1\) values and 2 units"):
        bootstrap_of_mean(np.zeros((3, 1, 1)), ["a", "b"])
    with pytest.raises(ValueError, match=r"bootstrap_of_difference: values must be .* got \(2, 1\) values and 2 units"):
        bootstrap_of_difference(np.zeros((2, 1, 1)), np.zeros((2, 1)), ["a", "b"])
    with pytest.raises(ValueError, match=r"shares_of_first_rank: values must be .* got \(2,\) values and 2 units"):
        shares_of_first_rank([np.zeros(2)], ["a", "b"], higher_is_better=True)
