"""Check that a dataset is planned, and which of its configurations are preprocessed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.json_files import read_json
from nnunet_collab.core.nnunet_folders import (
    SPLIT_FILE,
    UNLABELED,
    case_images,
    other_entries,
    read_dataset_json,
    read_plans,
    read_split,
)
from nnunet_collab.doctor import planned
from nnunet_collab.doctor.contents import check_contents
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.folders import PREPROCESSED, RAW, RESULTS


def check_dataset(dataset: str) -> Iterator[Finding]:
    """Check the files, the plans and the preprocessed cases of a dataset.

    Args:
        dataset: Id or full name of the dataset, as nnU-Net's commands take them.
    """
    names = dataset_names(dataset)
    if len(names) != 1:
        yield _ambiguous(dataset, names)
        return
    (name,) = names
    folder = Path(os.environ.get(PREPROCESSED, ""), name)
    yield from _files(name)
    plans, faults = _plans(folder)
    yield from faults
    yield from _unlabeled(name, folder, plans)
    raw = Path(os.environ.get(RAW) or os.devnull, name)
    if raw.is_dir():
        yield from check_contents(raw, folder)
        yield from planned.existing(name, plans)
    if not plans:
        command = f"nnUNetv2_plan_and_preprocess -d {int(name[7:10])} -c 2d --verify_dataset_integrity"
        yield Finding("FAIL", f"{name} is not planned: there are no plans in {folder}", command)
        return
    counts = {identifier: preprocessed_cases(folder, content) for identifier, content in plans.items()}
    any_preprocessed = any(any(of_plans.values()) for of_plans in counts.values())
    total = _number_of_cases(folder / "dataset.json")
    for identifier, of_plans in counts.items():
        yield _preprocessed(name, identifier, of_plans, total, any_preprocessed)


def _files(name: str) -> Iterator[Finding]:
    """Check that dataset.json and the split can be used."""
    for variable in (RAW, PREPROCESSED):
        folder = Path(os.environ.get(variable) or os.devnull, name)
        for path, read in ((folder / "dataset.json", read_dataset_json), (folder / SPLIT_FILE, read_split)):
            if path.is_file() or (variable == RAW and read is read_dataset_json and folder.is_dir()):
                try:
                    read(path)
                except CollabError as error:
                    yield Finding("FAIL", str(error), f"Correct {path}. Trainings and all commands read it.")


def _unlabeled(name: str, folder: Path, plans: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """The number of unlabeled cases, the configurations for which they are preprocessed, and the unused entries."""
    place = Path(os.environ.get(RAW) or os.devnull, name, UNLABELED)
    if not place.is_dir():
        return
    try:
        ending = read_dataset_json(place.parent / "dataset.json")["file_ending"]
    except CollabError:  # reported by `_files`
        return
    images = case_images(place, ending)
    done = []
    for identifier, content in plans.items():
        counts = preprocessed_cases(folder, content, suffix=f"_{UNLABELED}")
        done += [f"{configuration} of {identifier} ({count})" for configuration, count in counts.items() if count]
    text = f"{name}: {UNLABELED} holds {len(images)} cases; preprocessed for {', '.join(done) or 'no configuration'}"
    if others := other_entries(place, images):
        text += f"; {len(others)} other entries are not used: {listed(others)}"
        yield Finding("warn", text, f"Convert images to {ending} and name them CASE_0000{ending}; move the rest away.")
    elif images and not done:
        command = f"nnunet_collab preprocess_unlabeled -d {int(name[7:10])} -c CONFIGURATION"
        yield Finding("warn", text, command)
    else:
        yield Finding("ok", text)


def dataset_names(dataset: str) -> list[str]:
    """Names of all datasets in nnU-Net's folders that match `dataset`; more than one is a fault in these folders."""
    roots = [Path(os.environ[variable]) for variable in (RAW, PREPROCESSED, RESULTS) if os.environ.get(variable)]
    folders = {path.name for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()}
    names = sorted(name for name in folders if re.fullmatch(r"Dataset\d{3}_.+", name))
    return [name for name in names if name == dataset or (dataset.isdecimal() and int(name[7:10]) == int(dataset))]


def preprocessed_cases(folder: Path, plans: dict[str, Any], suffix: str = "") -> dict[str, int]:
    """Number of preprocessed cases per configuration. Cascades, which need the output of another model, are left out.

    Args:
        folder: `$nnUNet_preprocessed/<dataset>`.
        plans: Content of a plans file.
        suffix: Ending of the names of the configurations' folders.
    """
    configurations = plans["configurations"]
    counts = {}
    for name in configurations:
        resolved = _inherit(configurations, name)
        if "data_identifier" in resolved and not resolved.get("previous_stage"):
            counts[name] = len(list((folder / f"{resolved['data_identifier']}{suffix}").glob("*.pkl")))
    return counts


def _inherit(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration, with the entries that it inherits."""
    chain: list[str] = []
    while name in configurations and name not in chain:
        chain.append(name)
        name = configurations[name].get("inherits_from", "")
    return {key: value for link in reversed(chain) for key, value in configurations[link].items()}


def _preprocessed(name: str, plans: str, counts: dict[str, int], total: Any, any_preprocessed: bool) -> Finding:
    done = [f"{configuration} ({count} cases)" for configuration, count in counts.items() if count]
    waiting = [configuration for configuration, count in counts.items() if not count]
    partly = [c for c, count in counts.items() if count and isinstance(total, int) and count < total]
    text = f"{name}, {plans}: preprocessed {', '.join(done) or 'nothing'}"
    if waiting:
        text += f"; planned only {', '.join(waiting)}"
    command = f"nnUNetv2_preprocess -d {int(name[7:10])} -plans_name {plans} -c"
    if partly:
        return Finding("warn", f"{text}; the dataset has {total} cases", f"{command} {' '.join(partly)}")
    if done:
        return Finding("ok", text)
    return Finding("warn" if any_preprocessed else "FAIL", text, f"{command} {' '.join(waiting[:1])}")


def dataset_to_plan(dataset: str) -> Path | None:
    """The raw folder of a dataset that is not planned, or None."""
    names = dataset_names(dataset)
    if len(names) != 1 or _plans(Path(os.environ.get(PREPROCESSED, ""), names[0]))[0]:
        return None
    raw = Path(os.environ.get(RAW) or os.devnull, names[0])
    return raw if raw.is_dir() else None


def _ambiguous(dataset: str, names: list[str]) -> Finding:
    if names:
        return Finding("FAIL", f"dataset {dataset} can be {' or '.join(names)}", "Give each dataset a different id.")
    text = f"dataset {dataset}: nnUNet_raw and nnUNet_preprocessed have no such dataset"
    return Finding(
        "FAIL", text, "Correct -d (an id such as 27, or a full name such as Dataset027_ACDC), or convert the data."
    )


def _plans(folder: Path) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """Name without ending -> content of every plans file; and the faults of the other JSON files."""
    plans, faults = {}, []
    for path in sorted(folder.glob("*.json")):
        if path.name in ("dataset.json", SPLIT_FILE):
            continue
        try:
            content = read_json(path, "Plan the dataset again, or move the file away.")
            if isinstance(content, dict) and ("configurations" in content or path.stem.endswith("Plans")):
                plans[path.stem] = read_plans(path, "Plan the dataset again.")
        except CollabError as error:
            faults.append(Finding("FAIL", str(error), f"Correct {path}, or move it away."))
    return plans, faults


def _number_of_cases(path: Path) -> int | None:
    try:
        total = read_dataset_json(path, needs=()).get("numTraining")
    except CollabError:  # reported by `_files`, or the file is missing
        return None
    return total if isinstance(total, int) else None
