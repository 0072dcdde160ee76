"""`nnunet_collab preprocess_unlabeled`: preprocess the images of imagesUn with the plans of the labeled cases."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.nnunet_folders import UNLABELED, case_images, channel_names, find_dataset, read_object
from nnunet_collab.data.unlabeled_preprocessing import (
    complete_cases,
    preprocess_cases,
    preprocessing_fingerprint,
    refuse_other_plans,
    unlabeled_folder,
)

Grid = tuple[int, tuple[int, ...], tuple[float, ...]]  # channels, shape, spacing (mm)


class Job(NamedTuple):
    """One folder to fill."""

    configurations: list[str]  # those that share it
    folder: Path
    todo: list[str]  # cases that are not whole yet
    done: int  # number of cases that are
    gone: list[str]  # whole cases without raw images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab preprocess_unlabeled -d ID -c CONFIGURATION ... [-p PLANS] [-np N] [--overwrite]`."""
    parser.add_argument(
        "-d", dest="dataset", metavar="ID", required=True, help="nnU-Net's dataset id, or its full name"
    )
    parser.add_argument("-c", dest="configurations", metavar="CONFIGURATION", nargs="+", required=True, help="e.g. 2d")
    parser.add_argument("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="default: nnUNetPlans")
    parser.add_argument("-np", dest="processes", metavar="N", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--overwrite", action="store_true", help="redo all cases, delete those no longer in imagesUn")


def run(args: argparse.Namespace) -> int:
    """Check everything, then preprocess what is not there yet.

    Returns:
        0.

    Raises:
        CollabError: With every fault found, before anything is written; or if a case fails.
    """
    if args.processes < 1:
        raise CollabError(f"-np: at least one process must work; got {args.processes}. Write e.g. -np 2.")
    raw, preprocessed = find_dataset(args.dataset)
    problems: list[str] = []
    plans = read_object(preprocessed / f"{args.plans}.json", problems, _plan_it(raw.name))
    dataset_json = read_object(_dataset_json(raw, preprocessed), problems, _plan_it(raw.name))
    images: dict[str, list[Path]] = {}
    if dataset_json:
        images = case_images(raw / UNLABELED, dataset_json["file_ending"])
        problems += _name_problems(raw, images, dataset_json["file_ending"], dataset_json.get("dataset", ()))
    jobs = [*_jobs(args, preprocessed, plans, dataset_json, images, problems)] if plans and dataset_json else []
    waiting = {case: images[case] for case in sorted({case for job in jobs for case in job.todo})}
    if waiting:
        problems += _image_problems(waiting, plans, dataset_json, args.processes)
    if problems:
        found = "one fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise CollabError("\n- ".join([f"preprocess_unlabeled: {found}, so nothing was written:", *problems]))
    print(f"reads   {raw / UNLABELED} ({len(images)} cases), {preprocessed / args.plans}.json")
    for job in jobs:
        print(f"writes  {job.folder}, for {', '.join(job.configurations)}: {len(job.todo)} cases, {job.done} are there")
        if job.gone:
            fate = "deleted" if args.overwrite else "kept; --overwrite deletes them"
            print(f"No longer in {UNLABELED}, {fate}: {', '.join(job.gone)}")
        if args.overwrite and job.folder.exists():
            shutil.rmtree(job.folder)
        if job.todo:
            todo = {case: images[case] for case in job.todo}
            preprocess_cases(job.folder, todo, plans, job.configurations[0], dataset_json, processes=args.processes)
    print(f"Done: {len(images)} unlabeled cases are ready for {', '.join(dict.fromkeys(args.configurations))}.")
    return 0


def _plan_it(name: str) -> str:
    return f"Plan the dataset: nnUNetv2_plan_and_preprocess -d {int(name[7:10])} --verify_dataset_integrity"


def _dataset_json(raw: Path, preprocessed: Path) -> Path:
    """NnU-Net preprocesses with the copy made when the dataset was planned; without it, the images can be checked."""
    places = [folder / "dataset.json" for folder in (preprocessed, raw)]
    return next((place for place in places if place.is_file()), places[0])


def _name_problems(
    raw: Path, images: Mapping[str, Sequence[Path]], ending: str, listed_cases: Iterable[str]
) -> Iterator[str]:
    """Faults that file names tell: nothing there, a channel missing, a name with a second meaning.

    Args:
        raw: The dataset.
        images: Case -> images, of imagesUn.
        ending: Of the dataset's files.
        listed_cases: Labeled cases that dataset.json lists, wherever they are.
    """
    folder = raw / UNLABELED
    names = sorted(path.name for path in folder.glob(f"[!.]*{ending}"))
    if not images:
        found = (
            f"none of its {len(list(folder.iterdir()))} files is one" if folder.is_dir() else "there is no such folder"
        )
        yield (
            f"{folder}: unlabeled images must be here, named like those of imagesTr: CASE_0000{ending}; {found}. "
            "Put them there, without any label."
        )
    elif odd := [name for name in names if not re.fullmatch(r".+_\d{4}", name[: -len(ending)])]:
        yield f"{folder}: images must be named CASE_0000{ending}; found {listed(odd)}. Add the number of the channel."
    taken = dict.fromkeys(listed_cases, "dataset.json")
    taken |= {case: part for part in ("imagesTs", "imagesTr") for case in case_images(raw / part, ending)}
    taken |= {path.name[: -len(ending)]: "labelsTr" for path in (raw / "labelsTr").glob(f"*{ending}")}
    for case, paths in images.items():
        if case in taken:
            yield f"case {case}: its name must be in imagesUn alone; it is in {taken[case]}, too. Rename or remove it."
        if case.endswith("_seg"):
            yield f"case {case}: its name must not end with _seg, by which nnU-Net tells labels; it does. Rename it."
        if [int(path.name[len(case) + 1 :][:4]) for path in paths] != [*range(len(paths))]:
            yield (
                f"case {case}: its channels must be numbered from 0000 without a gap; found "
                f"{', '.join(path.name for path in paths)}. Add the missing images."
            )


def _jobs(
    args: argparse.Namespace,
    preprocessed: Path,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    images: Mapping[str, Sequence[Path]],
    problems: list[str],
) -> Iterator[Job]:
    """One job per data identifier; what stands against one goes to `problems`."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    planned = plans.get("configurations", {})
    shared: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(args.configurations):
        if name not in planned:
            problems.append(f"-c: it must be a configuration of {args.plans}: {', '.join(planned)}; got {name}.")
            continue
        entry = PlansManager(plans).get_configuration(name)
        if entry.previous_stage_name:
            problems.append(f"-c: {name} is a cascade, which needs another model's segmentation. Use another one.")
            continue
        key = entry.data_identifier, preprocessing_fingerprint(plans, name, dataset_json)
        shared.setdefault(key, []).append(name)
    identifiers = [identifier for identifier, _ in shared]
    for (identifier, fingerprint), names in shared.items():
        if identifiers.count(identifier) > 1:
            problems.append(f"-c: configurations with one data_identifier must preprocess alike; not so {identifier}.")
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
        yield Job(names, folder, todo, len(done), [case for case in whole if case not in images])


def _image_problems(
    images: Mapping[str, Sequence[Path]], plans: dict[str, Any], dataset_json: dict[str, Any], processes: int
) -> list[str]:
    """Faults that reading every image tells: unreadable, of unequal grids, with another number of channels."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from tqdm import tqdm

    reader = PlansManager(plans).image_reader_writer_class
    expected = len(channel_names(dataset_json))

    def faults(case: str) -> list[str]:
        return [f"case {case}: {fault}" for fault in _faults_of_case(reader, images[case], expected)]

    with ThreadPoolExecutor(processes) as pool:  # threads do: unpacking files is most of the work, and is no Python
        found = tqdm(pool.map(faults, images), total=len(images), desc="Checking", unit="case", disable=None)
        return [fault for of_case in found for fault in of_case]


def _faults_of_case(reader: Any, paths: Sequence[Path], expected: int) -> Iterator[str]:
    grids: list[Grid] = []
    for path in paths:
        try:
            grids.append(_grid(reader, path))
        except CollabError as error:
            yield str(error)
    if len(grids) < len(paths):
        return
    if (channels := sum(grid[0] for grid in grids)) != expected:
        names = ", ".join(path.name for path in paths)
        yield f"it must have {expected} channels, as in dataset.json; found {channels} in {names}. Correct its images."
    for path, (_, shape, spacing) in zip(paths[1:], grids[1:], strict=True):
        _, first_shape, first_spacing = grids[0]
        if shape != first_shape or any(abs(a - b) > 1e-4 * abs(a) for a, b in zip(first_spacing, spacing, strict=True)):
            yield (
                f"its channels must lie on one grid; {paths[0].name} has shape {first_shape} and spacing "
                f"{first_spacing}, {path.name} has {shape} and {spacing}. Resample one to the other."
            )


def _grid(reader: Any, path: Path) -> Grid:
    """Read one image file as nnU-Net will.

    Raises:
        CollabError: If it cannot be read whole.
    """
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunet_collab.core.image_io import read_image

    if issubclass(reader, SimpleITKIO):  # which would read a file that was cut off without a word
        image = read_image(path)
        size, spacing = image.GetSize()[::-1], image.GetSpacing()[::-1]
        return (size[0], size[1:], spacing[1:]) if len(size) == 4 else (1, size, spacing)
    try:
        data, properties = reader().read_images([str(path)])
    except Exception as error:
        raise CollabError(f"{path}: cannot be read ({type(error).__name__}: {error}). Replace the file.") from error
    return data.shape[0], tuple(data.shape[1:]), tuple(float(mm) for mm in properties["spacing"])
