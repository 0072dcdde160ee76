"""`nnunet_collab publish`: publish the students of a finished training as nnU-Net models.

A training publishes its students at its end. Use this command if the run was killed during its validation or was copied
from another machine, or if the published folders were deleted.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_collab.core.errors import CollabError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab publish FOLDER [--student NAME]`."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        help="<results>/<dataset>/<Trainer>__<plans>__<configuration>, for all its finished folds, or one fold_X in it",
    )
    parser.add_argument(
        "--student", action="append", metavar="NAME", help="publish only this student; can be given several times"
    )


def run(args: argparse.Namespace) -> int:
    """Publish, and print the written folders.

    Returns:
        0.

    Raises:
        CollabError: If the folder is neither a run nor a fold, if no fold of it is finished, or if `publish_fold`
            refuses a fold.
    """
    folds, unfinished = _folds(args.folder)
    run_folder = folds[0].parent
    print(f"reads   {run_folder} ({', '.join(fold.name for fold in folds)})")
    if unfinished:
        print(f"skips   {', '.join(fold.name for fold in unfinished)}: the training is not finished")

    from nnunet_collab.inference.publish import publish_fold

    for fold in folds:
        for written in publish_fold(fold, args.student):
            print(f"wrote   {written}", flush=True)
    return 0


def _folds(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folds to publish, and those of the run that are not finished."""
    # The names tell what the folders are, so `.` is replaced by its name. Links are not resolved: they have names.
    folder = Path(os.path.abspath(folder))
    one = folder.name.startswith("fold_")
    run_folder = folder.parent if one else folder
    if not folder.is_dir() or run_folder.name.count("__") != 2:
        found = "it has another name" if folder.is_dir() else "the folder does not exist"
        raise CollabError(
            f"{folder}: FOLDER must be <Trainer>__<plans>__<configuration> or a fold_X in it, below nnUNet_results; "
            f"{found}. Correct the path."
        )
    if one:
        return [folder], []
    folds = sorted(path for path in folder.glob("fold_*") if path.is_dir())
    finished = [fold for fold in folds if (fold / "checkpoint_final.pth").is_file()]
    if not finished:
        raise CollabError(
            f"{folder}: must hold a fold_X with a checkpoint_final.pth; got "
            f"{', '.join(fold.name for fold in folds) or 'no fold'}. Continue the training with --c."
        )
    return finished, [fold for fold in folds if fold not in finished]
