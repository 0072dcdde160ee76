"""`nnunet_collab preprocess_unlabeled`: preprocess the images of imagesUn with the plans of the labeled cases."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.names import require_plain_name
from nnunet_collab.core.nnunet_folders import (
    UNLABELED,
    case_images,
    channel_names,
    find_dataset,
    other_entries,
    read_dataset_json,
    read_plans,
)
from nnunet_collab.data.unlabeled_checks import image_problems, name_problems
from nnunet_collab.data.unlabeled_preprocessing import (
    broken_cases,
    complete_cases,
    preprocess_cases,
    preprocessing_fingerprint,
    refuse_other_plans,
    unlabeled_folder,
)


class Job(NamedTuple):
    """One folder of preprocessed cases to write."""

    configurations: list[str]  # configurations that share the folder
    folder: Path
    todo: list[str]  # cases that are not complete
    done: int  # number of complete cases
    gone: list[str]  # complete cases whose raw images were removed
    broken: list[str]  # cases that were complete before, but are damaged now


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `preprocess_unlabeled -d ID -c CONFIGURATION ... [-p PLANS] [-np N] [--overwrite] [...]`."""
    parser.add_argument(
        "-d", dest="dataset", metavar="ID", required=True, help="nnU-Net's dataset id, or its full name"
    )
    parser.add_argument("-c", dest="configurations", metavar="CONFIGURATION", nargs="+", required=True, help="e.g. 2d")
    parser.add_argument("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="default: nnUNetPlans")
    parser.add_argument("-np", dest="processes", metavar="N", type=int, default=2, help="processes (default: 2)")
    parser.add_argument(
        "--overwrite", action="store_true", help="preprocess all cases again, and delete those no longer in imagesUn"
    )
    parser.add_argument(
        "--locate",
        metavar="MODEL",
        type=Path,
        help="results folder of a trained model of this configuration. It predicts the unlabeled images once; then a "
        "third of their crops are centered on its predicted foreground",
    )
    parser.add_argument("-device", default="cuda", help="device on which MODEL predicts: cuda (default), cpu or mps")
    parser.add_argument(
        "--ignore-others", action="store_true", help="ignore files in imagesUn that are not images of a case"
    )


def run(args: argparse.Namespace) -> int:
    """Check the input, then preprocess the cases that are not complete.

    Returns:
        0; or 1 if imagesUn holds entries that are not used and `--ignore-others` is not set. Nothing is written then.

    Raises:
        CollabError: If the input has faults; the message lists all of them, and nothing is written. Or if a case fails.
    """
    if args.processes < 1:
        raise CollabError(f"-np: the number of processes must be at least 1; got {args.processes}. Write e.g. -np 2.")
    require_plain_name("-p", args.plans, "Write the name of the plans, e.g. nnUNetPlans.")
    raw, preprocessed = find_dataset(args.dataset)
    problems: list[str] = []
    plans, dataset_json = _read_files(args, raw, preprocessed, problems)
    images: dict[str, list[Path]] = {}
    others: list[str] = []
    if dataset_json:
        images = case_images(raw / UNLABELED, dataset_json["file_ending"])
        others = other_entries(raw / UNLABELED, images)
        problems += name_problems(raw, images, dataset_json["file_ending"], dataset_json.get("dataset", ()))
    jobs = [*_jobs(args, preprocessed, plans, dataset_json, images, problems)] if plans and dataset_json else []
    waiting = {case: images[case] for case in sorted({case for job in jobs for case in job.todo})}
    if waiting:
        problems += _image_problems(waiting, plans, dataset_json, args.processes)
    not_used = _not_used(raw / UNLABELED, others, dataset_json.get("file_ending", "")) if others else ""
    if problems:
        problems += [not_used] if not_used and not args.ignore_others else []
        found = "one fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise CollabError("\n- ".join([f"preprocess_unlabeled: {found}; nothing was written:", *problems]))
    if not_used:
        print(f"nnunet_collab: {not_used}", file=sys.stderr)
        if not args.ignore_others:
            print("Nothing was written. To go on without them, add --ignore-others.", file=sys.stderr)
            return 1
    print(f"reads   {raw / UNLABELED} ({len(images)} cases), {preprocessed / args.plans}.json")
    locating = None
    if args.locate is not None:
        from nnunet_collab.data.locating import prepare

        locating = prepare(args.locate, args.configurations, preprocessed, plans, dataset_json, args.device)
    for job in jobs:
        _do(job, args, images, plans, dataset_json)
    if locating is not None:
        locating.run(sorted(images), overwrite=args.overwrite)
    print(f"Done: {len(images)} unlabeled cases are ready for {', '.join(dict.fromkeys(args.configurations))}.")
    return 0


def _do(job: Job, args: argparse.Namespace, images: Mapping[str, list[Path]], plans: Any, dataset_json: Any) -> None:
    print(f"writes  {job.folder}, for {', '.join(job.configurations)}: {len(job.todo)} cases, {job.done} are complete")
    if job.gone:
        fate = "deleted" if args.overwrite else "kept; --overwrite deletes them"
        print(f"No longer in {UNLABELED}, {fate}: {', '.join(job.gone)}")
    if job.broken:
        print(f"Preprocessed again, because files are missing, empty or truncated: {', '.join(job.broken)}")
    if args.overwrite and job.folder.exists():
        shutil.rmtree(job.folder)
    if job.todo:
        todo = {case: images[case] for case in job.todo}
        preprocess_cases(job.folder, todo, plans, job.configurations[0], dataset_json, processes=args.processes)


def _read_files(
    args: argparse.Namespace, raw: Path, preprocessed: Path, problems: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json. If one cannot be used, it is empty, and a line is added to `problems`."""
    plan_it = f"Plan the dataset: nnUNetv2_plan_and_preprocess -d {int(raw.name[7:10])} --verify_dataset_integrity"
    plans: dict[str, Any] = {}
    dataset_json: dict[str, Any] = {}
    try:
        plans = read_plans(preprocessed / f"{args.plans}.json", plan_it)
    except CollabError as error:
        problems.append(str(error))
    # nnU-Net preprocesses with the copy from planning. Without it, the raw file still allows checking the images.
    places = [folder / "dataset.json" for folder in (preprocessed, raw)]
    place = next((place for place in places if place.is_file()), places[0])
    try:
        dataset_json = read_dataset_json(place, fix=f"Correct the file. {plan_it}")
    except CollabError as error:
        problems.append(str(error))
    return plans, dataset_json


def _not_used(folder: Path, others: Sequence[str], ending: str) -> str:
    count = "1 entry is" if len(others) == 1 else f"{len(others)} entries are"
    return (
        f"{folder}: all images must be named CASE_0000{ending}; {count} not, and not used: {listed(others, most=20)}. "
        f"Convert images to {ending} and rename them; move anything else out of the folder."
    )


def _jobs(
    args: argparse.Namespace,
    preprocessed: Path,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    images: Mapping[str, Sequence[Path]],
    problems: list[str],
) -> Iterator[Job]:
    """One job per data identifier. Faults are added to `problems`."""
    planned = plans["configurations"]
    shared: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(args.configurations):
        if name not in planned:
            problems.append(f"-c: it must be a configuration of {args.plans}: {', '.join(planned)}; got {name}.")
        elif isinstance(key := _key(args, plans, name, dataset_json), str):
            problems.append(key)
        else:
            shared.setdefault(key, []).append(name)
    identifiers = [identifier for identifier, _ in shared]
    for (identifier, fingerprint), names in shared.items():
        if identifiers.count(identifier) > 1:
            problems.append(
                f"-c: configurations with the same data_identifier must have the same preprocessing; those of "
                f"{identifier} differ. Preprocess one of them, or plan again."
            )
        folder = unlabeled_folder(preprocessed, identifier)
        if not args.overwrite:
            command = f"nnunet_collab preprocess_unlabeled -d {args.dataset} -c {' '.join(names)} -p {args.plans}"
            try:
                refuse_other_plans(folder, fingerprint, command)
            except CollabError as error:
                problems.append(str(error))
        whole = complete_cases(folder)
        done = set() if args.overwrite else images.keys() & whole
        todo = [case for case in images if case not in done]
        gone = [case for case in whole if case not in images]
        broken = [] if args.overwrite else [case for case in broken_cases(folder) if case in images]
        yield Job(names, folder, todo, len(done), gone, broken)


def _key(
    args: argparse.Namespace, plans: dict[str, Any], name: str, dataset_json: dict[str, Any]
) -> tuple[str, str] | str:
    """Data identifier and fingerprint of a configuration, or a message with its fault."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        entry = PlansManager(plans).get_configuration(name)
        if entry.previous_stage_name:
            return f"-c: {name} is a cascade, which needs the segmentation of another model. Use another configuration."
        identifier = require_plain_name(f"{args.plans}, data_identifier of {name}", entry.data_identifier)
        return identifier, preprocessing_fingerprint(plans, name, dataset_json)
    except CollabError as error:
        return str(error)
    except Exception as error:  # nnU-Net raises various exceptions if an entry is missing or has another type
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return (
            f"{args.plans}: its configuration {name} must be as nnU-Net plans it; it cannot be used ({reason}). Plan "
            "the dataset again."
        )


def _image_problems(
    images: Mapping[str, Sequence[Path]], plans: dict[str, Any], dataset_json: dict[str, Any], processes: int
) -> list[str]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        reader = PlansManager(plans).image_reader_writer_class
    except Exception as error:
        return [f"image_reader_writer of the plans: must be a reader of nnU-Net; it is not ({error}). Plan again."]
    return image_problems(images, reader, len(channel_names(dataset_json)), processes)
