"""The scripts in `dataset_conversion/`: list them, read their options, and run them.

A script is a module that defines two names: `DATASET_NAME`, the default of --name, and
`convert(source: Path, target: Target) -> object`. It can define its own options: `OPTIONS`, a literal of the form
`{"--task": {"choices": ["whole", "regions"], "default": "whole", "help": "..."}}`. Their values are passed to `convert`
as keyword arguments. `OPTIONS` is read without running the script, so that --help is fast.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.exit_status import status_of
from nnunet_collab.core.shipped import shipped_folder


def conversion_folder() -> Path:
    """The folder of the converter scripts.

    Raises:
        CollabError: If the folder is missing.
    """
    return shipped_folder("dataset_conversion")


def converter_names() -> list[str]:
    """Names of the datasets that have a script, in alphabetical order."""
    return sorted(path.stem for path in conversion_folder().glob("*.py") if not path.stem.startswith("_"))


def run_alone(script: Path, argv: Sequence[str] | None = None) -> int:
    """Run a script that was started directly: `python dataset_conversion/acdc.py SOURCE -d ID`.

    Args:
        script: File of the script.
        argv: Arguments; None for those of the process.

    Returns:
        The exit status, from `status_of`.
    """
    parser = argparse.ArgumentParser(description=f"Convert {script.stem} into an nnU-Net raw dataset.")
    add_target_arguments(parser)
    add_script_options(parser, script)
    args = parser.parse_args(argv)
    return status_of(lambda: run_script(script, args))


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that every converter has: SOURCE, -d, --name, --overwrite, --labeled, --seed."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the folder of the dataset, as downloaded")
    parser.add_argument("-d", dest="dataset_id", metavar="ID", type=int, required=True, help="nnU-Net's dataset id")
    parser.add_argument("--name", help="name of the dataset, without DatasetXXX_ (default: the converter's)")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset of this id and name")
    parser.add_argument(
        "--labeled",
        metavar="PROTOCOL",
        help="number (7) or percentage (50%%) of the training patients that keep their labels; the images of the "
        "others go to imagesUn, without labels. Published: ACDC 3, 7 or 14 patients; LA 4, 8 or 16; Pancreas 6 or 12; "
        "BraTS 25 or 50; LiTS 50%%",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing the labeled patients (default: 0)")


def script_options(script: Path) -> dict[str, dict[str, Any]]:
    """The options of a script: flag -> keyword arguments of `add_argument`. The script is not run."""
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["OPTIONS"]:
            found: dict[str, dict[str, Any]] = ast.literal_eval(node.value)
            return found
    return {}


def add_script_options(parser: argparse.ArgumentParser, script: Path) -> None:
    """Add the options that a script declares in `OPTIONS`."""
    group = parser.add_argument_group(f"options of {script.stem}")  # an empty group is not shown
    for flag, settings in script_options(script).items():
        # The value of a missing option is None, so that an option of another dataset can be refused.
        group.add_argument(flag, **{**settings, "default": None})


def _chosen_options(script: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The options of this script on the command line.

    Raises:
        CollabError: If an option of another script is given.
    """
    own = script_options(script)
    for other in sorted(script.parent.glob("*.py")):
        for flag in script_options(other).keys() - own.keys():
            if getattr(args, _keyword(flag), None) is not None:
                raise CollabError(
                    f"convert: {flag} is an option of the dataset {other.stem}; got it for {script.stem}. Leave it out."
                )
    values = {_keyword(flag): getattr(args, _keyword(flag)) for flag in own}
    return {keyword: value for keyword, value in values.items() if value is not None}


def _keyword(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def run_script(script: Path, args: argparse.Namespace) -> int:
    """Run one converter with parsed arguments.

    Returns:
        0.

    Raises:
        CollabError: If the source is not a folder, if an option belongs to another script, or if the converter refuses
            the data.
    """
    from nnunet_collab.conversion.raw_target import Target

    if not args.source.is_dir():
        found = "it is a file" if args.source.exists() else "it does not exist"
        raise CollabError(f"{args.source}: SOURCE must be the folder of the dataset; {found}. Correct the path.")
    options = _chosen_options(script, args)
    converter = _load(script)
    target = Target(
        args.dataset_id, args.name or converter.DATASET_NAME, args.overwrite, labeled=args.labeled, seed=args.seed
    )
    converter.convert(args.source, target, **options)
    return 0


def _load(script: Path) -> ModuleType:
    name = f"nnunet_collab_conversion_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    if spec is None or spec.loader is None:
        raise ImportError(f"{script}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by name
    spec.loader.exec_module(module)
    return module
