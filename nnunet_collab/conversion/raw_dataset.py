"""Write a public dataset as an nnU-Net raw dataset. All converters use this module.

A converter lists the cases of its source and describes the dataset (`RawDataset`); `write_raw_dataset` does the rest:

1. It checks the target and the source before it writes anything, and reports all faults of the source in one message.
2. It writes images, labels, `dataset.json` and a split by patient to a hidden folder beside the target and renames it
   at the end, so that an interruption leaves no incomplete dataset. The next run continues it (`raw_cases`).

The geometry is never changed. Images are copied bit by bit if nnU-Net reads their format. Labels become uint8 on the
grid of their image. Labels of test cases go to `labelsTs`, which nnU-Net's training never opens. With a few-label
protocol (`labeled_protocol`) the images of the other patients go to `imagesUn`, and their labels are not written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nnunet_collab import __version__
from nnunet_collab.conversion.labeled_protocol import PublishedOrder, choose, parse_protocol
from nnunet_collab.conversion.raw_cases import Roles, complete_cases, finish, write_cases
from nnunet_collab.conversion.raw_target import Target, contents, raw_folder, refuse_full_disk, split_path
from nnunet_collab.conversion.source_check import Case, SourceRules, verify_pairs
from nnunet_collab.core.csv_text import write_csv
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_json
from nnunet_collab.core.nnunet_folders import SPLIT_FILE, Split
from nnunet_collab.core.patients import PATIENTS, PATIENTS_FILE
from nnunet_collab.splits.patient_folds import few_patients, patient_folds


@dataclass(frozen=True)
class DatasetInfo:
    """Content of dataset.json.

    Attributes:
        channel_names: Channel number -> name. nnU-Net chooses the normalization by the name ("CT" is special).
        labels: Name -> value, or list of values for regions; "background" is 0.
        file_ending: Ending of all files, with its dot.
        patient_pattern: Regular expression that matches a whole case name; its first group is the patient.
        extra: Additional entries, such as regions_class_order.
        patients: Case -> patient, for names that do not tell the patient; written as patients.csv. None: the pattern
            tells.
    """

    channel_names: Mapping[str, str]
    labels: Mapping[str, int | list[int]]
    file_ending: str
    patient_pattern: str
    description: str
    license: str
    citation: str
    reference: str
    extra: Mapping[str, object] = field(default_factory=dict)
    patients: Mapping[str, str] | None = None

    def patient_of(self, case_name: str) -> str:
        """The patient of a case.

        Raises:
            ValueError: If the pattern does not match the name.
        """
        if self.patients is not None:
            return self.patients[case_name]
        match = re.fullmatch(self.patient_pattern, case_name)
        if match is None:
            raise ValueError(f"patient_of: case {case_name!r} does not match the pattern {self.patient_pattern!r}")
        return match.group(1)


@dataclass(frozen=True)
class RawDataset:
    """The cases of a source, as listed by a converter.

    Attributes:
        info: Content of dataset.json.
        rules: Rules for the files of the source.
        train: Training cases; all have labels.
        test: Test cases, with or without labels.
        groups: Patient -> group (a diagnosis, a center) for balancing the folds; may be empty.
        problems: Faults found while listing the files, one line each.
        validation: Validation patients of a published split, which has one fold. If empty, five folds are made by
            patient.
        split: Source of the division into training, validation and test cases, in a sentence for dataset.json.
        order: Published order of the training patients, for the few-label protocols, or None.
        unlabeled: Cases without labels, which go to imagesUn.
    """

    info: DatasetInfo
    rules: SourceRules
    train: Sequence[Case]
    test: Sequence[Case] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    validation: Sequence[str] = ()
    split: str = ""
    order: PublishedOrder | None = None
    unlabeled: Sequence[Case] = ()


def write_raw_dataset(dataset: RawDataset, target: Target) -> Path:
    """Check target and source, write the dataset and its split, and print their paths.

    Args:
        dataset: The cases of the source.
        target: The dataset to write, and the number of patients that keep their labels.

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If the target is refused (`raw_folder`, `split_path`, `refuse_full_disk`), if the protocol is
            refused (`parse_protocol`, `choose`), or if the source has faults; then the message lists all of them.
            Nothing is written then.
    """
    folder = raw_folder(target)
    protocol = None if target.labeled is None else parse_protocol(target.labeled, target.seed)
    cases = [*dataset.train, *dataset.unlabeled, *dataset.test]
    unlabeled = f", {len(dataset.unlabeled)} unlabeled" if dataset.unlabeled else ""
    print(f"Converting {len(dataset.train)} training{unlabeled} and {len(dataset.test)} test cases into {folder}.")
    found_problems = [*dataset.problems, *_role_problems(dataset), *verify_pairs(cases, dataset.rules)]
    problems = list(dict.fromkeys(found_problems))
    if problems:
        found = "one fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise CollabError("\n- ".join([f"convert: the source has {found}, so nothing was written:", *problems]))
    roles: Roles = {"Tr": dataset.train, "Ts": dataset.test}
    if dataset.unlabeled:
        roles = {"Tr": dataset.train, "Un": dataset.unlabeled, "Ts": dataset.test}
    facts = _dataset_json(dataset, target)
    if protocol is not None:
        choice = choose(
            dataset.train, dataset.info.patient_of, protocol, validation=dataset.validation, order=dataset.order
        )
        roles = {"Tr": choice.labeled, "Un": [*choice.unlabeled, *dataset.unlabeled], "Ts": dataset.test}
        facts |= {"numTraining": len(choice.labeled), "labeled_protocol": choice.record}
    split = _split(roles["Tr"], dataset)
    split_file = split_path(target, split)

    partial = folder.with_name(f".{folder.name}.partial")
    header = {"dataset.json": facts, "label_values": sorted(dataset.rules.label_values.items())}
    kept = complete_cases(partial, header, roles)
    remaining = [case for role, members in roles.items() for case in members if f"{role}/{case.name}" not in kept]
    refuse_full_disk([path for case in remaining for path in case.sources], folder)
    if partial.exists():
        _announce_partial(partial, len(kept), len(remaining))
    if folder.exists():
        print(f"Replacing {folder}, which held {contents(folder)}.")
    write_cases(partial, header, roles, dataset.rules, dataset.info.file_ending, kept)
    write_json(partial / "dataset.json", facts)
    if split:
        write_json(partial / SPLIT_FILE, split)
    _write_split(split_file, split)
    _write_patients(dataset.info.patients, partial, split_file)
    finish(partial, folder)
    _print_summary(dataset, target, roles, folder, split_file, split)
    return folder


def _write_patients(patients: Mapping[str, str] | None, partial: Path, split_file: Path | None) -> None:
    """Write patients.csv, also beside the split: training may run where the raw dataset is not."""
    for folder in (partial, *([split_file.parent] if split_file else [])):
        if patients is None:
            (folder / PATIENTS_FILE).unlink(missing_ok=True)  # that of a replaced dataset
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(
                pd.DataFrame({"case": list(patients), "patient": list(patients.values())}), folder / PATIENTS_FILE
            )


def _role_problems(dataset: RawDataset) -> list[str]:
    problems = []
    for cases in (dataset.train, dataset.test):
        places: dict[str, list[str]] = {}
        for case in cases:
            places.setdefault(case.name, []).append(str(case.images[0]))
        problems += [
            f"case {name}: every name must occur once; found {' and '.join(paths)}. Remove all but one."
            for name, paths in places.items()
            if len(paths) > 1
        ]
    train, test = (
        {dataset.info.patient_of(case.name): case.images[0].parent for case in cases}
        for cases in (dataset.train, dataset.test)
    )
    problems += [
        f"patient {patient}: a patient must be either in training or in testing; found in {train[patient]} and in "
        f"{test[patient]}. Remove one of them."
        for patient in sorted(train.keys() & test.keys())
    ]
    without_labels = bool(dataset.unlabeled) and not dataset.train  # so that someone can draw them
    return problems if len(train) >= 2 or without_labels else [*problems, few_patients(sorted(train))]


def _split(cases: Sequence[Case], dataset: RawDataset) -> Split:
    """The folds of the labeled cases, in nnU-Net's format; empty if there are fewer than 2 patients."""
    patient_of = dataset.info.patient_of
    names = sorted(case.name for case in cases)
    held_out = [name for name in names if patient_of(name) in dataset.validation]
    if held_out and len(held_out) < len(names):
        return [{"train": [name for name in names if name not in held_out], "val": held_out}]
    if len({patient_of(name) for name in names}) < 2:
        return []
    return patient_folds(names, patient_of, group_of=lambda patient: dataset.groups.get(patient, ""))


def _write_split(path: Path | None, split: Split) -> None:
    """Write the split where training reads it. Without a split, remove the old file, which --overwrite allows."""
    if path is None:
        return
    if not split:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, split)


def _announce_partial(partial: Path, kept: int, remaining: int) -> None:
    if kept:
        print(f"Continuing {partial}, left by an interrupted conversion: {kept} cases complete, {remaining} remain.")
    else:
        print(f"Removing {partial}, left by an interrupted conversion: it has no complete case of this source.")
        shutil.rmtree(partial)


def _dataset_json(dataset: RawDataset, target: Target) -> dict[str, object]:
    info = dataset.info
    return {
        "name": target.name,
        **({"description": info.description} if info.description else {}),
        "channel_names": info.channel_names,
        "labels": info.labels,
        "numTraining": len(dataset.train),
        "file_ending": info.file_ending,
        **{key: getattr(info, key) for key in ("license", "citation", "reference") if getattr(info, key)},
        "converted_by": f"nnunet_collab {__version__}",
        **_patients_entry(info, target),
        **({"unlabeled_cases": [case.name for case in dataset.unlabeled]} if dataset.unlabeled else {}),
        **({"split": dataset.split} if dataset.split else {}),
        **info.extra,
    }


def _patients_entry(info: DatasetInfo, target: Target) -> dict[str, object]:
    if info.patients is None:
        return {"patient_pattern": info.patient_pattern}
    return {PATIENTS: f"{target.folder}/{PATIENTS_FILE}"}


def _print_summary(
    dataset: RawDataset, target: Target, roles: Roles, folder: Path, split_file: Path | None, split: Split
) -> None:
    patients = len({dataset.info.patient_of(case.name) for case in roles["Tr"]})
    unlabeled = f"{len(roles['Un'])} cases without labels in imagesUn, " if "Un" in roles else ""
    print(
        f"Wrote {folder}: {len(roles['Tr'])} training cases of {patients} patients, {unlabeled}{len(roles['Ts'])} test "
        "cases."
    )
    if dataset.split:
        print(f"Training and test: {dataset.split}")
    if not split:
        print(
            "There is no split file, because fewer than 2 patients have labels and none is left for validation. Train "
            "fold all."
        )
    elif split_file is not None:
        print(f"Split by patient, {len(split)} folds: {split_file} (copy: {folder / SPLIT_FILE}).")
    else:
        print(
            f"Split by patient, {len(split)} folds: {folder / SPLIT_FILE}. nnUNet_preprocessed is not set; before "
            f"training, this file must be at $nnUNet_preprocessed/{target.folder}/{SPLIT_FILE}. "
            "nnUNetv2_plan_and_preprocess copies it there. If you do not run that command, copy it yourself."
        )
    if 0 < len(split) < 5:
        only = "fold 0 only" if len(split) == 1 else f"folds 0 to {len(split) - 1} only"
        print(f"Train {only}: for higher numbers nnU-Net would split at random, not by patient.")
    if not roles["Tr"]:
        return
    print(f"Next: nnUNetv2_plan_and_preprocess -d {target.dataset_id} --verify_dataset_integrity")
    if "Un" in roles:
        print(f"Then: nnunet_collab preprocess_unlabeled -d {target.dataset_id} -c CONFIGURATION")
