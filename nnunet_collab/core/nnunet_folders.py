"""nnU-Net's folders: the three variables, the parts of a raw dataset, its split, and how to find a dataset."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
SPLIT_FILE = "splits_final.json"
POSTPROCESSED = "postprocessed_with.json"  # marks a folder of predictions; nnU-Net's postprocessing.json of a study
UNLABELED = "imagesUn"  # unlabeled images, put there by a conversion or by the user

Split = list[dict[str, list[str]]]


def holds_split(path: Path, split: Split) -> bool:
    """Whether the file is this very split."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == split)
    except ValueError:  # not JSON: certainly not this split
        return False


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


def read_object(path: Path, problems: list[str], mend: str) -> dict[str, Any]:
    """Content of a JSON file that holds an object; if there is none, a line is added to `problems`."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        problems.append(f"{path}: it must be there; it is not. {mend}")
    except (OSError, ValueError, TypeError) as error:
        problems.append(f"{path}: it must be a JSON object; it cannot be read ({error}). {mend}")
    return {}


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
        if match:
            images.setdefault(match.group(1), []).append(path)
    return dict(sorted(images.items()))
