"""The console command `nnunet_collab`: a table of subcommands. Each is a module with `add_arguments` and `run`.

A module is imported only when its subcommand is used, so that `--help` and `env` do not import torch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import nnunet_collab
from nnunet_collab.core.exit_status import refuse, status_of


class Command(NamedTuple):
    """One subcommand.

    Attributes:
        module: Dotted name of a module with `add_arguments(parser)` and `run(args) -> int`, which returns the exit
            status.
        help: Description in one line.
        names: Name of a function in the module that lists the valid values of NAME, for the end of the help.
    """

    module: str
    help: str
    names: str = ""


COMMANDS = {
    "env": Command("nnunet_collab.commands.env", "print the line for your shell that lets nnU-Net find the trainers"),
    "demo": Command(
        "nnunet_collab.commands.demo", "train, predict and evaluate on a small made-up dataset, in minutes"
    ),
    "convert": Command(
        "nnunet_collab.commands.convert", "convert a public dataset into nnU-Net's format", names="converter_names"
    ),
    "preprocess_unlabeled": Command(
        "nnunet_collab.commands.preprocess_unlabeled", "preprocess the images of imagesUn, which have no labels"
    ),
    "split": Command(
        "nnunet_collab.commands.split", "choose the few patients that keep labels; find the same image in two roles"
    ),
    "doctor": Command("nnunet_collab.commands.doctor", "check installation, paths, trainers and hardware"),
    "settings": Command(
        "nnunet_collab.commands.settings", "print every setting of a trainer: default, meaning, bounds, source"
    ),
    "presets": Command("nnunet_collab.commands.presets", "list the presets, which are published recipes as settings"),
    "publish": Command("nnunet_collab.commands.publish", "publish the students of a finished training"),
    "export": Command("nnunet_collab.commands.export", "hand a model on: nnU-Net's zip with a model card, and ONNX"),
    "evaluate": Command("nnunet_collab.commands.evaluate", "compare predictions with labels: Dice, HD95, ASD and more"),
    "self_train": Command(
        "nnunet_collab.commands.self_train",
        "train, give stable pseudo labels to the unlabeled images, train again: rounds by stock models",
    ),
    "pseudo_label": Command(
        "nnunet_collab.commands.pseudo_label", "write a dataset of stable pseudo labels; a step of self_train"
    ),
    "study": Command(
        "nnunet_collab.commands.study", "compare methods fairly: train, predict, evaluate and report, from a study file"
    ),
    "report": Command(
        "nnunet_collab.commands.report", "compare methods on one page: scores, tests, curves, costs, pictures"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: Arguments after the name of the program; None for those of the process.

    Returns:
        The exit status: that of the subcommand; 2 if the input of the user is wrong; 1 after an error of the operating
        system (no permission, a full disk); 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return status_of(lambda: _run(words))
    except ImportError as error:
        # A missing module of this package is a bug, so its traceback is shown. The user can fix any other.
        if (error.name or "").split(".")[0] == nnunet_collab.__name__:
            raise
        return refuse(
            f"a required package cannot be imported ({error}). Run `nnunet_collab doctor`; it says how to fix it."
        )


def _run(words: Sequence[str]) -> int:
    parser = build_parser(next((word for word in words if not word.startswith("-")), ""))
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    status: int = args.run(args)
    return status


def build_parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of all subcommands, with the arguments of the chosen one only.

    Args:
        chosen: Name of the chosen subcommand; with any other text, none is chosen.
    """
    parser = argparse.ArgumentParser(
        prog="nnunet_collab",
        description=nnunet_collab.__doc__,
        epilog="`nnunet_collab COMMAND --help` says more about each. To train and predict, use nnU-Net's own commands.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet_collab {nnunet_collab.__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}."
        )
        if name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
            if command.names:
                subparser.epilog = f"NAME is one of: {', '.join(getattr(module, command.names)())}."
    return parser
