"""Write a public dataset as an nnU-Net raw dataset: what every converter shares.

A converter lists the cases of its source and describes the dataset (`RawDataset`); `write_raw_dataset` does the rest:

1. It refuses a wrong target and a faulty source before anything is written, with all faults in one message.
2. It writes images, labels, `dataset.json` and a split by patient into a hidden folder beside the target and renames
   it at the end, so that an interruption leaves no half dataset.

Geometry is never changed: images are copied bit for bit where nnU-Net reads their format; labels become uint8 on the
grid of their image. Labels of test cases go to `labelsTs`, which nnU-Net's training never opens.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import SimpleITK as sitk
from tqdm import tqdm

from nnunet_collab import __version__
from nnunet_collab.core.errors import CollabError
from nnunet_collab.data.source_check import Case, SourceRules, read_image, same_grid, to_nnunet_label, verify_pairs

SPLIT_SEED = 12345  # the seed of nnU-Net's own split
SPLIT_FILE = "splits_final.json"
CONVERTED = {"imagesTr", "labelsTr", "imagesTs", "labelsTs", "dataset.json", SPLIT_FILE}

Split = list[dict[str, list[str]]]


@dataclass(frozen=True)
class DatasetInfo:
    """What goes into dataset.json.

    Attributes:
        channel_names: Channel number -> name. nnU-Net chooses the normalisation by it ("CT" is special).
        labels: Name -> value, or list of values for regions; "background" is 0.
        file_ending: Of all files, with its dot.
        patient_pattern: Regular expression that matches a whole case name; its first group is the patient.
        extra: Further entries, such as regions_class_order.
    """

    channel_names: Mapping[str, str]
    labels: Mapping[str, int | list[int]]
    file_ending: str
    patient_pattern: str
    description: str
    licence: str
    citation: str
    reference: str
    extra: Mapping[str, object] = field(default_factory=dict)

    def patient_of(self, case_name: str) -> str:
        """The patient of a case.

        Raises:
            ValueError: If the pattern does not match the name.
        """
        match = re.fullmatch(self.patient_pattern, case_name)
        if match is None:
            raise ValueError(f"patient_of: case {case_name!r} does not match the pattern {self.patient_pattern!r}")
        return match.group(1)


@dataclass(frozen=True)
class Target:
    """Where the dataset goes: `$nnUNet_raw/DatasetXXX_NAME`."""

    dataset_id: int
    name: str
    overwrite: bool = False

    @property
    def folder(self) -> str:
        """Name of the dataset's folder."""
        return f"Dataset{self.dataset_id:03d}_{self.name}"


@dataclass(frozen=True)
class RawDataset:
    """A source as a converter found it.

    Attributes:
        train: Cases with labels.
        test: Cases with or without labels.
        groups: Patient -> group (a diagnosis, a centre) that the folds are balanced over; may be empty.
        problems: Faults found while listing the files, one line each.
    """

    info: DatasetInfo
    rules: SourceRules
    train: Sequence[Case]
    test: Sequence[Case] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()


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
    rng = random.Random(seed)  # its shuffle gives the same order on every platform and Python version
    order = [patient for group in sorted(groups) for patient in rng.sample(groups[group], len(groups[group]))]
    if len(order) < 2:
        raise CollabError(few_patients(order))
    fold_of = {patient: i % min(folds, len(order)) for i, patient in enumerate(order)}
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
