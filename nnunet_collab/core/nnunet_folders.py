"""Folders of nnU-Net: the three environment variables, the parts of a raw dataset, its split, finding a dataset."""

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

ROLES = ("train", "unlabeled", "val")  # roles in a fold; "unlabeled" is optional

Split = list[dict[str, list[str]]]


def holds_split(path: Path, split: Split) -> bool:
    """Whether the file holds exactly this split."""
    try:
        return bool(read_json(path, "") == split)
    except CollabError:  # not JSON: certainly not this split
        return False


def read_split(path: Path) -> Split:
    """The folds of `splits_final.json`: per fold the cases of "train", of "val" and, if present, of "unlabeled".

    Only the format of the folds is checked. `splits.few_labels.validate_split` checks that the cases exist and that
    each has one role.

    Raises:
        CollabError: If the file is missing or not JSON (`read_json`), or breaks a rule of `check_split`.
    """
    fix = "Correct the file, or move it away to have new folds made."
    return check_split(read_json(path, fix), str(path), fix)


def check_split(content: Any, where: str, fix: str) -> Split:
    """Return the split if it is a list of folds with two or three roles, in which each case occurs once per role.

    Args:
        content: Content of a split file.
        where: Name of the source; it starts the message.
        fix: How to fix it, in a sentence.

    Raises:
        CollabError: If there is no fold; if "train" or "val" is missing or empty in a fold; if a fold has any other
            entry (a misspelled "unlabeled" would be ignored); if a case occurs twice in a role; if a case name is not
            valid.
    """
    if not isinstance(content, list) or not content:
        raise CollabError(f"{where}: it must be a list of at least one fold; it is {shown(content)}. {fix}")
    for number, fold in enumerate(content):
        if fault := _fold_fault(fold):
            raise CollabError(f"{where}, fold {number}: {fault}. {fix}")
    return content


def _fold_fault(fold: Any) -> str | None:
    """What is wrong with the format of a fold, or None."""
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
            return f"{role} must hold case names; {shown(name)} is not one: {fault}"
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        return f"{role} must name each case once; these occur more than once: {listed(twice)}"
    if not names and role != "unlabeled":
        purpose = {"train": "train with", "val": "validate on"}[role]
        return f"{role} must name at least one case to {purpose}; it is empty"
    return None


def find_dataset(dataset: str) -> tuple[Path, Path]:
    """Folders of a dataset in nnUNet_raw and nnUNet_preprocessed; one of the two may be missing.

    Args:
        dataset: Id or full name of the dataset, as nnU-Net's commands take them.

    Raises:
        CollabError: If a variable is not set, or if not exactly one dataset has this id or name.
    """
    if unset := [variable for variable in (RAW, PREPROCESSED) if not os.environ.get(variable)]:
        exports = "; ".join(f"export {variable}=/path/to/{variable}" for variable in unset)
        raise CollabError(f"{' and '.join(unset)}: nnU-Net's variables must be set; they are not. Write: {exports}")
    roots = [Path(os.environ[variable]) for variable in (RAW, PREPROCESSED)]
    folders = {path.name for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()}
    known = sorted(name for name in folders if re.fullmatch(r"Dataset\d{3}_.+", name))
    names = [name for name in known if name == dataset or (dataset.isdecimal() and int(name[7:10]) == int(dataset))]
    if len(names) != 1:
        there = f"the datasets there: {', '.join(known)}" if known else "there is no dataset"
        found = f"{dataset} matches {' and '.join(names) or 'none'}; {there}"
        raise CollabError(
            f"-d: it must be the id or the full name of one dataset in {roots[0]} or {roots[1]}; {found}. Correct -d."
        )
    return roots[0] / names[0], roots[1] / names[0]


def folders_of_id(dataset_id: int) -> list[Path]:
    """Folders of all datasets of this id in nnU-Net's three folders."""
    found = []
    for variable in (RAW, PREPROCESSED, RESULTS):
        place = Path(os.environ.get(variable) or os.devnull)
        entries = sorted(place.iterdir()) if place.is_dir() else []
        found += [entry for entry in entries if entry.is_dir() and entry.name.startswith(f"Dataset{dataset_id:03d}")]
    return found


def read_dataset_json(
    path: Path, *, needs: Collection[str] = ENTRIES, fix: str = "Correct the file."
) -> dict[str, Any]:
    """The content of a dataset.json in the format of nnU-Net's version 2.

    The format of version 1 is converted where it is unambiguous (`from_version_1`). The file itself is not changed.

    Args:
        path: The file.
        needs: Entries that must be present. All other known entries are checked if they are present.
        fix: How to fix a file that is missing or not JSON, in a sentence.

    Raises:
        CollabError: If the file is missing or not a JSON object (`read_json`), or if entries are wrong
            (`check_dataset_json`); then the message lists every fault.
    """
    found = read_json_object(path, fix)
    content = from_version_1(found)
    check_dataset_json(content, str(path), needs, old=is_version_1(found))
    return content


def read_plans(path: Path, fix: str) -> dict[str, Any]:
    """The content of a plans file. Only its names are checked; nnU-Net checks the rest.

    Args:
        path: The file.
        fix: How to fix it, in a sentence.

    Raises:
        CollabError: If the file is missing or not a JSON object (`read_json`), has no configuration, or holds a name
            that would point outside its folder.
    """
    plans = read_json_object(path, fix)
    planned = plans.get("configurations")
    if not isinstance(planned, dict) or not planned or not all(isinstance(entry, dict) for entry in planned.values()):
        raise CollabError(
            f"{path}: `configurations` must be an object with at least one entry; it is {shown(planned)}. {fix}"
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
    """Channel number -> name. Old files call the entry `modality`."""
    names: dict[str, str] = dataset_json["channel_names" if "channel_names" in dataset_json else "modality"]
    return names


def case_images(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case -> its images in the order of their channels. Only files named `CASE_0000<ending>` are listed.

    Returns:
        Cases in alphabetical order; empty if the folder does not exist.
    """
    images: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = re.fullmatch(rf"([^.].*)_\d{{4}}{re.escape(ending)}", path.name)
        if match and path.is_file():
            images.setdefault(match.group(1), []).append(path)
    return dict(sorted(images.items()))


def other_entries(folder: Path, images: Mapping[str, Sequence[Path]]) -> list[str]:
    """Names of the entries in a folder of images that are not used: other formats, `.NII.GZ`, subfolders.

    Hidden files (such as macOS creates) and `.json` files (spacing of a TIFF, notes of a scanner) are not listed.

    Args:
        folder: The folder; it may be missing.
        images: The images that are used, from `case_images`.

    Returns:
        Names in alphabetical order; names of folders end with a slash.
    """
    used = {path.name for paths in images.values() for path in paths}
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path for path in entries if path.name not in used and not path.name.startswith(".")]
    return [f"{path.name}/" if path.is_dir() else path.name for path in others if path.suffix != ".json"]
