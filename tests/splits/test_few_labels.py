"""The promises of simulated few labels, counted out by hand."""

from __future__ import annotations

import copy
import itertools
from fractions import Fraction

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.splits.few_labels import (
    drawn_cases,
    listed,
    named_cases,
    number_of_patients,
    parse_labeled,
    patient_lookup,
    validate_split,
    with_few_labels,
    with_named_labels,
)
from nnunet_collab.splits.patient_folds import patient_folds

CASES = [f"p{n:02d}_{frame}" for n in range(20) for frame in "ab"]


def patient(case):
    return case.split("_")[0]


def patients(cases):
    return {patient(case) for case in cases}


FOLDS = patient_folds(CASES, patient)


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (["7"], 7),
        (["10%"], Fraction(1, 10)),
        (["12.5%"], Fraction(1, 8)),
        (["100%"], 1),
        (["p01"], ("p01",)),
        (["7", "8"], ("7", "8")),
        (["0.1"], ("0.1",)),
    ],
)
def test_labeled(words, meaning):
    assert parse_labeled(words) == meaning


@pytest.mark.parametrize("word", ["0%", "-5%", "100.1%", "0.0%"])
def test_percentage_out_of_range(word):
    with pytest.raises(CollabError, match=f"a percentage must be above 0 and at most 100; got {word}"):
        parse_labeled([word])


@pytest.mark.parametrize("word", ["0", "-3"])
def test_too_few(word):
    with pytest.raises(CollabError, match=f"the number of patients must be at least 1; got {word}"):
        parse_labeled([word])


def test_shares_are_rounded_half_up_to_one_at_least():
    got = [number_of_patients(Fraction(1, 10), total) for total in (1, 5, 14, 15, 25, 70, 71)]
    assert got == [1, 1, 1, 2, 3, 7, 7]
    assert number_of_patients(Fraction(1), 9) == 9
    assert number_of_patients(7, 3) == 7


# ---------------------------------------------------------------- patients


def test_without_a_pattern_every_case_is_a_patient():
    assert patient_lookup(None, ["a_1"])("a_1") == "a_1"


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("labeled", [1, 7, 16, Fraction(1, 10)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_fold_keeps_its_cases_and_labels_whole_patients(labeled, seed):
    before = copy.deepcopy(FOLDS)
    split = with_few_labels(FOLDS, patient, labeled, seed)
    assert before == FOLDS
    for fold, old in zip(split, FOLDS, strict=True):
        assert list(fold) == ["train", "val", "unlabeled"]
        assert fold["val"] == old["val"]
        assert sorted(fold["train"] + fold["unlabeled"]) == old["train"]
        assert len(patients(fold["train"])) == (2 if labeled == Fraction(1, 10) else labeled)
        assert not patients(fold["train"]) & patients(fold["unlabeled"])
    validate_split(split, CASES, patient)


def test_a_smaller_choice_is_part_of_a_larger_one():
    splits = [with_few_labels(FOLDS, patient, count, 3) for count in range(1, 17)]
    for small, large in itertools.pairwise(splits):
        assert all(set(a["train"]) < set(b["train"]) for a, b in zip(small, large, strict=True))


def test_depends_on_the_seed_but_not_on_the_order_of_cases_or_earlier_choices():
    split = with_few_labels(FOLDS, patient, 3, 0)
    turned = [{role: names[::-1] for role, names in fold.items()} for fold in FOLDS]
    assert with_few_labels(turned, patient, 3, 0) == split
    assert with_few_labels(with_few_labels(FOLDS, patient, 5, 9), patient, 3, 0) == split
    assert with_few_labels(FOLDS, patient, 3, 1) != split
    chosen = {case for fold in split for case in fold["train"]}
    assert len(patients(chosen)) > 3  # drawn anew in each fold


def test_the_same_choice_on_every_machine_and_in_every_release():
    split = with_few_labels([{"train": list("gfedcba"), "val": ["x"]}] * 2, str, 3, 0)
    # random.Random(0): .84 .76 .42 .26 .51 .40 .78, then .30 .48 .58 .91 .50 .28 .76; the smallest come first
    assert [fold["train"] for fold in split] == [["c", "d", "f"], ["a", "b", "f"]]
    assert drawn_cases("gfedcba", str, 3, 0) == ["c", "d", "f"]


def test_more_than_there_are():
    folds = [{"train": ["a", "b", "c"], "val": ["d"]}, {"train": ["a"], "unlabeled": ["b"], "val": ["c", "d"]}]
    with pytest.raises(CollabError, match=r"fold 1 has 2 training patients; got 3\. Use at most 2"):
        with_few_labels(folds, str, 3, 0)
    assert with_few_labels(folds, str, 2, 0)[1] == {"train": ["a", "b"], "val": ["c", "d"], "unlabeled": []}
    with pytest.raises(CollabError, match=r"the dataset has 20 patients; got 21"):
        drawn_cases(CASES, patient, 21, 0)


def test_drawing_from_a_whole_dataset():
    few, more = (drawn_cases(CASES, patient, count, 0) for count in (2, Fraction(1, 4)))
    assert len(few) == 4
    assert len(more) == 10
    assert set(few) < set(more)
    assert len(patients(more)) == 5
    assert drawn_cases(CASES, patient, 2, 1) != few


# ---------------------------------------------------------------- named patients


def test_names_may_be_patients_or_all_cases_of_one():
    assert named_cases(["p03", "p01_b", "p01_a", "p03"], CASES, patient) == ["p01_a", "p01_b", "p03_a", "p03_b"]


def test_names_that_are_refused():
    with pytest.raises(CollabError, match=r"there is no p99, q\. The patients are p00, p01, .* and 15 more\."):
        named_cases(["p99", "p01", "q"], CASES, patient)
    with pytest.raises(CollabError, match=r"there is no 0\.1\..* Write a share with a percent sign: 10%\."):
        named_cases(["0.1"], CASES, patient)
    with pytest.raises(
        CollabError, match=r"of a patient must be named, or none; p01 also has p01_b\. Name the patient, p01"
    ):
        named_cases(["p02", "p01_a"], CASES, patient)


def test_named_patients_are_labeled_in_every_fold_and_never_validated_on():
    named = named_cases(["p03", "p01"], CASES, patient)
    split = with_named_labels(CASES, named, patient, 5)
    assert len(split) == 5
    assert all(fold["train"] == named for fold in split)
    assert sorted(case for fold in split for case in fold["val"]) == [c for c in CASES if c not in named]
    assert all(sorted(case for role in fold.values() for case in role) == CASES for fold in split)
    validate_split(split, CASES, patient)


def test_named_patients_leave_too_few_to_validate_on():
    with pytest.raises(CollabError, match=r"at least 2 other patients .* found 1 \(p02\)\. Name fewer"):
        with_named_labels(["p01_a", "p02_a"], ["p01_a"], patient, 5)
    with pytest.raises(CollabError, match=r"found 0 \(none\)"):
        with_named_labels(["p01_a"], ["p01_a"], patient, 5)


# ---------------------------------------------------------------- validation


def fold(**roles):
    return {"train": ["p00_a"], "val": ["p01_a"], **roles}


@pytest.mark.parametrize(
    "good", [fold(), fold(unlabeled=["p02_a"]), fold(unlabeled=[]), fold(train=["p00_a", "p00_b"])]
)
def test_valid_splits(good):
    validate_split([good, fold()], set(CASES), patient)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (fold(val=["p77_a", "p78_a"]), "it must name cases of the dataset; there is no p77_a, p78_a"),
        (fold(unlabeled=["p77_a"]), "there is no p77_a"),
        (fold(val=["p00_a"]), "a case must have one role; case p00_a is in train and in val"),
        (fold(unlabeled=["p01_a"]), "case p01_a is in unlabeled and in val"),
        (fold(val=["p00_b"]), "a patient must have one role; patient p00 is in train and in val"),
        (fold(unlabeled=["p00_b"]), "patient p00 is in train and in unlabeled"),
        (fold(unlabeled=["p01_b"]), "patient p01 is in unlabeled and in val"),
        ({"train": ["p00_a"]}, "there is no val"),  # the form of a fold: tests/core/test_split_files.py
        (fold(val=[]), "val must name at least one case to validate on; it is empty"),
        (["p00_a"], "it must be an object"),
    ],
)
def test_splits_that_are_refused(bad, message):
    with pytest.raises(CollabError, match=rf"splits_final\.json, fold 1: .*{message}.*Correct splits_final\.json"):
        validate_split([fold(), bad], set(CASES), patient)


@pytest.mark.parametrize("bad", [[], {}, None])
def test_no_split_at_all(bad):
    with pytest.raises(CollabError, match="it must be a list of at least one fold; it is "):
        validate_split(bad, set(CASES), patient)


def test_listed():
    assert listed([]) == ""
    assert listed(list("abc")) == "a, b, c"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"
