"""nnU-Net's folders: the three variables, the parts of a raw dataset, its split, and how to find a dataset."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_collab.core.dataset_json import ENTRIES, check_dataset_json, from_version_1, is_version_1
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.json_files import read_json, read_json_object, shown
from nnunet_collab.core.names import name_fault, require_plain_name

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
SPLIT_FILE = "splits_final.json"
POSTPROCESSED = "postprocessed_with.json"  # marks a folder of predictions; nnU-Net's postprocessing.json of a study
UNLABELED = "imagesUn"  # unlabeled images, put there by a conversion or by the user

ROLES = ("train", "unlabeled", "val")  # of a fold; "unlabeled" may be missing

Split = list[dict[str, list[str]]]


def holds_split(path: Path, split: Split) -> bool:
    """Whether the file is this very split."""
    try:
        return bool(read_json(path, "") == split)
    except CollabError:  # not JSON: certainly not this split
        return False


def read_split(path: Path) -> Split:
    """The folds of `splits_final.json`: per fold the cases of "train", "val" and perhaps "unlabeled".

    The form alone is checked, in all folds: whether the cases exist, or have two roles, is another question
    (`splits.few_labels.validate_split`).

    Raises:
        CollabError: If the file is missing or no JSON (`read_json`), or breaks a rule of `check_split`.
    """
    fix = "Correct the file, or move it away: then folds are dealt anew."
    return check_split(read_json(path, fix), str(path), fix)


def check_split(content: Any, where: str, fix: str) -> Split:
    """The split itself, if it is a list of folds, each with two roles or three whose cases are named once.

    Args:
        content: Of a split file.
        where: It is from; starts the message.
        fix: How to fix it, in a sentence.

    Raises:
        CollabError: If there is no fold; a fold lacks "train" or "val", leaves one empty, or has another entry (a
            misspelled "unlabeled" would be ignored); a case is named twice, or by what is no plain name.
    """
    if not isinstance(content, list) or not content:
        raise CollabError(f"{where}: it must be a list of one fold or more; it is {shown(content)}. {fix}")
    for number, fold in enumerate(content):
        if fault := _fold_fault(fold):
            raise CollabError(f"{where}, fold {number}: {fault}. {fix}")
    return content


def _fold_fault(fold: Any) -> str | None:
    """What is wrong with the form of a fold, or None."""
    if not isinstance(fold, dict):
        return f'it must be an object with the lists "train" and "val"; it is {shown(fold)}'
    if missing := [role for role in ("train", "val") if role not in fold]:
        return f'it must have the lists "train" and "val" of case names; there is no {" and no ".join(missing)}'
    if other := [key for key in fold if key not in ROLES]:
        return f'its entries must be "train", "val" and perhaps "unlabeled"; it has {listed(list(map(repr, other)))}'
    faults = (fault for role, names in fold.items() if (fault := _role_fault(role, names)))
    return next(faults, None)


def _role_fault(role: str, names: Any) -> str | None:
    """What is wrong with the cases of a role, or None."""
    if not isinstance(names, list):
        return f"{role} must be a list of case names; it is {shown(names)}"
    for name in names:
        if fault := name_fault(name):
            return f"{role} must hold case names; {shown(name)} is none: {fault}"
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        return f"{role} must name a case once; twice there: {listed(twice)}"
    if not names and role != "unlabeled":
        purpose = {"train": "train with", "val": "validate on"}[role]
        return f"{role} must name at least one case to {purpose}; it is empty"
    return None


def find_dataset(dataset: str) -> tuple[Path, Path]:
    """Folders of a dataset in nnUNet_raw and nnUNet_preprocessed; one of the two may be missing.

    Args:
        dataset: Its id or its full name, as nnU-Net's commands take them.

    Raises:
        CollabError: If a variable is not set, or not exactly one dataset is meant.
    """
    if unset := [variable for variable in (RAW, PREPROCESSED) if not os.environ.get(variable)]:
        exports = "; ".join(f"export {variable}=/path/to/{variable}" for variable in unset)
        raise CollabError(f"{' and '.join(unset)}: nnU-Net's folders must be set; not so here. Write: {exports}")
    roots = [Path(os.environ[variable]) for variable in (RAW, PREPROCESSED)]
    folders = {path.name for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()}
    known = sorted(name for name in folders if re.fullmatch(r"Dataset\d{3}_.+", name))
    names = [name for name in known if name == dataset or (dataset.isdecimal() and int(name[7:10]) == int(dataset))]
    if len(names) != 1:
        found = f"{dataset} is {' and '.join(names) or 'none'}; there is {', '.join(known) or 'no dataset at all'}"
        raise CollabError(
            f"-d: it must be the id or the full name of one dataset in {roots[0]} or {roots[1]}; {found}. Correct -d."
        )
    return roots[0] / names[0], roots[1] / names[0]


def read_dataset_json(
    path: Path, *, needs: Collection[str] = ENTRIES, fix: str = "Correct the file."
) -> dict[str, Any]:
    """The content of a dataset.json in the form of nnU-Net's version 2.

    The form of version 1 is converted where it is unambiguous (`from_version_1`); the file stays as it is.

    Args:
        path: The file.
        needs: Entries that must be there; all others are checked if they are.
        fix: How to fix a file that is missing or no JSON, in a sentence.

    Raises:
        CollabError: If it is missing or no JSON object (`read_json`), or with every fault of its entries
            (`check_dataset_json`).
    """
    found = read_json_object(path, fix)
    content = from_version_1(found)
    check_dataset_json(content, str(path), needs, old=is_version_1(found))
    return content


def read_plans(path: Path, fix: str) -> dict[str, Any]:
    """The content of a plans file: what it names is checked, what nnU-Net computes with is left to nnU-Net.

    Args:
        path: The file.
        fix: How to fix it, in a sentence.

    Raises:
        CollabError: If it is missing or no JSON object (`read_json`), plans no configuration, or has a name that would
            lead out of its folder.
    """
    plans = read_json_object(path, fix)
    planned = plans.get("configurations")
    if not isinstance(planned, dict) or not planned or not all(isinstance(entry, dict) for entry in planned.values()):
        raise CollabError(
            f"{path}: its `configurations` must be an object of one or more; it is {shown(planned)}. {fix}"
        )
    for entry in ("dataset_name", "plans_name"):
        if entry in plans:
            require_plain_name(f"{path}, {entry}", plans[entry], fix)
    for name, entry in planned.items():
        require_plain_name(f"{path}, configurations", name, fix)
        if "data_identifier" in entry:
            require_plain_name(f"{path}, data_identifier of {name}", entry["data_identifier"], fix)
        if "inherits_from" in entry and not (isinstance(parent := entry["inherits_from"], str) and parent in planned):
            raise CollabError(
                f"{path}: inherits_from of {name} must be another of its configurations, {listed(list(planned))}; it "
                f"is {shown(parent)}. {fix}"
            )
    return plans


def channel_names(dataset_json: dict[str, Any]) -> dict[str, str]:
    """Channel number -> name; old files call them modalities."""
    names: dict[str, str] = dataset_json["channel_names" if "channel_names" in dataset_json else "modality"]
    return names


def case_images(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case -> its images in the order of their channels: files named `CASE_0000<ending>`, others are left out.

    Returns:
        Cases in alphabetical order; empty if there is no such folder.
    """
    images: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = re.fullmatch(rf"([^.].*)_\d{{4}}{re.escape(ending)}", path.name)
        if match and path.is_file():
            images.setdefault(match.group(1), []).append(path)
    return dict(sorted(images.items()))


def other_entries(folder: Path, images: Mapping[str, Sequence[Path]]) -> list[str]:
    """Names of what lies in a folder of images and is used by nobody: other formats, `.NII.GZ`, folders.

    Hidden files (what a Mac leaves behind) and `.json` (the spacing of a TIFF, the notes of a scanner) do not count.

    Args:
        folder: It may be missing.
        images: What is used, from `case_images`.

    Returns:
        Names in alphabetical order, those of folders with a slash at the end.
    """
    used = {path.name for paths in images.values() for path in paths}
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path for path in entries if path.name not in used and not path.name.startswith(".")]
    return [f"{path.name}/" if path.is_dir() else path.name for path in others if path.suffix != ".json"]
