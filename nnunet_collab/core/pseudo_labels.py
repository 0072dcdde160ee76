"""Tell pseudo labels from true ones. Everything that reads labels asks here.

dataset.json of a dataset with pseudo labels names their cases, with a checksum of each label file:

    "pseudo_labels": {"of": "Dataset123_X", "round": 1, "cases": {"CASE": "<SHA-256>", ...}, ...}

nnU-Net copies dataset.json to its preprocessed data, to each model, and to each folder of predictions. So the entry
stands beside labels (then the names count), and beside predictions of a model that learned from pseudo labels. Labels
that are compared with such predictions may be true labels of the same cases, so there the checksum counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.json_files import json_object_or_empty, shown

MARK = "pseudo_labels"  # entry of dataset.json
TABLE = "pseudo_labels.csv"  # origin and confidence of every case, in the raw dataset


def pseudo_labeled(dataset_json: Mapping[str, Any], where: str = "dataset.json") -> dict[str, str]:
    """Cases whose labels are pseudo labels -> SHA-256 of the label file; empty for an ordinary dataset.

    Args:
        dataset_json: Content of dataset.json.
        where: Its path, for the message.

    Raises:
        CollabError: If the entry is damaged: then nobody knows which labels are true.
    """
    if MARK not in dataset_json:
        return {}
    mark = dataset_json[MARK]
    cases = mark.get("cases") if isinstance(mark, dict) else None
    if not isinstance(cases, dict) or not all(isinstance(digest, str) for digest in cases.values()):
        raise CollabError(
            f"{where}: {MARK} must name the cases with pseudo labels and their checksums; it is {shown(mark)}. Write "
            "the dataset again with nnunet_collab pseudo_label."
        )
    return cases


def source_of(dataset_json: Mapping[str, Any]) -> str | None:
    """The dataset with the true labels from which a dataset with pseudo labels was made, or None."""
    mark = dataset_json.get(MARK)
    return mark.get("of") if isinstance(mark, dict) else None


def pseudo_labels_in(labels: Path, ending: str, cases: Iterable[str], elsewhere: Iterable[Path] = ()) -> set[str]:
    """Those of the cases whose file in a folder of labels is a pseudo label.

    Args:
        labels: Folder of labels: labelsTr, gt_segmentations, or a copy of it.
        ending: Ending of the label files.
        cases: Names of cases.
        elsewhere: Further dataset.json, such as that of predictions; they are compared by checksum.

    Raises:
        CollabError: If the entry in a dataset.json is damaged.
    """
    asked = set(cases)
    beside = [labels / "dataset.json", labels.resolve().parent / "dataset.json"]
    found = {case for path in beside for case in pseudo_labeled(json_object_or_empty(path), str(path))} & asked
    for path in elsewhere:
        for case, digest in pseudo_labeled(json_object_or_empty(path), str(path)).items():
            file = labels / f"{case}{ending}"
            if case in asked - found and file.is_file() and file_digest(file) == digest:
                found.add(case)
    return found


def refuse_pseudo_labels(dataset_json: Mapping[str, Any], where: str, purpose: str) -> None:
    """Raise if the dataset has pseudo labels.

    Args:
        dataset_json: Content of dataset.json.
        where: The dataset or the option; it starts the message.
        purpose: What needs true labels, as a subject: "a split".

    Raises:
        CollabError: If it has; the message names the dataset with the true labels.
    """
    if marked := sorted(pseudo_labeled(dataset_json, where)):
        raise CollabError(
            f"{where}: {purpose} needs true labels; {len(marked)} of its cases have pseudo labels ({listed(marked)}). "
            f"Use the dataset from which it was made, {source_of(dataset_json)}."
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
