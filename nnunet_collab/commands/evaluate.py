"""`nnunet_collab evaluate`: compare predictions with labels; the result is a printed table and a CSV file.

The CSV is one table in long format. A row with `statistic` = `case` holds one class of one case. The rows of
`metrics.summarize` follow, with an empty `case`: `mean`, `std` and `count` (the number of cases in the mean).
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_collab.core import csv_text
from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.choices import add_options, options_of

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_collab.evaluation.pairing import Plan

_WIDTH = 100
_TITLES = {"dice": "Dice", "jaccard": "Jaccard", "hd": "HD", "hd95": "HD95", "asd": "ASD", "mae": "MAE"}
_FURTHER_TITLES = {
    "nsd": "NSD",
    "rve": "RVE",
    "lesion_f1": "lesion F1",
    "lesion_sensitivity": "sensitivity",
    "lesion_precision": "precision",
    "lesion_dice": "lesion Dice",
}
_DECIMALS = {"hd": 2, "hd95": 2, "asd": 2, "mae": 4}  # of the others: 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet_collab evaluate` to its parser."""
    parser.add_argument("-p", "--predictions", type=Path, required=True, help="folder of predicted segmentations")
    parser.add_argument("-l", "--labels", type=Path, required=True, help="folder of labels with the same file names")
    parser.add_argument("-o", "--output", type=Path, help="CSV file to write; without it, the table is only printed")
    parser.add_argument(
        "--dataset-json", type=Path, help="names the classes (default: found beside the predictions or the labels)"
    )
    parser.add_argument("-np", type=int, default=2, metavar="N", help="worker processes (default: 2)")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out predictions or labels that have no partner"
    )
    add_options(parser)
    parser.add_argument("--voxels", action="store_true", help="print distances in voxels; the CSV has both")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the CSV file, and return the exit status 0.

    Raises:
        CollabError: If the output cannot be written as a file, or if `evaluate_folders` refuses the input.
    """
    from nnunet_collab.evaluation.folders import evaluate_folders
    from nnunet_collab.evaluation.metrics import summarize
    from nnunet_collab.evaluation.pairing import plan_evaluation

    output: Path | None = args.output
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise CollabError(
            f"evaluate: -o must be a file in a folder that exists; got {output}. Create the folder, or name a file."
        )
    plan = plan_evaluation(args.predictions, args.labels, dataset_json=args.dataset_json, options=options_of(args))
    unit = "voxel" if args.voxels and plan.distance_unit == "mm" else plan.distance_unit
    print(f"reads   {plan.predictions} and {plan.labels} ({len(plan.cases)} cases in both), {plan.dataset_json}")
    print(f"writes  {output or 'nothing; -o OUT.csv would write every case'}", flush=True)
    frame = evaluate_folders(
        args.predictions,
        args.labels,
        dataset_json=args.dataset_json,
        processes=args.np,
        allow_missing=args.allow_missing,
        options=options_of(args),
    )
    summary = summarize(frame)
    tables = (scores_table(summary, unit), further_table(summary), cases_table(frame, summary, len(plan.cases)))
    print("", *tables, notes(plan, summary, unit), sep="\n\n")
    if output is not None:
        write_csv(frame, summary, output)
        print(f"\nwrote   {output}")
    return 0


def scores_table(summary: pd.DataFrame, distance_unit: str) -> str:
    """One line per class: every metric as mean±standard deviation, or `-` if no case has a value."""
    other = "_voxel" if distance_unit == "mm" else "_mm"
    columns = [column for column in summary.columns if not column.endswith(other)]
    metrics = {column: column.split("_")[0] for column in columns if column.split("_")[0] in _TITLES}
    units = {short: f" {distance_unit}" for short in ("hd", "hd95", "asd")}
    lines = [["class", *(_TITLES[short] + units.get(short, "") for short in metrics.values())]]
    for name, mean, spread, _ in _classes(summary):
        cells = [_score(mean[column], spread[column], _DECIMALS.get(short, 3)) for column, short in metrics.items()]
        lines.append([name, *cells])
    return _aligned(lines)


def further_table(summary: pd.DataFrame) -> str:
    """One line per class: the metrics that do not fit beside the usual ones."""
    metrics = {column: title for column, title in _FURTHER_TITLES.items() if column in summary}
    lines = [["class", *metrics.values()]]
    for name, mean, spread, _ in _classes(summary):
        lines.append([name, *(_score(mean[column], spread[column], 3) for column in metrics)])
    return _aligned(lines)


def cases_table(frame: pd.DataFrame, summary: pd.DataFrame, cases: int) -> str:
    """One line per class: the number of `cases` that its means include, of the excluded ones, and of lesions."""
    columns = {
        "in Dice": "dice",
        "in distances": "hd95_voxel",
        "missed": "missed",
        "false positive": "false_positive",
        "both empty": "both_empty",
    }
    lesions = [column for column in ("lesions_true", "lesions_predicted", "lesions_matched") if column in frame]
    sums = frame.groupby("class")[lesions].sum()
    lines = [
        ["class", "cases", *columns, *(column.replace("lesions_true", "lesions").split("_")[-1] for column in lesions)]
    ]
    for name, _, _, count in _classes(summary):
        found = sums.loc[name] if name in sums.index else sums.sum()
        numbers = [*(count[column] for column in columns.values()), *(found[column] for column in lesions)]
        lines.append([name, str(cases), *(str(int(number)) for number in numbers)])
    return _aligned(lines)


def notes(plan: Plan, summary: pd.DataFrame, distance_unit: str) -> str:
    """Notes on the meaning of the numbers, the rules, and the cases that were left out, as a bulleted list."""
    from nnunet_collab.evaluation.pairing import listed

    total = _classes(summary)[-1][3]
    voxels = "pixels" if plan.distance_unit == "pixel" else "voxels"
    bullets = [
        f"Mean±standard deviation over cases. Dice, Jaccard: 0 to 1. MAE: share of wrong {voxels}. Last line: mean of "
        "the classes' means, ± the spread over cases of each case's mean.",
        "HD, HD95, ASD: distances between surface voxels (with a face neighbor outside), all of equal weight. HD95: "
        "the larger of the two directed 95th percentiles. ASD: the mean over both surfaces.",
        "Empty masks: a class in neither mask of a case is left out of Dice, Jaccard and distances (both empty: "
        f"{total['both_empty']}). A class in only one mask has Dice and Jaccard 0 and no distance: missed if only the "
        f"label has it ({total['missed']}), false positive if only the prediction has it ({total['false_positive']}). "
        "The last line is the sum over all classes.",
    ]
    bullets.append(
        "RVE: relative volume error, (predicted - true) / true; below 0 if the prediction is too small. Errors of both "
        "signs cancel in the mean."
    )
    bullets += _chosen_notes(plan)
    if distance_unit == "pixel":
        bullets.append("These images have no spacing: distances are in pixels, in the columns named _voxel.")
    if distance_unit == "voxel":
        bullets.append("Distances are in voxels and ignore the spacing. Do not compare them with distances in mm.")
    if plan.ignore is not None:
        bullets.append(f"Voxels whose label is {plan.ignore} (ignore) count as background in both masks, not in MAE.")
    if plan.without_label:
        bullets.append(f"Left out, because there is no label: {listed(plan.without_label)}.")
    if plan.without_prediction:
        bullets.append(f"Left out, because there is no prediction: {listed(plan.without_prediction)}.")
    if plan.pseudo_labeled:
        bullets.append(f"Left out, because their labels are pseudo labels: {listed(plan.pseudo_labeled)}.")
    return "\n".join(textwrap.fill(f"- {bullet}", _WIDTH, subsequent_indent="  ") for bullet in bullets)


def _chosen_notes(plan: Plan) -> list[str]:
    """Notes on the measures that were asked for."""
    choices = plan.choices
    found = []
    if choices.nsd_tolerance:
        values = set(choices.nsd_tolerance.values())
        each = ", ".join(f"{name} {value:g}" for name, value in choices.nsd_tolerance.items())
        stated = f"{values.pop():g} {plan.distance_unit}" if len(values) == 1 else f"({plan.distance_unit}) {each}"
        found.append(
            "NSD: normalized surface Dice, the share of both surfaces within the tolerance of the other one; tolerance "
            f"{stated}. A class in only one mask has 0."
        )
    if choices.lesions:
        found.append(
            "Lesions: connected components (voxels that share a corner). A predicted and a true one match if their IoU "
            f"is at least {choices.lesion_iou:g}, each once, best pair first. Lesion Dice: the mean over all lesions "
            "of both, in which one without a partner counts as 0. Scores are means over cases, the counts are sums."
        )
    return found


def write_csv(frame: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """Write all rows atomically."""
    import pandas as pd

    table = pd.concat([frame.assign(statistic="case"), summary], ignore_index=True)
    first = ["case", *(["patient"] if "patient" in table else []), "class", "statistic"]
    table["distance_unit"] = frame["distance_unit"].iloc[0]
    columns = table[[*first, *table.columns.drop(first)]]
    csv_text.write_csv(columns, path)


def _classes(summary: pd.DataFrame) -> list[tuple[str, pd.Series, pd.Series, pd.Series]]:
    """Name, means, standard deviations and counts of each class; the mean of the classes comes last."""
    by_statistic = [summary[summary["statistic"] == which].set_index("class") for which in ("mean", "std", "count")]
    return [(name, *(rows.loc[name] for rows in by_statistic)) for name in by_statistic[0].index]


def _score(mean: float, spread: float, decimals: int) -> str:
    """`mean±spread`; only the mean if the spread is NaN (a single case), and `-` if both are NaN."""
    parts = [f"{value:.{decimals if value < 100 else 1}f}" for value in (mean, spread) if value == value]
    return "±".join(parts) or "-"


def _aligned(lines: list[list[str]]) -> str:
    """Lines of cells, two spaces apart, with a rule below the head. A long first cell is shortened to fit the width."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    widths[0] = max(8, min(widths[0], _WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    cut = [[_shortened(line[0], widths[0]), *line[1:]] for line in lines]
    rows = [
        [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)] for line in cut
    ]
    return "\n".join("  ".join(row) for row in rows)


def _shortened(text: str, width: int) -> str:
    """The text, or its start followed by `~` if it is longer than `width`."""
    return text if len(text) <= width else text[: width - 1] + "~"
