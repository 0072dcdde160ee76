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
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import SimpleITK as sitk
from tqdm import tqdm

from nnunet_collab import __version__
from nnunet_collab.core.errors import CollabError
from nnunet_collab.data.patient_folds import few_patients, patient_folds
from nnunet_collab.data.raw_target import SPLIT_FILE, Target, contents, raw_folder, refuse_full_disk, split_path
from nnunet_collab.data.source_check import Case, SourceRules, read_image, same_grid, to_nnunet_label, verify_pairs


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


def write_raw_dataset(dataset: RawDataset, target: Target) -> Path:
    """Check target and source, write the dataset and its split, and print where they are.

    Args:
        dataset: What to write.
        target: Where to.

    Returns:
        The dataset's folder.

    Raises:
        CollabError: If the target must be refused (`raw_folder`, `split_path`, `refuse_full_disk`), or with every
            fault of the source. Nothing has been written then.
    """
    folder = raw_folder(target)
    cases = [*dataset.train, *dataset.test]
    print(f"Converting {len(dataset.train)} training and {len(dataset.test)} test cases into {folder}.")
    problems = [*dataset.problems, *_role_problems(dataset), *verify_pairs(cases, dataset.rules)]
    if problems:
        found = "one fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise CollabError("\n- ".join([f"convert: the source has {found}, so nothing was written:", *problems]))
    split = patient_folds(
        [case.name for case in dataset.train],
        dataset.info.patient_of,
        group_of=lambda patient: dataset.groups.get(patient, ""),
    )
    split_file = split_path(target, split)
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        print(f"Removing {partial}, left by a conversion that was interrupted.")
        shutil.rmtree(partial)
    refuse_full_disk([path for case in cases for path in (*case.images, case.label) if path is not None], folder)
    if folder.exists():
        print(f"Replacing {folder}, which held {contents(folder)}.")

    _write_cases(dataset, partial)
    _write_json(partial / "dataset.json", _dataset_json(dataset, target))
    _write_json(partial / SPLIT_FILE, split)
    if split_file is not None:
        _write_json(split_file, split)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    _print_summary(dataset, target, folder, split_file, len(split))
    return folder


def _role_problems(dataset: RawDataset) -> list[str]:
    problems = []
    for cases in (dataset.train, dataset.test):
        places: dict[str, list[str]] = {}
        for case in cases:
            places.setdefault(case.name, []).append(str(case.images[0]))
        problems += [
            f"case {name}: every name must be there once; found {' and '.join(paths)}. Remove all but one."
            for name, paths in places.items()
            if len(paths) > 1
        ]
    train, test = (
        {dataset.info.patient_of(case.name): case.images[0].parent for case in cases}
        for cases in (dataset.train, dataset.test)
    )
    problems += [
        f"patient {patient}: a patient must be either in training or in testing; found in {train[patient]} and in "
        f"{test[patient]}. Remove one of the two."
        for patient in sorted(train.keys() & test.keys())
    ]
    return problems if len(train) >= 2 else [*problems, few_patients(sorted(train))]


def _write_cases(dataset: RawDataset, folder: Path) -> None:
    """Write images and labels of all cases below `folder`."""
    bar = tqdm(total=len(dataset.train) + len(dataset.test), desc="Writing", unit="case", disable=None)
    with bar:
        for role, cases in (("Tr", dataset.train), ("Ts", dataset.test)):
            for case in cases:
                _write_case(case, dataset, folder / f"images{role}", folder / f"labels{role}")
                bar.update()


def _write_case(case: Case, dataset: RawDataset, images: Path, labels: Path) -> None:
    rules, ending = dataset.rules, dataset.info.file_ending
    images.mkdir(parents=True, exist_ok=True)
    grid = rules.read_image(case.images[0])
    for channel, path in enumerate(case.images):
        image = grid if channel == 0 else rules.read_image(path)
        place = images / f"{case.name}_{channel:04d}{ending}"
        if path.name.endswith(ending) and rules.read_image is read_image and same_grid(image, grid):
            shutil.copyfile(path, place)
        else:  # another format, or a grid that differs by less than the tolerance: nnU-Net wants equal ones
            image.CopyInformation(grid)
            sitk.WriteImage(image, str(place), useCompression=True)
    if case.label is not None:
        labels.mkdir(parents=True, exist_ok=True)
        label = to_nnunet_label(rules.read_label(case.label), grid, rules)
        sitk.WriteImage(label, str(labels / f"{case.name}{ending}"), useCompression=True)


def _dataset_json(dataset: RawDataset, target: Target) -> dict[str, object]:
    info = dataset.info
    return {
        "name": target.name,
        "description": info.description,
        "channel_names": info.channel_names,
        "labels": info.labels,
        "numTraining": len(dataset.train),
        "file_ending": info.file_ending,
        "licence": info.licence,
        "citation": info.citation,
        "reference": info.reference,
        "converted_by": f"nnunet_collab {__version__}",
        "patient_pattern": info.patient_pattern,
        **info.extra,
    }


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _print_summary(dataset: RawDataset, target: Target, folder: Path, split_file: Path | None, folds: int) -> None:
    patients = len({dataset.info.patient_of(case.name) for case in dataset.train})
    print(
        f"Wrote {folder}: {len(dataset.train)} training cases of {patients} patients, {len(dataset.test)} test cases."
    )
    if split_file is not None:
        print(f"Split by patient, {folds} folds: {split_file} (copy: {folder / SPLIT_FILE}).")
    else:
        print(
            f"Split by patient, {folds} folds: {folder / SPLIT_FILE}. nnUNet_preprocessed is not set; before training, "
            f"this file must be at $nnUNet_preprocessed/{target.folder}/{SPLIT_FILE}. nnUNetv2_plan_and_preprocess "
            "copies it there; without that command, copy it yourself."
        )
    if folds < 5:
        print(f"Train folds 0 to {folds - 1} only: for higher ones nnU-Net would split at random, not by patient.")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {target.dataset_id} --verify_dataset_integrity")
