"""Check the preprocessed files before a training: damaged files, wrong labels, classes without a label.

Reading every label once takes about as long as loading them for one epoch. Without this check, a wrong label ends a
training on a GPU with an error of the driver, at the first batch that contains it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.data.unlabeled_dataset import open_image

OUTSIDE = -1  # the label that nnU-Net's preprocessing writes outside of the mask when it normalizes with a mask
_LONGEST = 300  # largest number of characters of a library's own message
THREADS = min(4, os.cpu_count() or 1)  # number of cases that are read at the same time and held in memory


def check_case_files(
    train: Any, val: Any, labels: Any, dataset_json: Mapping[str, Any], truth: Path, log: Callable[[str], None]
) -> None:
    """Raise if a case cannot be read or has a label that dataset.json lacks; warn of classes without a label.

    Args:
        train: nnU-Net's dataset of the labeled training cases.
        val: nnU-Net's dataset of the validation cases.
        labels: nnU-Net's label manager.
        dataset_json: Its `labels` name the classes.
        truth: Folder `gt_segmentations`; nnU-Net compares the validation predictions with its files.
        log: Function that logs the warning.

    Raises:
        CollabError: If a case is wrong; the message names every wrong case.
    """
    highest = max([*labels.all_labels, labels.ignore_label or 0])
    unseen = {*range(1, highest + 1)}  # labels that no training case has shown yet
    cases = {case: (val, set()) for case in val.identifiers} | {case: (train, unseen) for case in train.identifiers}
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda item: _fault(item[1][0], item[0], highest, item[1][1]), cases.items())
        problems = [fault for fault in found if fault]
    if problems:
        folder = train.source_folder
        raise CollabError(
            f"{folder}: every case of the fold must be readable and labeled 0 to {highest}, as dataset.json says; "
            f"wrong: {listed(problems)}. Correct labelsTr or the labels in dataset.json, then run "
            f"nnUNetv2_preprocess for the configuration."
        )
    missing = [f"{case}{dataset_json['file_ending']}" for case in val.identifiers]
    missing = [name for name in missing if not (truth / name).is_file()]
    if missing:
        raise CollabError(
            f"{truth}: must hold the original labels of the validation cases, because the predictions are compared "
            f"with "
            f"them after the training; missing: {listed(missing)}. Run nnUNetv2_preprocess for the configuration: it "
            f"copies them."
        )
    absent = [name for name, values in dataset_json["labels"].items() if name != "ignore" and _labels(values) <= unseen]
    if absent:
        log(
            f"WARNING: no labeled training case of this fold has {listed(absent)}. A network cannot learn a class "
            f"without labels: its Dice will be 0 or undefined, and pseudo labels will not contain it. Label a case "
            f"that shows it."
        )


def check_unlabeled_images(folders: Mapping[str, Path]) -> None:
    """Raise if an unlabeled image cannot be read; labels are not opened.

    Args:
        folders: Name of a case -> folder of its preprocessed image.

    Raises:
        CollabError: If an image cannot be read; the message names every such image.
    """
    problems = []
    for case, folder in folders.items():
        try:
            _touch(open_image(folder, case))
        except CollabError:
            raise
        except Exception as error:  # the type of the error depends on the file format
            problems.append(f"{case} ({_first_line(error)})")
    if problems:
        raise CollabError(
            f"{', '.join(sorted({str(folder) for folder in folders.values()}))}: every unlabeled image must be "
            f"readable; damaged: {listed(problems)}. Delete its files there, then run nnunet_collab "
            f"preprocess_unlabeled for imagesUn, nnUNetv2_preprocess for cases of the split."
        )


def _labels(values: int | Sequence[int]) -> set[int]:
    """Labels of a class or a region, as in dataset.json."""
    return {*values} if isinstance(values, (list, tuple)) else {values}  # type: ignore[arg-type]


def _fault(data: Any, case: str, highest: int, unseen: set[int]) -> str | None:
    """Say what is wrong with a case, and remove the labels it has from `unseen`."""
    try:
        image, labels, _, _ = data.load_case(case)
        _touch(image)
        labels = np.asarray(labels[:])
    except Exception as error:  # the type of the error depends on the file format
        return f"{case} (cannot be read: {_first_line(error)})"
    if tuple(image.shape[1:]) != labels.shape[1:]:
        return f"{case} (image {tuple(image.shape[1:])}, labels {labels.shape[1:]})"
    wrong = [value for value in (labels.min(), labels.max()) if not OUTSIDE <= value <= highest]
    if wrong:
        return f"{case} (label {' and '.join(f'{value:g}' for value in wrong)})"
    unseen -= {label for label in tuple(unseen) if (labels == label).any()}
    return None


def _touch(image: Any) -> None:
    """Read the last corner of an image: a truncated file lacks its end."""
    if min(image.shape) < 1:
        raise ValueError(f"it is empty; its shape is {tuple(image.shape)}")
    np.asarray(image[tuple(slice(size - 1, size) for size in image.shape)])


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{type(error).__name__}: {line[:_LONGEST]}{'...' * (len(line) > _LONGEST)}"
