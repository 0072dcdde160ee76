"""Choose the patients that keep their labels when few labels are simulated. All functions work on names only.

A fold of `splits_final.json` has the roles "train" (labeled), "val" and "unlabeled" (training cases whose labels are
never opened). "unlabeled" may be missing. All cases of a patient have the same role in a fold.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.nnunet_folders import ROLES, SPLIT_FILE, Split, check_split
from nnunet_collab.core.patients import PatientOf, PatientRule, patient_lookup
from nnunet_collab.splits.patient_folds import patient_folds, shuffled

Labeled = int | Fraction | tuple[str, ...]  # a number of patients, a share of them in (0, 1], or names


def parse_labeled(words: Sequence[str]) -> Labeled:
    """Parse `--labeled`: "7" is a number of patients, "10%" a share of them, and all other words are names.

    Args:
        words: At least one word. Digits are a number of patients only if there is no other word.

    Raises:
        CollabError: If the number is below 1, or the percentage is not in (0, 100].
    """
    word = words[0].strip()
    if len(words) > 1 or not re.fullmatch(r"[-+]?\d+(\.\d+)?%|[-+]?\d+", word):
        return tuple(words)
    if word.endswith("%"):
        share = Fraction(word[:-1]) / 100
        if not 0 < share <= 1:
            raise CollabError(f"--labeled: a percentage must be above 0 and at most 100; got {word}. Write e.g. 10%.")
        return share
    if int(word) < 1:
        raise CollabError(f"--labeled: the number of patients must be at least 1; got {word}. Correct the number.")
    return int(word)


def of_patients(cases: Iterable[str], others: Iterable[str], rule: PatientRule) -> list[str]:
    """The cases whose patient also has cases in `others`, sorted.

    Args:
        cases: Case names. A case without a known patient counts as a separate patient.
        others: Case names, treated in the same way.
        rule: Rule of `patient_lookup`.

    Raises:
        CollabError: If the pattern is not a regular expression or has no group.
    """
    patient_of = patient_lookup(rule)

    def patient(case: str) -> str:
        try:
            return patient_of(case)
        except CollabError:
            return case

    known = {patient(case) for case in others}
    return sorted(case for case in cases if patient(case) in known)


def validate_split(splits: list[dict[str, list[str]]], cases: Collection[str], patient_of: PatientOf) -> None:
    """Refuse a split that is malformed, or in which a case or a patient has two roles in a fold.

    Args:
        splits: Content of `splits_final.json`: per fold the lists "train", "val" and, if present, "unlabeled".
        cases: All case names of the dataset.
        patient_of: Case -> patient.

    Raises:
        CollabError: If a fold is malformed, a case is unknown, or a case or a patient has two roles in a fold.
    """
    fix = f"Correct {SPLIT_FILE}, or move it away to have new folds made by patient."
    for number, fold in enumerate(check_split(splits, SPLIT_FILE, fix)):
        where = f"{SPLIT_FILE}, fold {number}"
        roles = {role: fold.get(role, []) for role in ROLES}
        if unknown := sorted({case for names in roles.values() for case in names} - set(cases)):
            raise CollabError(f"{where}: it must name cases of the dataset; there is no {listed(unknown)}. {fix}")
        check_roles(where, roles, patient_of, fix)


def check_roles(where: str, roles: Mapping[str, Sequence[str]], patient_of: PatientOf, fix: str) -> None:
    """Refuse a case or a patient with two roles.

    Args:
        where: Name of the split; it starts the message.
        roles: Role -> cases.
        patient_of: Case -> patient.
        fix: How to fix it, in a sentence.

    Raises:
        CollabError: If a case or a patient has two roles; the message names both.
    """
    for what, key in (("case", str), ("patient", patient_of)):
        role_of: dict[str, str] = {}
        for role, names in roles.items():
            for case in names:
                name = key(case)
                if role_of.setdefault(name, role) != role:
                    raise CollabError(
                        f"{where}: a {what} must have one role; {what} {name} is in {role_of[name]} and in {role}. "
                        f"{fix}"
                    )


def with_few_labels(folds: Split, patient_of: PatientOf, labeled: int | Fraction, seed: int) -> Split:
    """Let few training patients of each fold keep their labels; all others become "unlabeled".

    The training cases of a fold are its "train" and "unlabeled" cases. Patients are drawn independently in each fold.
    With the same folds and seed, the patients of a smaller choice are a subset of those of a larger one.

    Args:
        folds: A valid split.
        patient_of: Case -> patient.
        labeled: Number of patients, or share of the fold's training patients (rounded, at least 1).
        seed: Seed for drawing.

    Raises:
        CollabError: If a fold has fewer training patients than requested.
    """
    rng = random.Random(seed)
    result = []
    fewest = min(len({patient_of(case) for case in _pool(fold)}) for fold in folds)
    for number, fold in enumerate(folds):
        order = shuffled({patient_of(case) for case in _pool(fold)}, rng)
        count = number_of_patients(labeled, len(order))
        if count > len(order):
            raise CollabError(
                f"--labeled: fold {number} has {len(order)} training patients; got {count}. Use at most {fewest}."
            )
        chosen = [case for case in _pool(fold) if patient_of(case) in order[:count]]
        result.append(_roles(_pool(fold), fold["val"], chosen))
    return result


def with_named_labels(cases: Iterable[str], labeled: Collection[str], patient_of: PatientOf, folds: int) -> Split:
    """Folds in which the named cases are always labeled, and each other case is a validation case in one fold.

    Args:
        cases: All case names.
        labeled: Cases that keep their labels; all cases of a patient must be among them (`named_cases`).
        patient_of: Case -> patient.
        folds: Number of folds, at least 2. With fewer other patients, there are fewer folds.

    Raises:
        CollabError: If fewer than 2 other patients remain.
    """
    others = sorted(set(cases) - set(labeled))
    patients = sorted({patient_of(case) for case in others})
    if len(patients) < 2:
        raise CollabError(
            "--labeled: the named patients are labeled in every fold, so at least 2 other patients must remain for "
            f"validation; found {len(patients)} ({listed(patients) or 'none'}). Name fewer patients."
        )
    return [
        _roles([*labeled, *fold["train"]], fold["val"], labeled)
        for fold in patient_folds(others, patient_of, folds=folds)
    ]


def named_cases(
    names: Iterable[str], cases: Collection[str], patient_of: PatientOf, option: str = "--labeled"
) -> list[str]:
    """The cases in a list of patients and cases, sorted.

    Args:
        names: Names of patients and of cases.
        cases: All case names.
        patient_of: Case -> patient.
        option: The argument that gave the names; it starts the messages.

    Raises:
        CollabError: If a name is unknown, or if only some of the cases of a patient are named.
    """
    names = list(dict.fromkeys(names))
    by_patient: dict[str, list[str]] = {}
    for case in sorted(cases):
        by_patient.setdefault(patient_of(case), []).append(case)
    if unknown := [name for name in names if name not in by_patient and name not in cases]:
        numbers = option == "--labeled" and any(re.match(r"[\d.]+$", name) for name in unknown)
        hint = " Write a share with a percent sign: 10%." if numbers else ""
        raise CollabError(
            f"{option}: names must be patients or cases of imagesTr; there is no {listed(unknown)}. The patients are "
            f"{listed(sorted(by_patient))}. Correct the names.{hint}"
        )
    chosen = {case for name in names for case in by_patient.get(name, [name])}
    for patient in sorted({patient_of(case) for case in chosen}):
        if missing := [case for case in by_patient[patient] if case not in chosen]:
            raise CollabError(
                f"{option}: all cases of a patient must be named, or none; {patient} also has {listed(missing)}. "
                f"Name the patient, {patient}, instead of its cases."
            )
    return sorted(chosen)


def drawn_cases(cases: Collection[str], patient_of: PatientOf, labeled: int | Fraction, seed: int) -> list[str]:
    """Cases of patients drawn from the whole dataset, sorted. A smaller choice is a subset of a larger one.

    Raises:
        CollabError: If there are fewer patients than requested.
    """
    order = shuffled({patient_of(case) for case in cases}, random.Random(seed))
    count = number_of_patients(labeled, len(order))
    if count > len(order):
        raise CollabError(f"--labeled: the dataset has {len(order)} patients; got {count}. Use a smaller number.")
    return sorted(case for case in cases if patient_of(case) in order[:count])


def number_of_patients(labeled: int | Fraction, total: int) -> int:
    """Number of labeled patients among `total`. A share is rounded (half upward), to at least 1."""
    if isinstance(labeled, int):
        return labeled
    return max(1, int(total * labeled + Fraction(1, 2)))


def _pool(fold: dict[str, list[str]]) -> list[str]:
    return [*fold["train"], *fold.get("unlabeled", [])]


def _roles(pool: Iterable[str], val: Iterable[str], labeled: Collection[str]) -> dict[str, list[str]]:
    rest = sorted(set(pool) - set(labeled))
    return {"train": sorted(set(labeled)), "val": sorted(val), "unlabeled": rest}
