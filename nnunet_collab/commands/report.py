"""`nnunet_collab report`: compare trainings and predictions on one page, also as Markdown, CSV and LaTeX."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.choices import add_options, options_of
from nnunet_collab.report.output import refuse_output, remove_leftovers, write_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet_collab report` to its parser."""
    parser.add_argument(
        "results",
        metavar="RESULTS",
        nargs="+",
        type=Path,
        help="results folders (<Trainer>_<Student>__<plans>__<configuration>), folders of predictions with a CSV of "
        "`nnunet_collab evaluate` inside or beside them, folders that contain such folders, or such CSV files",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--baseline", help="method, or its folder, to test the others against (default: the supervised one)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report in that folder")
    parser.add_argument("-l", "--labels", type=Path, help="labels of the predictions (default: found)")
    parser.add_argument("-i", "--images", type=Path, help="images of the predictions (default: found)")
    parser.add_argument(
        "-np", type=int, default=2, metavar="N", help="worker processes for computing metrics (default: 2)"
    )
    add_options(parser.add_argument_group("for predictions without a table"))


def run(args: argparse.Namespace) -> int:
    """Collect the scores, compute missing ones, write the report, and return the exit status 0.

    Raises:
        CollabError: If the output must not be replaced, if a path does not exist, or if `find_sources` or `collect`
            refuses the input.
    """
    output = Path(os.path.abspath(args.output))  # `-o .` would have no name; links are not resolved
    for leftover in remove_leftovers(output):
        print(f"removes {leftover}, left by an interrupted report")
    refuse_output(output, overwrite=args.overwrite)
    for path in (*args.results, args.labels, args.images):
        if path is not None and not path.exists():
            raise CollabError(f"report: all given paths must exist; there is no {path}. Correct the path.")

    from nnunet_collab.report.collect import collect
    from nnunet_collab.report.content import make_dataset_report
    from nnunet_collab.report.page import write_report
    from nnunet_collab.report.sources import find_sources

    sources, left_out = find_sources(args.results, labels=args.labels, images=args.images)
    for source in sources:
        print(f"reads   {source.table or ', '.join(map(str, source.predictions))}")
    print(f"writes  {output}", flush=True)
    for line in left_out:
        print(f"- {line}")
    comparisons = collect(sources, baseline=args.baseline, processes=args.np, options=options_of(args))

    def write(folder: Path) -> None:
        write_report(folder, [make_dataset_report(comparison) for comparison in comparisons], left_out)

    write_folder(output, write, overwrite=args.overwrite)
    print(f"wrote   {output / 'report.html'}")
    return 0
