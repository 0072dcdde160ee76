"""Who is labeled, unlabeled and validated on in a training: dealt, checked, and the same when it continues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_json
from nnunet_collab.core.patients import patient_lookup
from nnunet_collab.splits.few_labels import check_roles
from nnunet_collab.splits.patient_folds import patient_folds


class CaseRoles:
    """Names of the cases of a run by role; part of its checkpoints.

    Attributes:
        cases: Role -> sorted names.
    """

    def __init__(self) -> None:
        self.cases: dict[str, list[str]] = {}

    def require_same_cases(self, role: str, names: Iterable[str]) -> None:
        """Remember who has a role, or compare with whom the run began.

        A label seen before an interruption would otherwise be of a validation case after it, without a word.

        Raises:
            CollabError: If the run began with other cases.
        """
        now = sorted(names)
        before = self.cases.setdefault(role, now)
        if now != before:
            gone, new = (sorted({*a} - {*b}) for a, b in ((before, now), (now, before)))
            changes = [f"{what}: {listed(cases)}" for what, cases in (("not there now", gone), ("new", new)) if cases]
            raise CollabError(
                f"cases of role {role!r}: a training is continued and validated with the cases it began with; "
                f"{'; '.join(changes)}. Restore splits_final.json and the images (nnunet_collab split keeps the former "
                f"split beside the new one), or start a new training under another run_name."
            )


def deal_by_patient(splits: Path, folder: Path, dataset_json: dict[str, Any]) -> bool:
    """Write folds by patient where there is no split and dataset.json has a `patient_pattern`.

    nnU-Net itself deals by case, and the second image of a patient who is validated on would be trained with.

    Args:
        splits: Where nnU-Net looks for the split.
        folder: Preprocessed cases of the configuration.
        dataset_json: Of the dataset.

    Returns:
        Whether it was written.

    Raises:
        CollabError: If the pattern does not match a case, or there is one patient only.
    """
    pattern = dataset_json.get("patient_pattern")
    if pattern is None or splits.is_file():
        return False
    cases = sorted(path.stem for path in folder.glob("*.pkl"))
    write_json(splits, patient_folds(cases, patient_lookup(pattern, cases)))
    return True


def refuse_missing(where: str, missing: Sequence[str], folder: Path) -> None:
    """Raise if cases that a split names are not preprocessed, before a worker stumbles over one.

    Args:
        where: Of the split, for the message.
        missing: Names of these cases.
        folder: Where they should be.

    Raises:
        CollabError: Naming them.
    """
    if missing:
        raise CollabError(
            f"{where}: must name preprocessed cases; {folder} has no {listed(missing)}. Correct the names, or run "
            f"nnUNetv2_preprocess for the configuration."
        )


def check_patients(where: str, roles: Mapping[str, list[str]], dataset_json: Mapping[str, Any]) -> None:
    """Raise if a case, or a patient as far as the dataset tells them apart, has two roles.

    Args:
        where: Of the split, for the message.
        roles: Role -> cases.
        dataset_json: Of the dataset; `patient_pattern` finds the patient in a case's name.

    Raises:
        CollabError: Naming case or patient and the roles.
    """
    cases = [case for names in roles.values() for case in names]
    patient_of = patient_lookup(dataset_json.get("patient_pattern"), cases)
    check_roles(where, roles, patient_of, "Write the split again: nnunet_collab split.")
