"""Whether a dataset is planned, and which of its configurations are preprocessed."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.folders import PREPROCESSED, RAW, RESULTS


def check_dataset(dataset: str) -> Iterator[Finding]:
    """What nnU-Net has made of the dataset so far.

    Args:
        dataset: Its id or its full name, as nnU-Net's commands take them.
    """
    names = dataset_names(dataset)
    if len(names) != 1:
        yield _ambiguous(dataset, names)
        return
    (name,) = names
    folder = Path(os.environ.get(PREPROCESSED, ""), name)
    files = _json_files(folder)
    plans = {stem: content for stem, content in files.items() if "configurations" in content}
    if not plans:
        command = f"nnUNetv2_plan_and_preprocess -d {int(name[7:10])} -c 2d --verify_dataset_integrity"
        yield Finding("FAIL", f"{name} is not planned: there are no plans in {folder}", command)
        return
    counts = {identifier: preprocessed_cases(folder, content) for identifier, content in plans.items()}
    any_preprocessed = any(any(of_plans.values()) for of_plans in counts.values())
    total = files.get("dataset", {}).get("numTraining")
    for identifier, of_plans in counts.items():
        yield _preprocessed(name, identifier, of_plans, total, any_preprocessed)


def dataset_names(dataset: str) -> list[str]:
    """Names of all datasets in nnU-Net's folders that `dataset` may mean; more than one is a mistake there."""
    roots = [Path(os.environ[variable]) for variable in (RAW, PREPROCESSED, RESULTS) if os.environ.get(variable)]
    folders = {path.name for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()}
    names = sorted(name for name in folders if re.fullmatch(r"Dataset\d{3}_.+", name))
    return [name for name in names if name == dataset or (dataset.isdecimal() and int(name[7:10]) == int(dataset))]


def preprocessed_cases(folder: Path, plans: dict[str, Any]) -> dict[str, int]:
    """Number of preprocessed cases per configuration, cascades left out: they need another model's segmentation.

    Args:
        folder: `$nnUNet_preprocessed/<dataset>`.
        plans: Content of a plans file.
    """
    configurations = plans["configurations"]
    counts = {}
    for name in configurations:
        resolved = _inherit(configurations, name)
        if "data_identifier" in resolved and not resolved.get("previous_stage"):
            counts[name] = len(list((folder / resolved["data_identifier"]).glob("*.pkl")))
    return counts


def _inherit(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it takes over from others."""
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


def _ambiguous(dataset: str, names: list[str]) -> Finding:
    if names:
        return Finding("FAIL", f"dataset {dataset} may be {' or '.join(names)}", "Give each dataset an id of its own.")
    text = f"dataset {dataset}: nnUNet_raw and nnUNet_preprocessed have no such dataset"
    return Finding(
        "FAIL", text, "Correct -d (an id such as 27, or a full name such as Dataset027_ACDC), or convert the data."
    )


def _json_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name without ending -> content of every JSON object in the folder; what cannot be read is no plans file."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                found[path.stem] = content
    return found
