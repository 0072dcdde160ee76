"""`nnunet_collab split`: choose the few patients that keep their labels, and search for one image in two roles."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.nnunet_folders import (
    SPLIT_FILE,
    Split,
    case_images,
    find_dataset,
    read_dataset_json,
    read_split,
)
from nnunet_collab.core.patients import PatientOf, PatientRule, patient_lookup, patient_rule
from nnunet_collab.core.pseudo_labels import pseudo_labeled, refuse_pseudo_labels
from nnunet_collab.splits.few_labels import (
    Labeled,
    check_roles,
    drawn_cases,
    named_cases,
    of_patients,
    parse_labeled,
    validate_split,
    with_few_labels,
    with_named_labels,
)
from nnunet_collab.splits.patient_folds import patient_folds
from nnunet_collab.splits.split_files import write_split

if TYPE_CHECKING:
    from nnunet_collab.splits.audit import Entry

_FOLDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab split`."""
    parser.add_argument(
        "-d", dest="dataset", metavar="ID", required=True, help="nnU-Net's dataset id, or its full name"
    )
    parser.add_argument(
        "--labeled",
        nargs="+",
        metavar="N|P%|NAME",
        help="who keeps the labels: a number of patients (7), a percentage (10%%), or names of patients or cases",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing the patients (default: 0)")
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="regular expression that matches whole case names; its first group is the patient",
    )
    parser.add_argument("--folds", type=int, help=f"number of folds if there is no split yet (default: {_FOLDS})")
    parser.add_argument(
        "--audit", action="store_true", help="search for the same image in two roles; exit status 1 if one is found"
    )
    parser.add_argument("--to", metavar="NEW_ID", type=int, help="write a new raw dataset without the other labels")
    parser.add_argument(
        "--validation",
        nargs="+",
        metavar="NAME",
        help="with --to: patients or cases to validate on, in the only fold; they keep labels and are never trained on",
    )
    parser.add_argument(
        "--test",
        nargs="+",
        metavar="NAME",
        help="with --to: patients or cases that become the test cases (imagesTs, labelsTs)",
    )
    parser.add_argument("--name", help="name of that dataset (default: OLDNAME + Labeled + number of patients)")
    parser.add_argument("--overwrite", action="store_true", help="replace another split; a copy of it is kept")


def run(args: argparse.Namespace) -> int:
    """Write the split or the new dataset, and print it. With --audit, search for duplicates.

    Returns:
        1 if the audit finds duplicates, else 0.

    Raises:
        CollabError: If the arguments, the dataset or its split are refused. Nothing is written then.
    """
    _refuse_arguments(args)
    labeled = parse_labeled(args.labeled) if args.labeled else None
    raw, preprocessed = find_dataset(args.dataset)
    dataset_json = read_dataset_json(raw / "dataset.json", fix="Correct -d or nnUNet_raw, or the file.")
    if labeled is not None:
        refuse_pseudo_labels(dataset_json, f"-d {args.dataset}", "a split")

    from nnunet_collab.conversion.labeled_subset import training_cases
    from nnunet_collab.splits.audit import duplicates, equal_images

    cases = list(training_cases(raw, dataset_json))
    if not cases:
        ending = dataset_json["file_ending"]
        raise CollabError(f"{raw / 'imagesTr'}: it must hold cases named CASE_0000{ending}; it holds none. Correct -d.")
    rule = args.patient_pattern or patient_rule(dataset_json, raw, preprocessed)
    patient_of = patient_lookup(rule, cases)
    if rule is None:
        print(
            "Every case is treated as a separate patient, because dataset.json has no patient_pattern and there is "
            "no patients.csv beside it. If a patient has several cases, set --patient-pattern."
        )
    # Read before anything is written: an image that cannot be read is refused.
    images = _images(raw, dataset_json) if args.audit else {}
    copies = equal_images(images) if images else []
    if labeled is not None and args.to is not None:
        raw = _new_dataset(args, labeled, raw, dataset_json, patient_of)
        preprocessed = preprocessed.with_name(raw.name)
        dataset_json = read_dataset_json(raw / "dataset.json")
        tested = set(case_images(raw / "imagesTs", dataset_json["file_ending"]))
        cases = list(training_cases(raw, dataset_json))
        copies = [[_in_new_dataset(entry, cases, tested) for entry in group] for group in copies]
    elif labeled is not None:
        _split(args, labeled, (preprocessed, raw), cases, patient_of)
        _print_warnings(raw, preprocessed, dataset_json, cases, rule)
    if not args.audit:
        return 0
    lines = duplicates(copies, _existing_split((preprocessed, raw), cases, patient_of))
    roles = "labeled, unlabeled, validation and test images"
    print(*lines, sep="\n") if lines else print(f"No duplicates among {roles} ({len(images)} cases).")
    return 1 if lines else 0


def _refuse_arguments(args: argparse.Namespace) -> None:
    if not args.labeled and not args.audit:
        raise CollabError("split: needs --labeled, --audit, or both; got neither. Add e.g. --labeled 7.")
    if not args.labeled and args.to is not None:
        raise CollabError("--to: it needs --labeled, which selects the labels of the new dataset. Add --labeled.")
    if args.name is not None and args.to is None:
        raise CollabError("--name: it names the new dataset that --to writes, so it needs --to. Add --to NEW_ID.")
    for option in ("validation", "test"):
        if getattr(args, option) and args.to is None:
            raise CollabError(f"--{option}: it gives patients of a new dataset a role, so it needs --to ID.")
    if args.folds is not None and args.validation:
        raise CollabError("--folds: with --validation there is one fold. Leave out one of the two.")
    if args.folds is not None and args.folds < 2:
        raise CollabError(
            f"--folds: must be at least 2; got {args.folds}. Correct it, or leave --folds out for {_FOLDS} folds."
        )


def _split(
    args: argparse.Namespace,
    labeled: Labeled,
    folders: tuple[Path, Path],
    cases: Collection[str],
    patient_of: PatientOf,
) -> None:
    """Make the split and write it where nnU-Net reads it; `folders`: the preprocessed and the raw dataset."""
    if isinstance(labeled, tuple):
        names = named_cases(labeled, cases, patient_of)
        split = with_named_labels(cases, names, patient_of, args.folds or _FOLDS)
        print("The named patients are labeled in every fold. The other patients are distributed over the folds.")
    else:
        try:
            folds = _existing_split(folders, cases, patient_of)
        except CollabError as error:
            if not args.overwrite:
                fix = "Or make new folds with --overwrite, which keeps a copy of the file."
                raise CollabError(f"{error} {fix}") from error
            print(f"{error}\nThis split is not used.")
            folds = None
        if folds is None:
            folds = patient_folds(cases, patient_of, folds=args.folds or _FOLDS)
            print(f"{len(folds)} folds are made by patient, because there is no split to start from.")
        elif args.folds not in (None, len(folds)):
            raise CollabError(
                f"--folds: must be {len(folds)}, the number of folds of the existing split; got {args.folds}. Leave "
                f"--folds out, or move {SPLIT_FILE} away to make new folds."
            )
        split = with_few_labels(folds, patient_of, labeled, args.seed)
    validate_split(split, cases, patient_of)
    write_split(split, folders, overwrite=args.overwrite)
    print(_table(split, patient_of))
    if not any(fold["unlabeled"] for fold in split):
        print("No case is unlabeled: all training patients keep their labels.")
    if unused := sorted(set(cases) - {case for role in split[0].values() for case in role}):
        print(f"Not used in fold 0, because the existing split leaves them out: {listed(unused)}.")


def _existing_split(folders: tuple[Path, Path], cases: Collection[str], patient_of: PatientOf) -> Split | None:
    """The checked split that training reads, or else that of the raw dataset; None if there is none."""
    path = next((folder / SPLIT_FILE for folder in folders if (folder / SPLIT_FILE).is_file()), None)
    if path is None:
        return None
    try:
        split = read_split(path)
        validate_split(split, cases, patient_of)
    except CollabError as error:
        if str(error).startswith(str(path)):
            raise
        raise CollabError(f"{path.parent}: {error}") from error
    return split


def _table(split: Split, patient_of: PatientOf) -> str:
    """One line per fold: number of patients / number of cases in each role."""
    rows = [["fold", "labeled", "unlabeled", "validation"]]
    for number, fold in enumerate(split):
        roles = (fold["train"], fold["unlabeled"], fold["val"])
        rows.append([str(number), *(f"{len({patient_of(case) for case in role})}/{len(role)}" for role in roles)])
    return "\n".join(["patients/cases", *("".join(cell.rjust(12) for cell in row) for row in rows)])


def _print_warnings(
    raw: Path, preprocessed: Path, dataset_json: dict[str, Any], known: Collection[str], rule: PatientRule
) -> None:
    """Warn of information that this split does not hide."""
    from nnunet_collab.core.nnunet_folders import UNLABELED, channel_names

    planned = [path.read_text(encoding="utf-8") for path in preprocessed.glob("*.json") if path.name != SPLIT_FILE]
    ct = any(str(name).lower() == "ct" for name in channel_names(dataset_json).values())
    if ct or any('"CTNormalization"' in text for text in planned):
        print(
            "Warning: the images are normalized as CT, with intensities under all labels of labelsTr, including those "
            "that this split hides. To plan without them, write a new dataset: add --to NEW_ID."
        )
    if shared := of_patients(case_images(raw / UNLABELED, dataset_json["file_ending"]), known, rule):
        print(
            f"{UNLABELED} also holds images of patients of imagesTr: {listed(shared)}. A training leaves out the "
            f"images of its validation patients."
        )


def _new_dataset(
    args: argparse.Namespace, labeled: Labeled, raw: Path, dataset_json: dict[str, Any], patient_of: PatientOf
) -> Path:
    from nnunet_collab.conversion.labeled_subset import (
        LabeledRoles,
        subset_target,
        training_cases,
        write_labeled_subset,
    )

    cases = training_cases(raw, dataset_json)
    roles = {
        role: named_cases(getattr(args, role) or (), cases, patient_of, f"--{role}") for role in ("validation", "test")
    }
    taken = {case for names in roles.values() for case in names}
    if isinstance(labeled, tuple):
        chosen = named_cases(labeled, cases, patient_of)
    else:
        chosen = drawn_cases([case for case in cases if case not in taken], patient_of, labeled, args.seed)
    check_roles("split --to", {"labeled": chosen, **roles}, patient_of, "Name each patient once.")
    patients = len({patient_of(case) for case in chosen})
    target = subset_target(raw, args.to, args.name, patients, overwrite=args.overwrite)
    return write_labeled_subset(
        raw, dataset_json, LabeledRoles(chosen, **roles), target, patient_of, args.folds or _FOLDS
    )


def _in_new_dataset(entry: Entry, labeled: Collection[str], tested: Collection[str]) -> Entry:
    """The entry of the same image in the dataset in which only the cases `labeled` have labels in imagesTr."""
    from nnunet_collab.core.nnunet_folders import UNLABELED

    if entry.folder != "imagesTr" or entry.case in labeled:
        return entry
    return entry._replace(folder="imagesTs" if entry.case in tested else UNLABELED)


def _images(raw: Path, dataset_json: dict[str, Any]) -> dict[Entry, list[Path]]:
    """Image files of all cases in imagesTr, imagesUn and imagesTs."""
    from nnunet_collab.conversion.labeled_subset import training_cases
    from nnunet_collab.core.nnunet_folders import UNLABELED
    from nnunet_collab.splits.audit import Entry

    # An image with a pseudo label counts as unlabeled.
    pseudo = pseudo_labeled(dataset_json)
    images = {
        Entry(UNLABELED if case in pseudo else "imagesTr", case): files.images
        for case, files in training_cases(raw, dataset_json).items()
    }
    for folder in (UNLABELED, "imagesTs"):
        found = case_images(raw / folder, dataset_json["file_ending"])
        images |= {Entry(folder, case): paths for case, paths in found.items()}
    return images
