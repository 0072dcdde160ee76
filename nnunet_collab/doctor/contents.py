"""What a raw dataset holds: cases of each role, patients, classes with their voxels, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.image_io import read_image, whole_numbers
from nnunet_collab.core.nnunet_folders import UNLABELED, case_images, channel_names, read_dataset_json
from nnunet_collab.core.patients import PATIENTS_FILE, PatientRule, patient_lookup, patient_rule
from nnunet_collab.doctor.finding import Finding


@dataclass(frozen=True)
class Cases:
    """The cases of a raw dataset.

    Attributes:
        images: Folder -> case -> its images in the order of their channels; of imagesTr, imagesUn and imagesTs.
        labels: Folder -> case -> its label; of labelsTr and labelsTs.
    """

    images: Mapping[str, Mapping[str, list[Path]]]
    labels: Mapping[str, Mapping[str, Path]]


@dataclass
class Voxels:
    """Counts over all labels.

    Attributes:
        of_value: Label value -> number of voxels.
        cases: Label value -> number of cases that hold it.
        unread: Faults of labels that could not be read.
        uneven: Labels with values that are not whole numbers.
    """

    of_value: Counter[int] = field(default_factory=Counter)
    cases: Counter[int] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)
    uneven: list[str] = field(default_factory=list)


def check_contents(raw: Path, preprocessed: Path) -> Iterator[Finding]:
    """Describe a raw dataset and say what is missing. Every label of labelsTr is read, with a progress bar.

    Args:
        raw: Its folder. Nothing is said of a dataset that lists its files in dataset.json, or without imagesTr.
        preprocessed: Folder of the preprocessed dataset; it may be missing.
    """
    try:
        content = read_dataset_json(raw / "dataset.json")
    except CollabError:  # reported elsewhere
        return
    cases = find_cases(raw, content["file_ending"])
    if "dataset" in content or not cases.images["imagesTr"]:
        return
    test, test_labels = cases.images["imagesTs"], cases.labels["labelsTs"]
    with_labels = f" ({len(test_labels)} with labels)" if test else ""
    yield Finding(
        "ok",
        f"{raw.name}: {len(cases.labels['labelsTr'])} labeled, {len(cases.images[UNLABELED])} unlabeled, {len(test)} "
        f"test cases{with_labels}; channels: {', '.join(channel_names(content).values())}",
    )
    yield _patients(raw, preprocessed, content, cases)
    yield from _missing(raw, content, cases)
    yield from _classes(raw.name, content, cases.labels["labelsTr"])


def find_cases(raw: Path, ending: str) -> Cases:
    """The cases in the folders of a raw dataset; a missing folder has none."""
    images = {folder: case_images(raw / folder, ending) for folder in ("imagesTr", UNLABELED, "imagesTs")}
    labels = {folder: _labels(raw / folder, ending) for folder in ("labelsTr", "labelsTs")}
    return Cases(images, labels)


def _labels(folder: Path, ending: str) -> dict[str, Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {p.name.removesuffix(ending): p for p in paths if p.name.endswith(ending) and not p.name.startswith(".")}


def _patients(raw: Path, preprocessed: Path, content: Mapping[str, Any], cases: Cases) -> Finding:
    """The number of patients per role, and whether they are known."""
    try:
        rule: PatientRule = patient_rule(content, raw, preprocessed)
        patient_of = patient_lookup(rule, cases.images["imagesTr"])
        of_role = {
            folder: {_patient(patient_of, case) for case in found} for folder, found in cases.images.items() if found
        }
    except CollabError as error:
        return Finding("FAIL", f"{raw.name}, patients: {error}", "Trainings and all commands ask for them.")
    if rule is None:
        text = f"{raw.name}: nothing says which cases belong to one patient, so each counts as a patient"
        return Finding("warn", text, f"If patients have several cases, write {raw / 'patients.csv'}: case,patient")
    names = {"imagesTr": "labeled", UNLABELED: "unlabeled", "imagesTs": "test"}
    told = ", ".join(f"{len(patients)} {names[folder]}" for folder, patients in of_role.items())
    text = f"{raw.name}: patients: {told}, {len(set().union(*of_role.values()))} in all"
    shared = sorted(of_role.get("imagesTs", set()) & (of_role["imagesTr"] | of_role.get(UNLABELED, set())))
    if shared:
        return Finding(
            "warn", f"{text}; test patients that are trained on: {listed(shared)}", "Move their images away."
        )
    known = {case for found in cases.images.values() for case in found}
    if unknown := sorted(set(rule) - known) if isinstance(rule, Mapping) else []:
        text += f"; {PATIENTS_FILE} names cases that do not exist: {listed(unknown)}"
        return Finding("warn", text, "Correct their names, or remove the lines.")
    return Finding("ok", text)


def _patient(patient_of: Any, case: str) -> str:
    """The patient of a case; a test case that the rule does not know is a patient of its own."""
    try:
        return str(patient_of(case))
    except CollabError:
        return case


def _missing(raw: Path, content: Mapping[str, Any], cases: Cases) -> Iterator[Finding]:
    channels = len(channel_names(dict(content)))
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        with_image, with_label = cases.images[images].keys(), cases.labels[labels].keys()
        if labels == "labelsTr" or with_label:
            yield from _lacking(
                raw / labels, with_image - with_label, "labels of", "Add them, or move the images away."
            )
        yield from _lacking(raw / images, with_label - with_image, "images of", "Add them, or move the labels away.")
    for folder, found in cases.images.items():
        lacking = {case for case, paths in found.items() if len(paths) != channels}
        yield from _lacking(raw / folder, lacking, "channels of", f"Every case needs {channels}, _0000 and so on.")


def _lacking(folder: Path, cases: Collection[str], what: str, fix: str) -> Iterator[Finding]:
    if cases:
        yield Finding("FAIL", f"{folder}: {what} {len(cases)} cases are missing: {listed(sorted(cases))}", fix)


def _classes(name: str, content: Mapping[str, Any], labels: Mapping[str, Path]) -> Iterator[Finding]:
    counts = count_voxels(labels)
    if counts.unread:
        yield Finding("FAIL", "\n      ".join(counts.unread), "Copy these labels again.")
    if counts.uneven:
        text = f"{name}: labels must hold whole numbers; these do not: {listed(counts.uneven)}"
        yield Finding("FAIL", text, "Export them again as whole numbers.")
    total = len(labels)
    told, rare = [], []
    for class_name, value in content["labels"].items():
        values = {*value} if isinstance(value, list) else {value}
        if values == {0}:
            continue
        in_cases = max((counts.cases[v] for v in values), default=0)
        told.append(f"{class_name} {sum(counts.of_value[v] for v in values)} voxels in {in_cases} of {total} cases")
        if in_cases < 2:
            rare.append(class_name)
    text = f"{name}: classes: {'; '.join(told) or 'none'}"
    if rare:
        yield Finding("warn", f"{text}. In fewer than 2 cases: {listed(rare)}", "Label more cases, or leave them out.")
    else:
        yield Finding("ok", text)
    known = {v for value in content["labels"].values() for v in (value if isinstance(value, list) else [value])}
    if unknown := sorted(counts.of_value.keys() - known):
        text = f"{name}: labels hold the values {listed(list(map(str, unknown)))}, which dataset.json does not name"
        yield Finding("FAIL", text, "Name them in dataset.json, or correct the labels.")


def count_voxels(labels: Mapping[str, Path]) -> Voxels:
    """Read every label and count the voxels of each value.

    Args:
        labels: Case -> label.
    """
    import SimpleITK as sitk
    from tqdm import tqdm

    counts = Voxels()
    for case, path in tqdm(labels.items(), desc="Reading labels", unit="label", leave=False, disable=None):
        try:
            image = read_image(path)  # held, because the view below does not hold it
            found, number = np.unique(sitk.GetArrayViewFromImage(image), return_counts=True)
        except CollabError as error:
            counts.unread.append(str(error))
            continue
        rounded, uneven = whole_numbers(found.astype(np.float64))
        if uneven.size:
            counts.uneven.append(case)
            continue
        for value, voxels in zip(rounded.astype(int).tolist(), number.tolist(), strict=True):
            counts.of_value[value] += voxels
        counts.cases.update(set(rounded.astype(int).tolist()))
    return counts
