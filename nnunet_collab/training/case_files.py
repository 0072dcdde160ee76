"""The preprocessed files of a training, read once before it starts: what is damaged, labeled wrongly or not labeled.

Reading every label takes about as long as one epoch's loading of them; a wrong label ends a training on a GPU with an
error of the driver, at the first batch that happens to show it.
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

OUTSIDE = -1  # nnU-Net's preprocessing puts it where images normalized with a mask have no content
THREADS = min(4, os.cpu_count() or 1)  # the arrays of so many cases are in memory at a time


def check_case_files(
    train: Any, val: Any, labels: Any, dataset_json: Mapping[str, Any], truth: Path, log: Callable[[str], None]
) -> None:
    """Raise if a case cannot be read or has a label that dataset.json does not; say which classes nobody can learn.

    Args:
        train: nnU-Net's dataset of the labeled training cases.
        val: That of the validation cases.
        labels: nnU-Net's label manager.
        dataset_json: Its `labels` name the classes.
        truth: `gt_segmentations`, with which nnU-Net compares its validation.
        log: For the warning.

    Raises:
        CollabError: Naming every case that is at fault.
    """
    highest = max([*labels.all_labels, labels.ignore_label or 0])
    unseen = {*range(1, highest + 1)}  # by a training case; soon empty
    cases = {case: (val, set()) for case in val.identifiers} | {case: (train, unseen) for case in train.identifiers}
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda item: _fault(item[1][0], item[0], highest, item[1][1]), cases.items())
        problems = [fault for fault in found if fault]
    if problems:
        folder = train.source_folder
        raise CollabError(
            f"{folder}: every case of the fold must be readable and labeled 0 to {highest}, as dataset.json says; "
            f"not so: {listed(problems)}. Correct labelsTr or the labels in dataset.json, then run "
            f"nnUNetv2_preprocess for the configuration."
        )
    missing = [f"{case}{dataset_json['file_ending']}" for case in val.identifiers]
    missing = [name for name in missing if not (truth / name).is_file()]
    if missing:
        raise CollabError(
            f"{truth}: must hold the original labels of the validation cases, which are compared with after the "
            f"training; there is no {listed(missing)}. Run nnUNetv2_preprocess for the configuration: it copies them."
        )
    absent = [name for name, values in dataset_json["labels"].items() if name != "ignore" and _labels(values) <= unseen]
    if absent:
        log(
            f"WARNING: no labeled training case of this fold has {listed(absent)}. Nobody can learn what no label "
            f"shows: its Dice will be 0 or undefined, and pseudo labels cannot name it. Label a case that has it."
        )


def check_unlabeled_images(folders: Mapping[str, Path]) -> None:
    """Raise if an unlabeled image cannot be read; labels are not opened.

    Args:
        folders: Case -> the folder of its preprocessed image.

    Raises:
        CollabError: Naming every image at fault.
    """
    problems = []
    for case, folder in folders.items():
        try:
            _touch(open_image(folder, case))
        except CollabError:
            raise
        except Exception as error:  # a damaged file fails in the way of its format
            problems.append(f"{case} ({_first_line(error)})")
    if problems:
        raise CollabError(
            f"{', '.join(sorted({str(folder) for folder in folders.values()}))}: every unlabeled image must be "
            f"readable; not so: {listed(problems)}. Delete its files there, then run nnunet_collab "
            f"preprocess_unlabeled for imagesUn, nnUNetv2_preprocess for cases of the split."
        )


def _labels(values: int | Sequence[int]) -> set[int]:
    """Of a class or a region, as dataset.json gives them."""
    return {*values} if isinstance(values, (list, tuple)) else {values}  # type: ignore[arg-type]


def _fault(data: Any, case: str, highest: int, unseen: set[int]) -> str | None:
    """What is wrong with a case; the labels it has are taken out of `unseen`."""
    try:
        image, labels, _, _ = data.load_case(case)
        _touch(image)
        labels = np.asarray(labels[:])
    except Exception as error:  # a damaged file fails in the way of its format
        return f"{case} (cannot be read: {_first_line(error)})"
    if tuple(image.shape[1:]) != labels.shape[1:]:
        return f"{case} (image {tuple(image.shape[1:])}, labels {labels.shape[1:]})"
    wrong = [value for value in (labels.min(), labels.max()) if not OUTSIDE <= value <= highest]
    if wrong:
        return f"{case} (label {' and '.join(f'{value:g}' for value in wrong)})"
    unseen -= {label for label in tuple(unseen) if (labels == label).any()}
    return None


def _touch(image: Any) -> None:
    """Read a corner of an image: of a file that was cut, the end is missing."""
    if min(image.shape) < 1:
        raise ValueError(f"it is empty, of shape {tuple(image.shape)}")
    np.asarray(image[tuple(slice(size - 1, size) for size in image.shape)])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
