"""`nnunet_collab self_train`: rounds of training and pseudo labels, by nnU-Net's own commands, with any trainer."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_collab.commands.study import device_of
from nnunet_collab.core.errors import CollabError

if TYPE_CHECKING:
    from nnunet_collab.study.self_train import Request, Stored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab self_train`."""
    parser.add_argument(
        "-d",
        dest="dataset",
        metavar="ID",
        required=True,
        help="dataset with true labels and unlabeled images (imagesUn)",
    )
    parser.add_argument("-c", dest="configuration", metavar="CONFIGURATION", required=True, help="e.g. 2d")
    parser.add_argument("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="default: nnUNetPlans")
    parser.add_argument(
        "-tr",
        dest="trainer",
        default="nnUNetTrainer",
        help="a trainer that learns from labels (default: nnUNetTrainer)",
    )
    parser.add_argument(
        "-f", dest="folds", nargs="+", default=["0", "1", "2", "3", "4"], help="folds, or all (default: 0 1 2 3 4)"
    )
    parser.add_argument("--to", type=int, required=True, help="id of round 1's dataset; round 2 takes the next id")
    parser.add_argument("--rounds", type=int, default=1, help="largest number of rounds (default: 1)")
    parser.add_argument(
        "--share", type=float, nargs="+", help="share of the images to keep in each round, the most stable ones (0.5)"
    )
    parser.add_argument("--threshold", type=float, help="instead: smallest agreement to keep, a mean Dice from 0 to 1")
    parser.add_argument(
        "--members",
        choices=("folds", "checkpoints"),
        help="what is compared: the folds, or checkpoints of each (default: the folds if there are several)",
    )
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        default=["checkpoint_best.pth", "checkpoint_final.pth"],
        help="from the earliest to the last (default: checkpoint_best.pth checkpoint_final.pth)",
    )
    parser.add_argument(
        "--min-gain", type=float, default=0.0, help="least gain of the validation Dice for another round (default: 0)"
    )
    parser.add_argument(
        "--finish", action="store_true", help="train the best round's model further, on the true labels alone"
    )
    parser.add_argument("--name", default="rounds", help="part of the names of datasets and folders (default: rounds)")
    parser.add_argument("-o", "--output", type=Path, help="folder of predictions and logs (default: self_train_NAME)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto: a GPU if there is one"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print the remaining commands, and run nothing")
    mode.add_argument("--status", action="store_true", help="print the rounds so far, and where the result is")


def run(args: argparse.Namespace) -> int:
    """Check the self-training, then do the remaining work, or print it.

    Returns:
        0; 1 if a step failed; 130 or 143 if Ctrl-C or SIGTERM ended it.

    Raises:
        CollabError: If it is refused. Nothing is trained then.
    """
    from nnunet_collab.study import conduct, self_train

    work = self_train.check_self_train(request_of(args), args.output, device_of(args.device), _stored)
    if args.dry_run:
        print('# Run first: eval "$(nnunet_collab env)". Finished steps are left out.')
        conduct.print_run(work.study, work.study.runs[0])
        return 0
    if args.status:
        print(self_train.summary(work), end="")
        return 0
    places = work.study.places
    print(f"reads   {places.raw} and {places.preprocessed}\nwrites  {places.study}, and new datasets of nnU-Net")
    return self_train.conduct_self_train(work)


def request_of(args: argparse.Namespace) -> Request:
    """What the arguments ask for.

    Raises:
        CollabError: If one is not valid; the message lists all of them.
    """
    from pydantic import ValidationError

    from nnunet_collab.study.self_train import Request
    from nnunet_collab.study.self_training import SelfTraining

    problems = []
    for option, value in (("--name", args.name), ("-p", args.plans), ("-c", args.configuration)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", value):
            problems.append(f"{option}: must be letters, digits, _ and -; got {value!r}. Correct it.")
    folds = tuple(int(fold) if fold.isdecimal() else fold for fold in args.folds)
    if folds != ("all",) and not (all(isinstance(fold, int) for fold in folds) and len({*folds}) == len(folds)):
        problems.append(f"-f: must be distinct numbers from 0, or all; got {' '.join(args.folds)}. Correct it.")
    options: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("to", "rounds", "share", "threshold", "members", "checkpoints", "min_gain", "finish")
    }
    try:
        checked = SelfTraining.model_validate(options)
    except ValidationError as error:
        for one in error.errors():
            name = str(one["loc"][0]).replace("_", "-")
            problems.append(f"--{name}: {one['msg']}; got {one['input']!r}. Correct it.")
    if problems:
        raise CollabError("\n- ".join(["self_train: every option must be valid; found:", *problems]))
    return Request(args.name, args.dataset, args.configuration, args.plans, folds, args.trainer, checked)


def _stored(trainer: str, plans: Any, configuration: str) -> Stored:
    from nnunet_collab.study.self_train import Stored
    from nnunet_collab.training.inspection import trainer_names

    return Stored(*trainer_names(trainer, plans, configuration))
