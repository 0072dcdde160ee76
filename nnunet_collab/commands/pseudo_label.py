"""`nnunet_collab pseudo_label`: make a dataset of stable pseudo labels; a step of `nnunet_collab self_train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_collab.core.errors import CollabError, listed

if TYPE_CHECKING:
    from nnunet_collab.evaluation.agreement import Predictions, Stability


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab pseudo_label`."""
    parser.add_argument("-d", dest="dataset", metavar="ID", required=True, help="dataset with true labels and imagesUn")
    parser.add_argument("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="plans (default: nnUNetPlans)")
    parser.add_argument("--to", metavar="NEW_ID", type=int, required=True, help="id of the dataset to write")
    parser.add_argument("--name", required=True, help="name of the dataset to write")
    parser.add_argument(
        "--ensemble", type=Path, required=True, help="predictions of imagesUn that become pseudo labels"
    )
    parser.add_argument(
        "--members", type=Path, nargs="+", required=True, help="predictions by each fold, or by each earlier checkpoint"
    )
    parser.add_argument("--share", type=float, help="share of the images to keep, the most stable ones")
    parser.add_argument("--threshold", type=float, help="smallest agreement to keep, a mean Dice from 0 to 1")
    parser.add_argument("--round", type=int, default=1, help="number of the round, for the record (default: 1)")
    parser.add_argument("-np", type=int, default=2, metavar="N", help="worker processes (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Measure the agreement on every unlabeled image, write the dataset, print what it holds, and return 0.

    Raises:
        CollabError: If the input is refused, or no image is stable. Nothing is written then.
    """
    _refuse_arguments(args)

    from nnunet_collab.conversion.pseudo_labeled import (
        PseudoLabel,
        ignore_value,
        read_origin,
        target_folder,
        write_pseudo_labeled,
    )
    from nnunet_collab.core.nnunet_folders import find_dataset, read_dataset_json
    from nnunet_collab.evaluation.agreement import Predictions, most_stable
    from nnunet_collab.evaluation.pairing import described_labels

    raw, preprocessed = find_dataset(args.dataset)
    facts = read_dataset_json(raw / "dataset.json", fix="Correct -d or nnUNet_raw, or the file.")
    origin = read_origin(raw, preprocessed, facts, args.plans)
    folder = target_folder(args.to, args.name)
    ending, classes, _, reader, _ = described_labels(raw / "dataset.json", args.ensemble)
    predictions = Predictions(args.ensemble, tuple(args.members), ending, reader, classes)
    print(f"reads   {args.ensemble} and {', '.join(map(str, args.members))}")
    print(f"writes  {folder}", flush=True)
    found = measure(predictions, list(origin.unlabeled), args.np)
    kept = most_stable(found, share=args.share, threshold=args.threshold)
    if not kept:
        best = max((one.agreement for one in found if one.agreement == one.agreement), default=None)
        raise CollabError(
            f"{args.ensemble}: at least one pseudo label must be stable; none of {len(found)} is. The best agreement "
            f"is {'undefined, as no class is found in any image' if best is None else f'{best:.3f}'}. "
            "Train longer, or keep more with --share or a lower --threshold."
        )
    table = {one.case: PseudoLabel(one.agreement, one.uncertain, one.case in kept) for one in found}
    absent = [name for name in classes if not any(name in one.classes for one in found if one.case in kept)]
    record = {
        "absent_classes": absent,
        "all_identical": all(one.uncertain == 0 for one in found),
        "round": args.round,
        "share": args.share,
        "threshold": args.threshold,
        "members": [path.name for path in args.members],
    }
    write = partial(write_label, predictions, ignore_value(facts))
    write_pseudo_labeled(origin, folder, table, record, write)
    _print_summary(folder, found, kept, absent)
    if record["all_identical"]:
        print("Warning: all predictions of every image are identical, so their agreement says nothing about stability.")
    if origin.split is None:
        print("There is no split, so train fold `all`: nnU-Net's own folds would validate on pseudo labels.")
    return 0


def measure(predictions: Predictions, cases: list[str], processes: int) -> list[Stability]:
    """The agreement on every case.

    Raises:
        CollabError: If predictions are missing or unusable; the message lists all of them.
    """
    from nnunet_collab.evaluation.agreement import measure_case
    from nnunet_collab.evaluation.folders import workers

    with workers(min(processes, len(cases)), progress=True) as run_all:
        found: list[Stability | CollabError] = run_all("comparing", partial(measure_case, predictions), cases)
    if problems := [str(one) for one in found if isinstance(one, CollabError)]:
        raise CollabError("\n- ".join(["pseudo_label: predictions must be complete; nothing was written:", *problems]))
    return [one for one in found if not isinstance(one, CollabError)]


def write_label(predictions: Predictions, ignore: int, case: str, place: Path) -> None:
    """Write the ensemble's segmentation of a case, with the ignore label where a member disagrees.

    Args:
        predictions: Folders of the predictions.
        ignore: Value of the ignore label.
        case: Name of the case.
        place: File to write.
    """
    from nnunet_collab.conversion.pseudo_labeled import write_segmentation
    from nnunet_collab.evaluation.agreement import read_case, uncertain_voxels

    labels, members = read_case(predictions, case)
    labels[uncertain_voxels(labels, members)] = ignore
    write_segmentation(labels, predictions.ensemble / place.name, place, predictions.reader)


def _refuse_arguments(args: argparse.Namespace) -> None:
    if (args.share is None) == (args.threshold is None):
        raise CollabError("pseudo_label: needs either --share or --threshold. Give one of them, e.g. --share 0.5.")
    if args.share is not None and not 0 < args.share <= 1:
        raise CollabError(f"--share: must be above 0 and at most 1; got {args.share}. Correct it.")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise CollabError(f"--threshold: must lie between 0 and 1; got {args.threshold}. Correct it.")
    if args.np < 1:
        raise CollabError(f"-np: must be at least 1; got {args.np}. Correct it.")
    for folder in (args.ensemble, *args.members):
        if not folder.is_dir():
            raise CollabError(f"pseudo_label: the folder of predictions {folder} must exist; it does not. Correct it.")


def _print_summary(folder: Path, found: Sequence[Stability], kept: Sequence[str], absent: Sequence[str]) -> None:
    of = {one.case: one for one in found}
    least = min(of[case].agreement for case in kept)
    uncertain = sum(of[case].uncertain for case in kept) / len(kept)
    print(f"wrote   {folder}: {len(kept)} of {len(found)} images have a pseudo label (agreement {least:.3f} or more);")
    print(f"        {100 * uncertain:.1f} % of the voxels with a class are uncertain and get the ignore label")
    if empty := [one.case for one in found if one.agreement != one.agreement]:
        print(f"Left out, because no class is found in them: {listed(empty)}.")
    if absent:
        print(
            f"Warning: no pseudo label has {listed(absent)}. The unlabeled images teach nothing about it, and the "
            "network may forget it. Label a case that shows it, or train round 0 longer."
        )
