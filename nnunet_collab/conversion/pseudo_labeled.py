"""Write a raw dataset in which unlabeled images have pseudo labels, beside the cases with true labels.

nnU-Net trains on it like on any other. The pseudo labels stay recognizable: dataset.json names them
(`core.pseudo_labels`), a table has the confidence of each, and no fold validates on them. Its plans are those of the
dataset with the true labels alone, so that no pseudo label has a part in planning, and models can be compared.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_collab.conversion.labeled_subset import link, training_cases
from nnunet_collab.conversion.raw_target import Target, raw_folder
from nnunet_collab.core.csv_text import write_csv
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_json
from nnunet_collab.core.image_io import read_whole
from nnunet_collab.core.json_files import read_json_object
from nnunet_collab.core.nnunet_folders import (
    PREPROCESSED,
    RAW,
    RESULTS,
    SPLIT_FILE,
    UNLABELED,
    Split,
    case_images,
    read_split,
)
from nnunet_collab.core.patients import PatientRule, copy_patients, patient_lookup, patient_rule
from nnunet_collab.core.pseudo_labels import MARK, TABLE, file_digest, refuse_pseudo_labels
from nnunet_collab.splits.few_labels import of_patients

FINGERPRINT = "dataset_fingerprint.json"


class PseudoLabel(NamedTuple):
    """What the table says about an unlabeled image.

    Attributes:
        confidence: Agreement of the members with the ensemble, 0 to 1 or NaN.
        uncertain: Share of uncertain voxels.
        kept: Whether the image is in the dataset.
    """

    confidence: float
    uncertain: float
    kept: bool


class Origin(NamedTuple):
    """The dataset with the true labels.

    Attributes:
        raw: Folder of the raw dataset.
        preprocessed: Folder of the preprocessed dataset.
        facts: Content of dataset.json.
        plans: Content of the plans.
        plans_name: Name of the plans file without its ending.
        split: The folds; None if there is no split, which only fold `all` permits.
        unlabeled: Unlabeled case -> its images.
        patients: Who the patient of a case is; see `core.patients`.
    """

    raw: Path
    preprocessed: Path
    facts: dict[str, Any]
    plans: dict[str, Any]
    plans_name: str
    split: Split | None
    unlabeled: Mapping[str, Sequence[Path]]
    patients: PatientRule


def read_origin(raw: Path, preprocessed: Path, facts: dict[str, Any], plans: str) -> Origin:
    """Read what is needed of a dataset with true labels; no label is opened.

    Args:
        raw: Folder of the raw dataset.
        preprocessed: Folder of the preprocessed dataset.
        facts: Content of dataset.json.
        plans: Name of the plans.

    Raises:
        CollabError: If the dataset has pseudo labels itself, has no unlabeled images, is not planned, a case is both
            labeled and unlabeled, the patient of an unlabeled case is not known, or its split has unlabeled cases.
    """
    refuse_pseudo_labels(facts, f"-d {raw.name}", "a dataset with new pseudo labels")
    fix = f"Run nnUNetv2_plan_and_preprocess -d {int(raw.name[7:10])} first."
    content = read_json_object(preprocessed / f"{plans}.json", fix)
    read_json_object(preprocessed / FINGERPRINT, fix)
    unlabeled = case_images(raw / UNLABELED, facts["file_ending"])
    if not unlabeled:
        raise CollabError(
            f"{raw / UNLABELED}: pseudo labels need unlabeled images, named CASE_0000{facts['file_ending']}; there are "
            "none. Put them there."
        )
    if doubled := sorted(unlabeled.keys() & training_cases(raw, facts).keys()):
        raise CollabError(
            f"{raw}: a case must be either in imagesTr or in {UNLABELED}; in both: {listed(doubled)}. Rename or remove "
            "one of the two."
        )
    # Otherwise a validation patient would not be noticed.
    patients = patient_rule(facts, raw, preprocessed)
    patient_lookup(patients, unlabeled)
    split = read_split(preprocessed / SPLIT_FILE) if (preprocessed / SPLIT_FILE).is_file() else None
    if split is not None and any(fold.get("unlabeled") for fold in split):
        raise CollabError(
            f"{preprocessed / SPLIT_FILE}: unlabeled images must be in {UNLABELED}, because nnU-Net reads all labels "
            "of labelsTr; this split has unlabeled cases. Move them with nnunet_collab split --labeled ... --to NEW_ID."
        )
    return Origin(raw, preprocessed, facts, content, plans, split, unlabeled, patients)


def ignore_value(facts: Mapping[str, Any]) -> int:
    """Value of the ignore label: that of dataset.json, or the next free one, where nnU-Net expects it."""
    labels = facts["labels"]
    if "ignore" in labels:
        return int(labels["ignore"])
    return 1 + max(int(np.max(value)) for value in labels.values())


def target_folder(dataset_id: int, name: str) -> Path:
    """Folder of the dataset to write, after checking that it can be written.

    Raises:
        CollabError: If the id or the name is not valid, is taken, or the folder cannot be written.
    """
    target = Target(dataset_id, name)
    for variable in (RAW, RESULTS):
        place = Path(os.environ.get(variable) or os.devnull, target.folder)
        if place.exists():
            raise CollabError(
                f"{place}: a dataset with pseudo labels is not written twice, as models may have learned from it; this "
                "folder exists. Choose another id with --to, or remove the dataset with all that was made of it."
            )
    try:
        return raw_folder(target)
    except CollabError as error:  # the message is made for `convert`, where -d sets the id
        raise CollabError(str(error).replace("-d:", "--to:").replace("with -d", "with --to")) from error


def with_pseudo_labels(split: Split, kept: Collection[str], patients: PatientRule) -> Split:
    """The folds with pseudo-labeled cases in "train"; those of validation patients are left out of that fold."""
    folds = []
    for fold in split:
        known = {*of_patients(kept, fold["val"], patients)}
        folds.append({"train": sorted({*fold["train"], *kept} - known), "val": sorted(fold["val"])})
    return folds


def write_pseudo_labeled(
    origin: Origin,
    folder: Path,
    found: Mapping[str, PseudoLabel],
    record: Mapping[str, Any],
    write_label: Callable[[str, Path], object],
) -> None:
    """Write the dataset, with hard links instead of copies where the file system supports them.

    True cases and kept pseudo-labeled cases go to imagesTr and labelsTr, the images left out to imagesUn. Test cases
    are not taken over. The folder appears under its name when it is complete.

    Args:
        origin: The dataset with the true labels.
        folder: Folder to write, from `target_folder`.
        found: Every unlabeled case.
        record: Further entries of the mark in dataset.json.
        write_label: Function that writes the pseudo label of a case to a path.

    Raises:
        CollabError: If a true label is missing, or writing fails.
    """
    cases = training_cases(origin.raw, origin.facts)
    if missing := [case for case, files in cases.items() if not files.label.is_file()]:
        raise CollabError(f"{origin.raw}: every case of imagesTr must have a label; without: {listed(missing)}.")
    kept = sorted(case for case, one in found.items() if one.kept)
    ending = origin.facts["file_ending"]
    preprocessed = Path(os.environ[PREPROCESSED], folder.name)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for case, files in cases.items():
            _link_images(partial / "imagesTr", case, files.images, ending)
            link(files.label, partial / "labelsTr" / f"{case}{ending}")
            link(files.label.with_name(f"{case}.json"), partial / "labelsTr" / f"{case}.json")
        for case, images in origin.unlabeled.items():
            _link_images(partial / ("imagesTr" if found[case].kept else UNLABELED), case, images, ending)
        digests = {}
        for case in kept:
            path = partial / "labelsTr" / f"{case}{ending}"
            write_label(case, path)
            digests[case] = file_digest(path)
        write_csv(_table(sorted(cases), found), partial / TABLE)
        facts = _facts(origin, folder, len(cases) + len(kept), {**record, "cases": digests})
        facts |= copy_patients(origin.raw, partial, folder.name)
        split = None
        if origin.split is not None:
            split = with_pseudo_labels(origin.split, kept, origin.patients)
            write_json(partial / SPLIT_FILE, split)
        write_json(partial / "dataset.json", facts)
        preprocessed.mkdir(parents=True, exist_ok=True)
        write_json(preprocessed / "dataset.json", facts)
        write_json(preprocessed / f"{origin.plans_name}.json", {**origin.plans, "dataset_name": folder.name})
        shutil.copyfile(origin.preprocessed / FINGERPRINT, preprocessed / FINGERPRINT)
        if split is not None:
            write_json(preprocessed / SPLIT_FILE, split)
        partial.rename(folder)
    except OSError as error:
        raise CollabError(
            f"{folder}: the dataset could not be written ({error}). Free some disk space or fix the permissions, then "
            "run the command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_segmentation(labels: NDArray[np.int16], like: Path, place: Path, reader: type[Any]) -> None:
    """Write label values with nnU-Net's own writer, on the grid of another segmentation.

    Args:
        labels: Label values `(Z, Y, X)`.
        like: A segmentation on the same grid.
        place: File to write.
        reader: nnU-Net's reader and writer class.

    Raises:
        CollabError: If the file cannot be written.
    """
    _, properties = read_whole(like, reader().read_seg)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        reader().write_seg(
            labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16), str(place), properties
        )
    except RuntimeError as error:  # SimpleITK reports a full disk so
        raise OSError((str(error).strip().splitlines() or ["no reason given"])[-1]) from error


def _link_images(folder: Path, case: str, images: Sequence[Path], ending: str) -> None:
    for channel, path in enumerate(images):
        link(path, folder / f"{case}_{channel:04d}{ending}")
    link(images[0].with_name(f"{case}.json"), folder / f"{case}.json")  # spacing of a 3D TIFF


def _facts(origin: Origin, folder: Path, total: int, mark: Mapping[str, Any]) -> dict[str, Any]:
    """dataset.json of the new dataset."""
    kept = {key: value for key, value in origin.facts.items() if key != "dataset"}
    labels = {**origin.facts["labels"], "ignore": ignore_value(origin.facts)}
    changes = {"name": folder.name[11:], "numTraining": total, "labels": labels}
    return {**kept, **changes, MARK: {"of": origin.raw.name, **mark}}


def _table(labeled: Sequence[str], found: Mapping[str, PseudoLabel]) -> pd.DataFrame:
    """One row per case: where its label comes from, and how far it can be trusted."""
    rows: list[dict[str, Any]] = [{"case": case, "origin": "true label", "in_dataset": "yes"} for case in labeled]
    for case, one in sorted(found.items()):
        kept = "yes" if one.kept else "no"
        row = {"case": case, "origin": "pseudo label", "in_dataset": kept}
        rows.append({**row, "confidence": one.confidence, "uncertain_share": one.uncertain})
    return pd.DataFrame(rows, columns=["case", "origin", "in_dataset", "confidence", "uncertain_share"])
