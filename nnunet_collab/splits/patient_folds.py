"""Cross-validation folds by patient. Cases of one patient, e.g. two frames of a heart, are not independent."""

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
    """Split cases for cross-validation so that all cases of a patient have the same role.

    The patients of each group are shuffled and assigned to the folds in turn; the next group continues with the next
    fold. So the number of patients per fold, and that of each group per fold, differ by at most 1. The order of `cases`
    does not matter.

    Args:
        cases: Case names.
        patient_of: Case -> patient.
        group_of: Patient -> group, or None.
        folds: Number of folds, at least 2. With fewer patients, there are as many folds as patients.
        seed: Seed for shuffling.

    Returns:
        Split in nnU-Net's format: per fold the sorted names of "train" and "val".

    Raises:
        ValueError: If `folds` is below 2.
        CollabError: If there are fewer than 2 patients.
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
    """Divide patients at random into roles of the sizes that a paper gives.

    With as many patients as in the paper, the sizes are those of the paper. Otherwise they are scaled. Every role but
    the largest is rounded, to at least 1 patient. The order of `patients` does not matter.

    Args:
        patients: Patient names without repetition.
        published: Role -> number of patients in the paper.
        groups: Patient -> group for balancing the roles, or None. Every group is shuffled, and the patients of a role
            are taken from it at even distances.
        seed: Seed for shuffling.

    Returns:
        Role -> sorted names. With fewer patients than roles, the last roles are empty.
    """
    rng = random.Random(seed)
    members = sorted(patients)
    by_group: dict[str, list[str]] = {}
    for patient in members:
        by_group.setdefault((groups or {}).get(patient, ""), []).append(patient)
    # The shuffled patients of each group are spread over (0, 1). Sorting by this position mixes the groups evenly.
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
            taken = min(share, max(len(order) - 1, 0))  # at least 1 patient remains for the largest role
            result[role], order = sorted(order[:taken]), order[taken:]
    return {role: result.get(role, sorted(order)) for role in published}


def shuffled(patients: Iterable[str], rng: random.Random) -> list[str]:
    """The patients in random order. It uses only `rng.random()`, whose values are the same in all Python versions."""
    return sorted(sorted(patients), key=lambda _: rng.random())


def few_patients(patients: Sequence[str]) -> str:
    """The message for a training set that cannot be split by patient."""
    return (
        f"training and validation need labeled cases of at least 2 patients (5 for five folds); found {len(patients)} "
        f"({', '.join(patients) or 'none'}). Add patients to the source."
    )
