"""Which patients keep their labels when few labels are simulated: pure functions on names.

A fold of `splits_final.json` has the roles "train" (labeled), "val" and "unlabeled" (training cases whose labels are
never opened); the last one may be missing. A patient has one role per fold, however many cases there are of one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.nnunet_folders import ROLES, SPLIT_FILE, Split, check_split
from nnunet_collab.core.patients import PatientOf, patient_lookup
from nnunet_collab.splits.patient_folds import patient_folds, shuffled

Labeled = int | Fraction | tuple[str, ...]  # a number of patients, a share of them in (0, 1], or names


def parse_labeled(words: Sequence[str]) -> Labeled:
    """What `--labeled` asks for: "7" is a number of patients, "10%" a share of them, anything else is names.

    Args:
        words: At least one. A word of digits is a number only when it is alone.

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
        raise CollabError(f"--labeled: at least one patient must keep the labels; got {word}. Ask for 1 or more.")
    return int(word)


def of_patients(cases: Iterable[str], others: Iterable[str], pattern: str | None) -> list[str]:
    """The cases whose patient is one of the others', too, sorted.

    Args:
        cases: Names, which need not match the pattern: then each is a patient of its own.
        others: Likewise.
        pattern: As in `patient_lookup`.

    Raises:
        CollabError: If the pattern is no regular expression or has no group.
    """
    patient_of = patient_lookup(pattern)

    def patient(case: str) -> str:
        try:
            return patient_of(case)
        except CollabError:
            return case

    known = {patient(case) for case in others}
    return sorted(case for case in cases if patient(case) in known)


def validate_split(splits: list[dict[str, list[str]]], cases: Collection[str], patient_of: PatientOf) -> None:
    """Refuse a split that is malformed or in which anything has two roles.

    Args:
        splits: Content of `splits_final.json`: per fold "train", "val" and perhaps "unlabeled", lists of names.
        cases: Every name that may occur.
        patient_of: Case -> patient.

    Raises:
        CollabError: On a malformed fold, unknown cases, a case in two roles of a fold, a patient in two roles of one.
    """
    fix = f"Correct {SPLIT_FILE}, or move it away: then folds are dealt by patient."
    for number, fold in enumerate(check_split(splits, SPLIT_FILE, fix)):
        where = f"{SPLIT_FILE}, fold {number}"
        roles = {role: fold.get(role, []) for role in ROLES}
        if unknown := sorted({case for names in roles.values() for case in names} - set(cases)):
            raise CollabError(f"{where}: it must name cases of the dataset; there is no {listed(unknown)}. {fix}")
        check_roles(where, roles, patient_of, fix)


def check_roles(where: str, roles: Mapping[str, Sequence[str]], patient_of: PatientOf, fix: str) -> None:
    """Refuse a case or a patient with two roles.

    Args:
        where: Of the split, for the message.
        roles: Role -> cases.
        patient_of: Case -> patient.
        fix: What to do about it.

    Raises:
        CollabError: Naming case or patient and both roles.
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
    """Let few training patients of each fold keep their labels; the others become "unlabeled".

    The training cases of a fold are its "train" and "unlabeled" together. They are drawn anew in each fold. With the
    same folds and seed, a smaller choice is part of a larger one.

    Args:
        folds: A valid split.
        patient_of: Case -> patient.
        labeled: How many patients, or which share of the fold's training patients (rounded, at least one).
        seed: Of the drawing.

    Raises:
        CollabError: If a fold has fewer training patients than asked for.
    """
    rng = random.Random(seed)
    result = []
    fewest = min(len({patient_of(case) for case in _pool(fold)}) for fold in folds)
    for number, fold in enumerate(folds):
        order = shuffled({patient_of(case) for case in _pool(fold)}, rng)
        count = number_of_patients(labeled, len(order))
        if count > len(order):
            raise CollabError(
                f"--labeled: fold {number} has {len(order)} training patients; got {count}. Ask for at most {fewest}."
            )
        chosen = [case for case in _pool(fold) if patient_of(case) in order[:count]]
        result.append(_roles(_pool(fold), fold["val"], chosen))
    return result


def with_named_labels(cases: Iterable[str], labeled: Collection[str], patient_of: PatientOf, folds: int) -> Split:
    """Folds in which the named cases are labeled everywhere and the others are validated on in turn.

    Args:
        cases: All names.
        labeled: Those that keep their labels, whole patients (`named_cases`).
        patient_of: Case -> patient.
        folds: At least 2; fewer come out if there are fewer other patients.

    Raises:
        CollabError: If fewer than two other patients remain.
    """
    others = sorted(set(cases) - set(labeled))
    patients = sorted({patient_of(case) for case in others})
    if len(patients) < 2:
        raise CollabError(
            "--labeled: the named patients are labeled in every fold, so at least two others must be there to "
            f"validate on; found {len(patients)} ({listed(patients) or 'none'}). Name fewer patients."
        )
    return [
        _roles([*labeled, *fold["train"]], fold["val"], labeled)
        for fold in patient_folds(others, patient_of, folds=folds)
    ]


def named_cases(names: Iterable[str], cases: Collection[str], patient_of: PatientOf) -> list[str]:
    """The cases that a list of patients and cases stands for, sorted.

    Raises:
        CollabError: If a name is unknown, or a case is named whose patient has cases that are not.
    """
    names = list(dict.fromkeys(names))
    by_patient: dict[str, list[str]] = {}
    for case in sorted(cases):
        by_patient.setdefault(patient_of(case), []).append(case)
    if unknown := [name for name in names if name not in by_patient and name not in cases]:
        hint = " A share is written with a percent sign: 10%." if any(re.match(r"[\d.]+$", n) for n in unknown) else ""
        raise CollabError(
            f"--labeled: names must be patients or cases of imagesTr; there is no {listed(unknown)}. There are the "
            f"patients {listed(sorted(by_patient))}. Correct the names.{hint}"
        )
    chosen = {case for name in names for case in by_patient.get(name, [name])}
    for patient in sorted({patient_of(case) for case in chosen}):
        if missing := [case for case in by_patient[patient] if case not in chosen]:
            raise CollabError(
                f"--labeled: a patient must be labeled as a whole or not at all; {patient} also has "
                f"{listed(missing)}. Name the patient, {patient}, instead of cases."
            )
    return sorted(chosen)


def drawn_cases(cases: Collection[str], patient_of: PatientOf, labeled: int | Fraction, seed: int) -> list[str]:
    """The cases of patients drawn from a whole dataset, sorted; a smaller choice is part of a larger one.

    Raises:
        CollabError: If there are fewer patients than asked for.
    """
    order = shuffled({patient_of(case) for case in cases}, random.Random(seed))
    count = number_of_patients(labeled, len(order))
    if count > len(order):
        raise CollabError(f"--labeled: the dataset has {len(order)} patients; got {count}. Ask for fewer.")
    return sorted(case for case in cases if patient_of(case) in order[:count])


def number_of_patients(labeled: int | Fraction, total: int) -> int:
    """How many of `total` patients are meant; a share is rounded (half upwards), to at least one."""
    if isinstance(labeled, int):
        return labeled
    return max(1, int(total * labeled + Fraction(1, 2)))


def _pool(fold: dict[str, list[str]]) -> list[str]:
    return [*fold["train"], *fold.get("unlabeled", [])]


def _roles(pool: Iterable[str], val: Iterable[str], labeled: Collection[str]) -> dict[str, list[str]]:
    rest = sorted(set(pool) - set(labeled))
    return {"train": sorted(set(labeled)), "val": sorted(val), "unlabeled": rest}
