"""`nnunet_collab convert`: run one of the scripts in `dataset_conversion/` on a downloaded dataset."""

from __future__ import annotations

import argparse

from nnunet_collab.conversion.scripts import (
    add_script_options,
    add_target_arguments,
    conversion_folder,
    converter_names,
    run_script,
)
from nnunet_collab.core.errors import CollabError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab convert NAME SOURCE -d ID [--name NAME] [--labeled PROTOCOL] [--overwrite]`."""
    parser.add_argument("converter", metavar="NAME", help="which dataset: the name of a script in dataset_conversion")
    add_target_arguments(parser)
    for name in converter_names():
        add_script_options(parser, conversion_folder() / f"{name}.py")


def run(args: argparse.Namespace) -> int:
    """Convert the dataset named on the command line.

    Returns:
        0.

    Raises:
        CollabError: If there is no such script, or if the script refuses the dataset.
    """
    names = converter_names()
    if args.converter.lower() not in names:
        raise CollabError(
            f"convert: NAME must be one of {', '.join(names)}; got {args.converter!r}. Write any other dataset by "
            "yourself, as nnU-Net's documentation describes."
        )
    return run_script(conversion_folder() / f"{args.converter.lower()}.py", args)
