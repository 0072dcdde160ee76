"""Folds for cross-validation in which a patient has one role: the frames of one heart are no independent cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from nnunet_collab.core.errors import CollabError
from nnunet_collab.data.raw_target import Split

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
    rng = random.Random(seed)  # only its random() is promised to stay the same in every Python version
    order = [patient for group in sorted(groups) for patient in sorted(groups[group], key=lambda _: rng.random())]
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


def few_patients(patients: Sequence[str]) -> str:
    """The message for a training set that cannot be split by patient."""
    return (
        f"training needs labelled cases of at least two patients (five for five folds), so that one can be validated "
        f"on; found {len(patients)} ({', '.join(patients) or 'none'}). Add patients to the source."
    )
