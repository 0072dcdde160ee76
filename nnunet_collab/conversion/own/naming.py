"""The names of cases and patients in the dataset: numbers, unless the user keeps the names; and the key table.

The key table tells which scan became which case. It is written where the user says, never into nnU-Net's folders. If it
is there already, its cases keep their numbers, and new cases get new ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from nnunet_collab.conversion.own.patients import Roles
from nnunet_collab.core.csv_text import restored, write_csv
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.names import name_fault
from nnunet_collab.core.nnunet_folders import PREPROCESSED, RAW, RESULTS

COLUMNS = ["case", "source", "patient", "source_patient"]


def name_cases(roles: Roles, *, keep: bool, key: Path | None, problems: list[str]) -> dict[str, str]:
    """Role/key -> name of the case in the dataset.

    Args:
        roles: Role -> cases.
        keep: Whether cases keep their names, with _ instead of / and spaces.
        key: The key table, or None.
        problems: A line is added for each kept name that cannot be used.

    Raises:
        CollabError: If the key table is not one.
    """
    names = [f"{role}/{case.key}" for role, cases in roles.items() for case in cases]
    if not keep:
        return numbered("case", names, _known(key, "source", "case"), in_roles=True)
    kept = {name: re.sub(r"[/\s]+", "_", name.partition("/")[2]) for name in names}
    for name, case in kept.items():
        if fault := name_fault(case):
            problems.append(f"case {name}: with --keep_names its name becomes a file name: {fault}. Rename it.")
    for case in sorted({case for case in kept.values() if list(kept.values()).count(case) > 1}):
        holders = [name for name, other in kept.items() if other == case]
        problems.append(
            f"case {case}: with --keep_names every name must occur once; found in {listed(holders)}. Rename all but "
            "one, or leave --keep_names out."
        )
    return kept


def name_patients(patients: Mapping[str, str], *, keep: bool, key: Path | None) -> dict[str, str]:
    """Patient in the source -> patient in the dataset: a number, or its own name if it is kept."""
    names = list(dict.fromkeys(patients.values()))
    return (
        {name: name for name in names} if keep else numbered("patient", names, _known(key, "source_patient", "patient"))
    )


def numbered(word: str, names: Iterable[str], known: Mapping[str, str], *, in_roles: bool = False) -> dict[str, str]:
    """Name -> word and number. Known names keep their numbers; the others get the numbers after the highest one.

    With `in_roles`, names are role/name, and a name is also known without its role: a scan that is labeled changes it.
    """
    names = list(names)
    result: dict[str, str] = {}
    bare: dict[str, list[str]] = {}
    for name in known:
        bare.setdefault(name.partition("/")[2], []).append(name)
    taken: set[str] = set()
    for name in names:
        moved = bare.get(name.partition("/")[2], []) if in_roles else []
        old = name if name in known else moved[0] if len(moved) == 1 and moved[0] not in names else None
        if old is not None and known[old] not in taken:
            result[name] = known[old]
            taken.add(known[old])
    numbers = [int(match[1]) for value in known.values() if (match := re.search(r"(\d+)$", value))]
    following = max(numbers, default=0)
    for name in names:
        if name not in result:
            following += 1
            result[name] = f"{word}_{following:04d}"
    return result


def check_key(key: Path | None) -> None:
    """Refuse a place of the key table inside nnU-Net's folders, which are passed on, or that is a folder.

    Raises:
        CollabError: If so.
    """
    if key is None:
        return
    place = key.absolute().resolve()
    for variable in (RAW, PREPROCESSED, RESULTS):
        root = os.environ.get(variable)
        if root and Path(root).absolute().resolve() in place.parents:
            raise CollabError(
                f"--key: the key table tells whose scan is which, so it must not lie in {variable}, which is passed "
                f"on; got {key}. Choose a file elsewhere."
            )
    if key.is_dir() or not key.absolute().parent.is_dir():
        raise CollabError(f"--key: it must be a file in an existing folder; got {key}. Correct the path.")


def write_key(
    key: Path, cases: Mapping[str, str], patients: Mapping[str, str], source_patients: Mapping[str, str]
) -> None:
    """Write the key table: case, source, and both names of the patient. Lines of cases that are gone are kept.

    Args:
        key: The file.
        cases: Role/key -> case.
        patients: Case -> patient in the dataset; may be empty.
        source_patients: Role/key -> patient in the source; may be empty.
    """
    rows = [[case, name, patients.get(case, ""), source_patients.get(name, "")] for name, case in cases.items()]
    if key.is_file():
        old = _read(key)
        gone = old[~old["case"].isin([row[0] for row in rows])]
        rows = [*rows, *gone[COLUMNS].to_numpy().tolist()]
    write_csv(pd.DataFrame(rows, columns=COLUMNS), key)
    key.chmod(0o600)  # it names people


def _known(key: Path | None, name: str, value: str) -> dict[str, str]:
    if key is None or not key.is_file():
        return {}
    table = _read(key)
    return {n: v for n, v in zip(table[name], table[value], strict=True) if n and v}


def _read(key: Path) -> pd.DataFrame:
    try:
        table = restored(pd.read_csv(key, dtype=str, keep_default_na=False, encoding="utf-8"))
        if set(COLUMNS) <= set(table):
            return table
        found = f"its columns are {listed(list(map(str, table)))}"
    except (OSError, ValueError) as error:
        found = str(error).splitlines()[0]
    raise CollabError(
        f"--key: {key} exists, so it must be a key table of an earlier conversion; it is not ({found}). Choose another "
        "file."
    )
