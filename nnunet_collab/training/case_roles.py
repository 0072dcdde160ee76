"""Roles of the cases of a training (labeled, unlabeled, validation): assign, check, keep on resume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_json
from nnunet_collab.core.patients import patient_lookup, patient_rule
from nnunet_collab.core.pseudo_labels import pseudo_labeled, refuse_pseudo_labels
from nnunet_collab.splits.few_labels import check_roles
from nnunet_collab.splits.patient_folds import patient_folds


class CaseRoles:
    """Names of the cases of a run by role. They are part of its checkpoints.

    Attributes:
        cases: Role -> sorted names.
    """

    def __init__(self) -> None:
        self.cases: dict[str, list[str]] = {}

    def require_same_cases(self, role: str, names: Iterable[str]) -> None:
        """Record the cases of a role at the start of a run, and require the same cases when it continues.

        Otherwise a case could be trained on before an interruption and validated on after it, unnoticed.

        Raises:
            CollabError: If the run started with other cases.
        """
        now = sorted(names)
        before = self.cases.setdefault(role, now)
        if now != before:
            gone, new = (sorted({*a} - {*b}) for a, b in ((before, now), (now, before)))
            changes = [f"{what}: {listed(cases)}" for what, cases in (("missing now", gone), ("new", new)) if cases]
            raise CollabError(
                f"cases of role {role!r}: a training must continue and be validated with the cases it started with; "
                f"{'; '.join(changes)}. Restore splits_final.json and the images (nnunet_collab split keeps the "
                f"previous split next to the new one), or start a new training under another run_name."
            )


def deal_by_patient(splits: Path, folder: Path, dataset_json: dict[str, Any]) -> bool:
    """Write folds by patient if there is no split and the dataset says which cases belong to one patient.

    nnU-Net itself splits by case: one image of a patient could be in training and another one in validation.

    Args:
        splits: Path of nnU-Net's `splits_final.json`.
        folder: Folder of the configuration's preprocessed cases.
        dataset_json: Content of dataset.json.

    Returns:
        Whether the split was written.

    Raises:
        CollabError: If a case has no patient, there is only one patient, or cases have pseudo labels: they would become
            validation cases.
    """
    if splits.is_file():
        return False
    refuse_pseudo_labels(dataset_json, f"{splits}, which is missing", "a new split")
    if (rule := patient_rule(dataset_json, splits.parent)) is None:
        return False
    cases = sorted(path.stem for path in folder.glob("*.pkl"))
    write_json(splits, patient_folds(cases, patient_lookup(rule, cases)))
    return True


def refuse_missing(where: str, missing: Sequence[str], folder: Path) -> None:
    """Raise if a split names cases that are not preprocessed. Without this check, a loader worker would fail later.

    Args:
        where: Path and fold of the split, for the message.
        missing: Names of the cases that are not preprocessed.
        folder: Folder in which they should be.

    Raises:
        CollabError: If there are any; the message names them.
    """
    if missing:
        raise CollabError(
            f"{where}: must name preprocessed cases; {folder} lacks {listed(missing)}. Correct the names, or run "
            f"nnUNetv2_preprocess for the configuration."
        )


def check_patients(where: str, roles: Mapping[str, list[str]], dataset_json: Mapping[str, Any], *folders: Path) -> None:
    """Raise if a case has two roles, or a patient if the dataset says which cases belong to one patient.

    Also raise if validation cases have pseudo labels.

    Args:
        where: Path and fold of the split, for the message.
        roles: Role -> names of its cases.
        dataset_json: Content of dataset.json; see `core.patients`.
        folders: Folders that may hold patients.csv.

    Raises:
        CollabError: If so; the message names the case or patient and the roles. Also if a validation case has a pseudo
            label: a training would be scored by what a network said.
    """
    if pseudo := sorted(pseudo_labeled(dataset_json).keys() & {*roles.get("val", ())}):
        raise CollabError(
            f"{where}: validation cases must have true labels; these have pseudo labels: {listed(pseudo)}. Restore "
            "the split that nnunet_collab pseudo_label wrote into the raw dataset."
        )
    cases = [case for names in roles.values() for case in names]
    patient_of = patient_lookup(patient_rule(dataset_json, *folders), cases)
    check_roles(where, roles, patient_of, "Write the split again: nnunet_collab split.")
