"""The patient of each case, from the entry `patient_pattern` of dataset.json, which `nnunet_collab convert` writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from nnunet_collab.core.errors import CollabError, listed

PatientOf = Callable[[str], str]


def patient_lookup(pattern: str | None, cases: Iterable[str] = ()) -> PatientOf:
    """A function from a case's name to its patient.

    Args:
        pattern: Regular expression that matches a whole case name; its first group is the patient. With None, every
            case is a separate patient.
        cases: Case names that the pattern must match. The returned function raises the same error for any other name
            that does not match.

    Raises:
        CollabError: If the pattern is not a regular expression, has no group, or does not match a case.
    """
    if pattern is None:
        return str
    rule = f"patient_pattern must match whole case names, and its first group is the patient; got {pattern!r}"
    fix = r"Correct it in dataset.json or on the command line, e.g. '(patient\d+)_.*'."
    try:
        regex = re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise CollabError(f"{rule}, which is not a regular expression ({error}). {fix}") from error
    if regex.groups < 1:
        raise CollabError(f"{rule}, which has no group. {fix}")

    def patient(case: str) -> str | None:
        match = regex.fullmatch(case)
        return match.group(1) if match else None

    def patient_of(case: str) -> str:
        name = patient(case)
        if not name:
            raise CollabError(f"{rule}, which finds no patient in {case}. {fix}")
        return name

    if unmatched := [case for case in cases if not patient(case)]:
        raise CollabError(f"{rule}, which finds no patient in {listed(unmatched)}. {fix}")
    return patient_of
