"""The subcommand `nnunet_collab demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_collab.demo.methods import METHODS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("demo_run"), help="folder of all output (default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto: a GPU if there is one"
    )
    parser.add_argument(
        "--method",
        choices=tuple(METHODS),
        default="ctrcl",
        help="method to train (default: %(default)s). All but ctrcl and cmaformer learn from few labeled and many "
        "unlabeled images; the demo compares them with nnU-Net trained on the labeled images alone",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier demo")


def run(args: argparse.Namespace) -> int:
    """Run the demo; see `demo.run`."""
    from nnunet_collab.demo.run import run_demo

    run_demo(args.folder, method=args.method, device=args.device, overwrite=args.overwrite)
    return 0
