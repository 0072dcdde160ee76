"""Tests are scipy's; Holm's correction by hand; means without NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_collab.evaluation.statistics import holm, mean_over_cases, nanmean, paired_test, weighted_means


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
        ValueError, match=r"paired_test: there must be one unit per case; got \(3,\) values and 2 units"
    ):
        paired_test(np.zeros(3), ["a", "b"])


def test_means_leave_out_nan_and_know_of_none():
    values = np.array([[[1.0, math.nan], [2.0, math.nan]], [[3.0, 5.0], [math.nan, math.nan]]])  # case, seed, class
    # Over cases: seed 0 has (2, 5), seed 1 has (2, nan); over classes 3.5 and 2; over seeds 2.75.
    assert mean_over_cases(values) == 2.75
    assert weighted_means(np.array([[3.0, 1.0], [0.0, 0.0]]), values[:, 0]) == pytest.approx(
        np.array([[1.5, 5.0], [math.nan, math.nan]]), nan_ok=True
    )
    assert nanmean(values, axis=2) == pytest.approx(np.array([[1.0, 2.0], [4.0, math.nan]]), nan_ok=True)
