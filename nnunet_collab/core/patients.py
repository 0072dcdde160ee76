"""The patient of each case, from `patients.csv` beside dataset.json or the entry `patient_pattern` in it.

`nnunet_collab convert` writes one of the two. A pattern finds the patient in the case's name. A table with the columns
`case` and `patient` is for names that do not tell. If there are both, the table counts. dataset.json is copied to many
places, such as folders of predictions, and its entry `patients` says where the table is below nnU-Net's folders.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_collab.core.csv_text import original
from nnunet_collab.core.errors import CollabError, listed

PATIENTS = "patients"  # entry of dataset.json: DatasetXXX_NAME/patients.csv
PATIENTS_FILE = "patients.csv"

PatientOf = Callable[[str], str]
PatientRule = str | Mapping[str, str] | None  # a pattern, a table case -> patient, or nothing known


def patient_rule(dataset_json: Mapping[str, Any], *folders: Path) -> PatientRule:
    """What a dataset says of its patients.

    Args:
        dataset_json: Content of its dataset.json.
        folders: Folders in which patients.csv is searched first; then it is searched where dataset.json says, below
            nnUNet_preprocessed and nnUNet_raw.

    Returns:
        The table if there is one, else the entry `patient_pattern`, else None.

    Raises:
        CollabError: If dataset.json names a table that is not found, or if the table is not usable (`read_patients`).
    """
    entry = dataset_json.get(PATIENTS)
    places = [folder / PATIENTS_FILE for folder in folders]
    if entry is not None:
        roots = [os.environ.get(variable) for variable in ("nnUNet_preprocessed", "nnUNet_raw")]
        places += [Path(root, str(entry)) for root in roots if root]
    for place in places:
        if place.is_file():
            return read_patients(place)
    if entry is not None:
        raise CollabError(
            f"{PATIENTS_FILE}: dataset.json says that this table names the patient of each case, so it must be at "
            f"{' or '.join(dict.fromkeys(map(str, places)))}; it is not. Copy it there from nnUNet_raw. Without it, "
            "images of one patient could be trained on and validated on."
        )
    return dataset_json.get("patient_pattern")


def copy_patients(source: Path, target: Path, name: str) -> dict[str, str]:
    """Take the table of a raw dataset along into a new one that is being written.

    Args:
        source: Folder of the raw dataset.
        target: Folder in which the new one is being written.
        name: Name that the new dataset will have, DatasetXXX_NAME.

    Returns:
        The entry of dataset.json that names the new table; empty without a table.
    """
    if not (source / PATIENTS_FILE).is_file():
        return {}
    shutil.copyfile(source / PATIENTS_FILE, target / PATIENTS_FILE)
    return {PATIENTS: f"{name}/{PATIENTS_FILE}"}


def read_patients(path: Path) -> dict[str, str]:
    """A table with the columns `case` and `patient`: case -> patient.

    Raises:
        CollabError: If the file cannot be read, lacks a column, or has a row without a case or a patient, or a case
            twice; the message lists all of them.
    """
    fix = 'It must be a CSV file in UTF-8 whose first line is "case,patient".'
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Spreadsheets of some countries write semicolons.
        delimiter = ";" if ";" in text.partition("\n")[0] else ","
        rows = list(csv.reader(text.splitlines(), delimiter=delimiter, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise CollabError(
            f"{path}: it must be a table of patients that can be read; it is not ({error}). {fix}"
        ) from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not {"case", "patient"} <= set(header):
        raise CollabError(f"{path}: its columns must be case and patient; they are {listed(header) or 'none'}. {fix}")
    columns = header.index("case"), header.index("patient")
    table: dict[str, str] = {}
    faults = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        case, patient = (original(row[i].strip()) if i < len(row) else "" for i in columns)
        if not case or not patient:
            faults.append(f"line {number} must name a case and a patient")
        elif table.setdefault(case, patient) != patient:
            faults.append(f"line {number} gives {case} another patient than a line above")
    if faults or not table:
        raise CollabError(f"{path}: {'; '.join(faults) or 'it names no case'}. Correct the table. {fix}")
    return table


def patient_lookup(rule: PatientRule, cases: Iterable[str] = (), where: str = PATIENTS_FILE) -> PatientOf:
    """A function from a case's name to its patient.

    Args:
        rule: A table (case -> patient), a pattern (`_of_pattern`), or None: every case is a separate patient.
        cases: Case names that must have a patient. The returned function raises the same error for any other name that
            has none.
        where: Name of the table, for the message.

    Raises:
        CollabError: If a case has no patient, or if the pattern is not usable.
    """
    if not isinstance(rule, Mapping):
        return _of_pattern(rule, cases)
    table = rule

    def missing(names: Iterable[str]) -> CollabError:
        return CollabError(
            f"{where}: it must name the patient of every case; it has no line for {listed(list(names))}. Add the "
            "lines CASE,PATIENT."
        )

    def patient_of(case: str) -> str:
        if case not in table:
            raise missing([case])
        return table[case]

    if unknown := [case for case in cases if case not in table]:
        raise missing(unknown)
    return patient_of


def _of_pattern(pattern: str | None, cases: Iterable[str]) -> PatientOf:
    """`patient_lookup` for a regular expression that matches a whole case name; its first group is the patient.

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
