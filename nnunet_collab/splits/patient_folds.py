"""Folds for cross-validation in which a patient has one role: the frames of one heart are no independent cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import Split

SPLIT_SEED = 12345  # the seed of nnU-Net's own split


def patient_folds(
    cases: Iterable[str],
    patient_of: Callable[[str], str],
    *,
    group_of: Callable[[str], str] | None = None,
    folds: int = 5,
    seed: int = SPLIT_SEED,
) -> Split:
    """Split cases for cross-validation so that no patient is in two roles.

    The patients of each group are shuffled and dealt out in turn, going on where the last group ended: patients per
    fold, and patients of one group per fold, differ by at most one. The order of `cases` does not matter.

    Args:
        cases: Names.
        patient_of: Case -> patient.
        group_of: Patient -> group.
        folds: At least 2. With fewer patients than that, as many folds as patients.
        seed: Of the shuffling.

    Returns:
        nnU-Net's split: per fold the sorted names of "train" and "val".

    Raises:
        ValueError: If `folds` is below 2.
        CollabError: If there are fewer than two patients.
    """
    if folds < 2:
        raise ValueError(f"patient_folds: cross-validation needs at least 2 folds; got {folds}")
    patients = {name: patient_of(name) for name in sorted(cases)}
    groups: dict[str, list[str]] = {}
    for patient in sorted(set(patients.values())):
        groups.setdefault(group_of(patient) if group_of else "", []).append(patient)
    rng = random.Random(seed)
    order = [patient for group in sorted(groups) for patient in shuffled(groups[group], rng)]
    if len(order) < 2:
        raise CollabError(few_patients(order))
    fold_of = {patient: i % folds for i, patient in enumerate(order)}
    return [
        {
            "train": [name for name, patient in patients.items() if fold_of[patient] != fold],
            "val": [name for name, patient in patients.items() if fold_of[patient] == fold],
        }
        for fold in range(min(folds, len(order)))
    ]


def held_out(
    patients: Iterable[str],
    published: Mapping[str, int],
    *,
    groups: Mapping[str, str] | None = None,
    seed: int = SPLIT_SEED,
) -> dict[str, list[str]]:
    """Divide patients as a paper does that gives only counts.

    With as many patients as in the paper, the counts are the paper's; with fewer or more they are scaled, every role
    but the largest being rounded, to at least one patient. The order of `patients` does not matter.

    Args:
        patients: Names, each once.
        published: Role -> number of patients in the paper.
        groups: Patient -> group that the roles are balanced over: every group is shuffled, and the patients of a role
            are taken from it at even distances.
        seed: Of the shuffling.

    Returns:
        Role -> sorted names. With fewer patients than roles, the last roles stay empty.
    """
    rng = random.Random(seed)
    members = sorted(patients)
    by_group: dict[str, list[str]] = {}
    for patient in members:
        by_group.setdefault((groups or {}).get(patient, ""), []).append(patient)
    # Each group's shuffled patients are spread over (0, 1); sorting by that place mixes the groups evenly.
    places = {
        patient: ((rank + 0.5) / len(group), name)
        for name, group in sorted(by_group.items())
        for rank, patient in enumerate(shuffled(group, rng))
    }
    order = sorted(members, key=lambda patient: places[patient])
    total, largest = sum(published.values()), max(published, key=lambda role: published[role])
    result: dict[str, list[str]] = {}
    for role, count in published.items():
        if role != largest:
            share = count if len(members) == total else max(1, int(len(members) * count / total + 0.5))
            taken = min(share, max(len(order) - 1, 0))  # the largest role is not left empty
            result[role], order = sorted(order[:taken]), order[taken:]
    return {role: result.get(role, sorted(order)) for role in published}


def shuffled(patients: Iterable[str], rng: random.Random) -> list[str]:
    """Patients in an order that depends on the generator alone: only its random() never changes with Python."""
    return sorted(sorted(patients), key=lambda _: rng.random())


def few_patients(patients: Sequence[str]) -> str:
    """The message for a training set that cannot be split by patient."""
    return (
        f"training needs labeled cases of at least two patients (five for five folds), so that one can be validated "
        f"on; found {len(patients)} ({', '.join(patients) or 'none'}). Add patients to the source."
    )
