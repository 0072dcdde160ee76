"""The patients of a user's cases: from a table, from a pattern, from DICOM's PatientID, or not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_collab.conversion.own.found_case import FoundCase
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.patients import patient_lookup, read_patients

Roles = Mapping[str, Sequence[FoundCase]]  # "train", "unlabeled", "test" -> cases


def patients_of(roles: Roles, table: Path | None, pattern: str | None, problems: list[str]) -> dict[str, str] | None:
    """Role/key -> patient; None if nothing is known, and every case counts as a separate patient.

    Args:
        roles: Role -> cases.
        table: CSV file with the columns case and patient, or None. A case is named as in the source (`FoundCase.key`),
            with its role in front if two folders have a case of this name,
            or by the folder that holds it alone.
        pattern: Regular expression for the names in the source, or None.
        problems: A line is added for each fault, such as a patient in two roles.

    Raises:
        CollabError: If there are both a table and a pattern, or if one of them is not usable.
    """
    if table is not None and pattern is not None:
        raise CollabError("--patients: it and --patient_pattern exclude each other; got both. Leave one of them out.")
    names = {f"{role}/{case.key}": case for role, cases in roles.items() for case in cases}
    if table is not None:
        found = _of_table(names, table, problems)
    elif pattern is not None:
        patient_of = patient_lookup(pattern, [case.key for case in names.values()])
        found = {name: patient_of(case.key) for name, case in names.items()}
    elif any(case.patient for case in names.values()):
        found = {name: case.patient or f"without PatientID {name}" for name, case in names.items()}
        if len(names) > 1 and len(set(found.values())) == 1:
            problems.append(
                "all DICOM files have the same PatientID, perhaps because names were removed. Say with --patients or "
                "--patient_pattern whose they are; --patient_pattern '(.+)' makes each case a patient."
            )
    else:
        return None
    problems += _two_roles(roles, found)
    return found


def _of_table(names: Mapping[str, FoundCase], table: Path, problems: list[str]) -> dict[str, str]:
    patients = read_patients(table)
    found: dict[str, str] = {}
    used: set[str] = set()
    missing = []
    for name, case in names.items():
        called = (name, case.key, *(() if case.patient else case.aliases))
        line = next((key for key in called if key in patients), None)
        if line is None:
            missing.append(case.key)
        else:
            used.add(line)
            found[name] = patients[line]
    if missing:
        problems.append(
            f"{table}: it must name the patient of every case; it has no line for {listed(missing)}. Add the lines "
            "CASE,PATIENT."
        )
    if unknown := [name for name in patients if name not in used]:
        problems.append(
            f"{table}: it must name cases of the source; there is no case {listed(unknown)}. A case is named as its "
            "file or folder, without ending. Correct or remove the lines."
        )
    return found


def _two_roles(roles: Roles, patients: Mapping[str, str]) -> list[str]:
    """Patients in the test set whose other images are trained on, with or without labels."""
    holders: dict[str, dict[str, str]] = {}
    for role, cases in roles.items():
        for case in cases:
            if patient := patients.get(f"{role}/{case.key}"):
                holders.setdefault(patient, {}).setdefault(role, str(case.images[0]))
    return [
        f"{of_patient['test']}: a test patient must have no other role; {of_patient[other]} is of the same patient. "
        "Move all images of a patient to one of the two."
        for of_patient in holders.values()
        for other in ("train", "unlabeled")
        if "test" in of_patient and other in of_patient
    ]
