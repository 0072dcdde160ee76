"""`nnunet_collab report`: trainings and predictions compared on one page, with the same as Markdown, CSV and LaTeX."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from nnunet_collab.core.errors import CollabError

_OURS = {
    "report.html", "report.md", "report.tex", "figures", "scores.csv", "tests.csv", "training.csv", "published.csv",
    "cases.csv",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet_collab report` to its parser."""
    parser.add_argument(
        "results",
        metavar="RESULTS",
        nargs="+",
        type=Path,
        help="results folders (<Trainer>_<Student>__<plans>__<configuration>), folders of predictions with a CSV of "
        "`nnunet_collab evaluate` inside or beside them, folders of either, or such CSV files",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--baseline", help="method, or its folder, that the others are tested against (default: the supervised one)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report in that folder")
    parser.add_argument("-l", "--labels", type=Path, help="labels of the predictions (default: found)")
    parser.add_argument("-i", "--images", type=Path, help="images of the predictions (default: found)")
    parser.add_argument(
        "-np", type=int, default=2, metavar="N", help="worker processes for what must be measured (default: 2)"
    )


def run(args: argparse.Namespace) -> int:
    """Collect, measure, draw and write; returns the exit status 0.

    Raises:
        CollabError: If the output must not be replaced or a path does not exist, or for the reasons of `find_sources`
            and `collect`.
    """
    output: Path = args.output
    _refuse_output(output, args.overwrite)
    for path in (*args.results, args.labels, args.images):
        if path is not None and not path.exists():
            raise CollabError(f"report: what is named must exist; there is no {path}. Check the path.")

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
    comparisons = collect(sources, baseline=args.baseline, processes=args.np)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        write_report(partial, [make_dataset_report(comparison) for comparison in comparisons], left_out)
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"wrote   {output / 'report.html'}")
    return 0


def _refuse_output(output: Path, overwrite: bool) -> None:
    """Before anything is measured: only an earlier report may be replaced."""
    if not output.parent.is_dir() or output.is_file():
        raise CollabError(
            f"report: -o must be a folder in a folder that exists; got {output}. Create that, or name another."
        )
    if not output.exists():
        return
    strange = sorted({path.name for path in output.iterdir()} - _OURS)
    if strange:
        raise CollabError(
            f"report: -o must be new or hold an earlier report alone; {output} also holds {', '.join(strange[:5])}. "
            "Name another folder."
        )
    if not overwrite and any(output.iterdir()):
        raise CollabError(f"report: {output} holds a report. Name another folder, or replace it with --overwrite.")
