"""The promises of a split by patient, counted out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.splits.patient_folds import held_out, patient_folds

CASES = tuple(f"{patient}_{i}" for patient in (f"p{n:02d}" for n in range(23)) for i in range(3))


def patient(name: str) -> str:
    return name.split("_")[0]


def group(patient: str) -> str:
    return "rare" if int(patient[1:]) < 6 else "common"


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_in_two_roles_and_balanced_groups(seed):
    split = patient_folds(CASES, patient, group_of=group, seed=seed)
    assert len(split) == 5
    assert Counter(name for fold in split for name in fold["val"]) == Counter(CASES)
    sizes, rare = [], []
    for fold in split:
        assert sorted(fold["train"] + fold["val"]) == list(CASES)
        train, val = ({patient(name) for name in fold[role]} for role in ("train", "val"))
        assert not train & val
        sizes.append(len(val))
        rare.append(sum(group(p) == "rare" for p in val))
    assert max(sizes) - min(sizes) == 1
    assert sorted(rare) == [1, 1, 1, 1, 2]


def test_depends_on_the_seed_but_not_on_the_order_of_cases():
    split = patient_folds(CASES, patient)
    assert split == patient_folds(CASES[::-1], patient)
    assert split != patient_folds(CASES, patient, seed=1)


def test_the_same_split_on_every_machine_and_in_every_release():
    assert [fold["val"] for fold in patient_folds("gfedcba", str, folds=3)] == [["b", "c", "e"], ["a", "f"], ["d", "g"]]


def test_fewer_patients_than_folds():
    split = patient_folds(CASES[:9], patient)
    assert [len(fold["val"]) for fold in split] == [3, 3, 3]


def test_refusals():
    with pytest.raises(CollabError, match=r"at least 2 patients .* found 1 \(p00\)\. Add patients"):
        patient_folds(CASES[:3], patient)
    with pytest.raises(CollabError, match=r"found 0 \(none\)"):
        patient_folds([], patient)
    with pytest.raises(ValueError, match="needs at least 2 folds; got 1"):
        patient_folds(CASES, patient, folds=1)


PATIENTS = [f"p{i:03d}" for i in range(335)]
PUBLISHED = {"train": 250, "validation": 25, "test": 60}


def test_held_out_has_the_published_counts_and_no_patient_twice():
    roles = held_out(PATIENTS, PUBLISHED)
    assert {role: len(patients) for role, patients in roles.items()} == PUBLISHED
    assert sorted(name for patients in roles.values() for name in patients) == PATIENTS
    assert roles == held_out(PATIENTS[::-1], PUBLISHED)
    assert roles != held_out(PATIENTS, PUBLISHED, seed=1)


@pytest.mark.parametrize(
    ("count", "sizes"), [(8, (6, 2)), (7, (6, 1)), (5, (4, 1)), (2, (1, 1)), (1, (1, 0)), (0, (0, 0)), (200, (160, 40))]
)
def test_held_out_scales_the_counts(count, sizes):
    roles = held_out(PATIENTS[:count], {"train": 80, "test": 20})
    assert (len(roles["train"]), len(roles["test"])) == sizes


def test_held_out_is_balanced_over_groups():
    groups = {name: "rare" if int(name[1:]) < 76 else "common" for name in PATIENTS}  # as LGG and HGG in BraTS 2019
    for seed in range(5):
        roles = held_out(PATIENTS, PUBLISHED, groups=groups, seed=seed)
        for role, size in PUBLISHED.items():
            rare = sum(groups[name] == "rare" for name in roles[role])
            assert abs(rare - size * 76 / 335) <= 1


def test_held_out_the_same_on_every_machine_and_in_every_release():
    assert held_out("jihgfedcba", {"train": 8, "test": 2})["test"] == ["b", "i"]
