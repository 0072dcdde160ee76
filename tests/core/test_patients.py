"""Cases of one patient are known by one pattern, wherever it matters."""

from __future__ import annotations

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.patients import patient_lookup


def test_patients_are_the_patterns_first_group_or_the_cases_themselves():
    cases = ["patient004_frame01", "patient004_frame02", "patient012_frame01"]
    patient_of = patient_lookup(r"(patient\d+)_frame\d+", cases)
    assert [*map(patient_of, cases)] == ["patient004", "patient004", "patient012"]
    assert [*map(patient_lookup(None, cases), cases)] == cases


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("(", "which is not a regular expression (missing ), unterminated subpattern"),
        (7, "got 7, which is not a regular expression"),
        (r"a_\d", "which has no group"),
        (r"(patient\d+)", "which finds no patient in a_1"),
        (r"(b)?a_\d", "which finds no patient in a_1"),  # the group is there, and empty
        (r"()a_\d", "which finds no patient in a_1"),
    ],
)
def test_a_pattern_that_names_no_patient_is_refused(pattern, found):
    with pytest.raises(CollabError, match="patient_pattern must match whole case names, and its first group") as caught:
        patient_lookup(pattern, ["a_1"])
    assert found in str(caught.value)
    assert r"Correct it in dataset.json or on the command line, e.g. '(patient\d+)_.*'." in str(caught.value)


def test_many_names_are_cut_short():
    with pytest.raises(CollabError, match="finds no patient in b0, b1, b2, b3, b4 and 4 more"):
        patient_lookup(r"(a)\d", ["a0", *(f"b{i}" for i in range(9))])


def test_a_name_that_comes_later_is_refused_likewise():
    with pytest.raises(CollabError, match="which finds no patient in b"):
        patient_lookup(r"(a)_\d", ["a_1"])("b")
