"""Write a raw dataset that contains the labels of only a few cases.

When nnU-Net plans, it uses all labels that it finds. Its intensity statistics for CT, and so clipping and scaling,
would depend on labels that few-label training must not use. The dataset written here does not contain them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_collab.conversion.raw_target import Target, contents, raw_folder, split_path
from nnunet_collab.conversion.voxel_values import label_values, not_whole, round_label, write_image
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_json
from nnunet_collab.core.image_io import read_image
from nnunet_collab.core.nnunet_folders import PREPROCESSED, SPLIT_FILE, UNLABELED, case_images
from nnunet_collab.core.patients import PatientOf, copy_patients
from nnunet_collab.splits.patient_folds import patient_folds


class TrainingCase(NamedTuple):
    """Files of a training case; the label file may be missing."""

    images: list[Path]
    label: Path


class LabeledRoles(NamedTuple):
    """Cases whose labels the new dataset has.

    Attributes:
        train: Cases that are trained on, at least 1.
        validation: Cases of the only fold's validation. Empty: folds are made of the labeled patients.
        test: Cases that go to imagesTs and labelsTs.
    """

    train: Sequence[str]
    validation: Sequence[str] = ()
    test: Sequence[str] = ()


def training_cases(raw: Path, dataset_json: dict[str, Any]) -> dict[str, TrainingCase]:
    """Cases with labels, in alphabetical order: those of imagesTr, or those that dataset.json lists.

    Args:
        raw: Folder of the raw dataset.
        dataset_json: Content of its dataset.json.
    """
    ending = dataset_json["file_ending"]
    if "dataset" not in dataset_json:
        images = case_images(raw / "imagesTr", ending)
        return {case: TrainingCase(paths, raw / "labelsTr" / f"{case}{ending}") for case, paths in images.items()}
    listed_cases = sorted(dataset_json["dataset"].items())
    return {
        case: TrainingCase(
            [raw / os.path.expandvars(path) for path in entry["images"]], raw / os.path.expandvars(entry["label"])
        )
        for case, entry in listed_cases
    }


def subset_target(raw: Path, dataset_id: int, name: str | None, patients: int, *, overwrite: bool) -> Target:
    """The dataset to write. Its default name is the old name, "Labeled" and the number of labeled patients."""
    return Target(dataset_id, name or f"{raw.name[11:]}Labeled{patients}", overwrite)


def write_labeled_subset(
    raw: Path, dataset_json: dict[str, Any], roles: LabeledRoles, target: Target, patient_of: PatientOf, folds: int
) -> Path:
    """Write the dataset, with hard links instead of copies if the file system supports them.

    Labeled cases and those of the validation go to imagesTr and labelsTr, test cases to imagesTs and labelsTs. The
    images of all other cases go to imagesUn, in addition to those that are already there. imagesTs and labelsTs are
    taken over. With cases of a validation, or at least 2 labeled patients, a split by patient is written.

    Args:
        raw: Folder of the old dataset, which is only read.
        dataset_json: Content of its dataset.json.
        roles: Names of the cases that keep their labels.
        target: The dataset to write.
        patient_of: Case -> patient.
        folds: Number of folds, at least 2.

    Returns:
        Folder of the new dataset.

    Raises:
        CollabError: If the target is refused, a label is missing, a name is in both imagesTr and imagesUn, or writing
            fails. No new dataset is written then.
    """
    cases = training_cases(raw, dataset_json)
    labeled = sorted([*roles.train, *roles.validation])
    _refuse_faults(raw, cases, [*labeled, *roles.test], dataset_json["file_ending"])
    rounded = _labels_to_round(cases, [*labeled, *roles.test])
    split = None
    if roles.validation:
        split = [{"train": sorted(roles.train), "val": sorted(roles.validation)}]
    elif len({patient_of(case) for case in labeled}) > 1:
        split = patient_folds(labeled, patient_of, folds=folds)
    folder, split_file = _places(target, split)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        places = {**dict.fromkeys(labeled, "Tr"), **dict.fromkeys(roles.test, "Ts")}
        _link_cases(raw, partial, cases, places, dataset_json["file_ending"], rounded)
        kept = {key: value for key, value in dataset_json.items() if key != "dataset"}
        changes: dict[str, object] = {"name": target.name, "numTraining": len(labeled), "labeled_subset_of": raw.name}
        changes |= copy_patients(raw, partial, target.folder)
        write_json(partial / "dataset.json", {**kept, **changes})
        if split is not None:
            write_json(partial / SPLIT_FILE, split)
        if folder.exists():
            print(f"Replacing {folder}, which held {contents(folder)}.")
            shutil.rmtree(folder)
        partial.rename(folder)
        if split_file is not None:
            split_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(split_file, split)
    except OSError as error:
        raise CollabError(
            f"{folder}: the dataset could not be written ({error}). Free some disk space or fix the permissions, then "
            "run the command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _print_summary(folder, target.dataset_id, len(cases), roles, patient_of)
    return folder


def _places(target: Target, split: list[dict[str, list[str]]] | None) -> tuple[Path, Path | None]:
    """Folder of the dataset, and the path from which training reads its split; None without a split or such a path."""
    try:
        folder = raw_folder(target)
        if split is not None:
            return folder, split_path(target, split)
    except CollabError as error:  # the message is made for `convert`, where -d sets the id
        raise CollabError(str(error).replace("-d:", "--to:").replace("with -d", "with --to")) from error
    stale = Path(os.environ.get(PREPROCESSED, ""), target.folder, SPLIT_FILE)
    if os.environ.get(PREPROCESSED) and stale.exists():
        raise CollabError(
            f"{stale}: with one labeled patient there must not be a split, because fold `all` is trained; there is "
            "one. Move the file away."
        )
    return folder, None


def _refuse_faults(raw: Path, cases: Mapping[str, TrainingCase], labeled: Iterable[str], ending: str) -> None:
    if missing := [case for case in sorted(labeled) if not cases[case].label.is_file()]:
        raise CollabError(
            f"{raw}: every labeled case must have a label; these have none: {listed(missing)}. Add the labels, or "
            "remove the cases from imagesTr."
        )
    if doubled := sorted(cases.keys() & case_images(raw / UNLABELED, ending).keys()):
        raise CollabError(
            f"{raw}: a case must be either in imagesTr or in {UNLABELED}; in both: {listed(doubled)}. Rename or remove "
            "one of the two."
        )


def _labels_to_round(cases: Mapping[str, TrainingCase], labeled: Iterable[str]) -> list[str]:
    """Labeled cases whose labels must be rounded, e.g. 2.9999998 to 3: nnU-Net would truncate it to 2.

    Raises:
        CollabError: If labels cannot be read or hold values that are not whole numbers; the message lists all of them.
    """
    to_round, problems = [], []
    for case in sorted(labeled):
        path = cases[case].label
        try:
            values = label_values(read_image(path))
        except CollabError as error:
            problems.append(f"case {case}: {error}")
            continue
        if wrong := not_whole(values):
            problems.append(
                f"case {case}: {path}: label values must be whole numbers; found {wrong}. Export the label again, or "
                "remove the case from imagesTr."
            )
        elif any(value != round(value) for value in values):
            to_round.append(case)
    if problems:
        raise CollabError(
            "\n- ".join(["split --to: nnU-Net cannot use these labels, so nothing was written:", *problems])
        )
    return to_round


def _print_summary(folder: Path, new_id: int, total: int, roles: LabeledRoles, patient_of: PatientOf) -> None:
    def counted(cases: Sequence[str]) -> str:
        patients = sorted({patient_of(case) for case in cases})
        return f"{len(cases)} cases of {len(patients)} patients ({listed(patients)})"

    print(f"wrote   {folder}: labeled {counted(roles.train)};")
    if roles.validation:
        print(f"        validation {counted(roles.validation)};")
    if roles.test:
        print(f"        test {counted(roles.test)};")
    rest = total - sum(map(len, roles))
    print(f"        the images of the other {rest} training cases are in {UNLABELED}, without labels")
    if len({patient_of(case) for case in roles.train}) < 2 and not roles.validation:
        print("With one labeled patient there is no validation case, so no split is written. Train fold `all`.")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {new_id} --verify_dataset_integrity")
    print(f"then: nnunet_collab preprocess_unlabeled -d {new_id} -c CONFIGURATION")


def _link_cases(
    raw: Path,
    folder: Path,
    cases: Mapping[str, TrainingCase],
    labeled: Mapping[str, str],
    ending: str,
    rounded: Collection[str],
) -> None:
    """Link all files; `labeled`: case with a label -> "Tr" or "Ts"."""
    for case, files in cases.items():
        images = folder / (f"images{labeled[case]}" if case in labeled else UNLABELED)
        for channel, path in enumerate(files.images):
            link(path, images / f"{case}_{channel:04d}{ending}")
        # The spacing of a 3D TIFF is in a file beside the image.
        link(files.images[0].with_name(f"{case}.json"), images / f"{case}.json")
        if case in labeled:
            labels = folder / f"labels{labeled[case]}"
            place = labels / f"{case}{ending}"
            if case in rounded:
                place.parent.mkdir(parents=True, exist_ok=True)
                write_image(round_label(read_image(files.label)), place)
            else:
                link(files.label, place)
            link(files.label.with_name(f"{case}.json"), labels / f"{case}.json")
    for part in (UNLABELED, "imagesTs", "labelsTs"):
        for path in sorted((raw / part).glob("*")):
            link(path, folder / part / path.name)


def link(source: Path, place: Path) -> None:
    """Make a hard link, or a copy if the file system does not support links. Do nothing if the source is missing."""
    if not source.is_file():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a hard link to a symbolic link with a relative target would not work
    try:
        os.link(source, place)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, place)
