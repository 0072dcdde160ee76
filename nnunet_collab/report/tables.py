"""Text tables of the data frames, for HTML, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnunet_collab.evaluation.metrics import ALL_CLASSES, FLAGS
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.scores import distance_of, metrics_of

if TYPE_CHECKING:
    import pandas as pd

EMPTY = "–"
TITLES = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_mm": "HD95 mm",
    "hd95_voxel": "HD95 voxels",
    "asd_mm": "ASD mm",
    "asd_voxel": "ASD voxels",
    "mae": "MAE",
}
DECIMALS = {"dice": 3, "jaccard": 3, "hd95_mm": 2, "hd95_voxel": 2, "asd_mm": 2, "asd_voxel": 2, "mae": 4}


@dataclass(frozen=True)
class Cell:
    """One cell: the number, and smaller text below it."""

    text: str
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table of the page.

    Attributes:
        source: Name of the CSV file, without its ending.
        caption: Caption of one line.
        head: Titles of the columns.
        rows: Rows of cells, one cell per column.
        selects: Values of CSV columns that all rows of this table share.
    """

    source: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]
    selects: Mapping[str, str]


def title_of(metric: str, comparison: Comparison) -> str:
    """Name of a metric with its unit."""
    return TITLES[metric].replace("voxels", "pixels") if comparison.distance_unit == "pixel" else TITLES[metric]


def score_tables(comparison: Comparison, scores: pd.DataFrame) -> list[Table]:
    """The mean of the classes, then each class."""
    tables = []
    metrics = metrics_of(comparison)
    for name in dict.fromkeys(scores["class"]):
        rows = []
        for row in scores[scores["class"] == name].to_dict("records"):
            cells = [Cell(row["method"]), *(_score_cell(row, metric) for metric in metrics)]
            rows.append([*cells, Cell(str(row["dice_cases"]))])
        head = ["method", *(title_of(metric, comparison) for metric in metrics), "cases with a Dice"]
        selects = {"dataset": comparison.dataset, "class": name}
        tables.append(Table("scores", _capitalized(name), head, rows, selects))
    return tables


def comparison_tables(comparison: Comparison, tests: pd.DataFrame) -> list[Table]:
    """For the mean of the classes, then each class: every method against the baseline, in mm (or pixels)."""
    metrics = [m for m in metrics_of(comparison) if comparison.distance_unit == "pixel" or not m.endswith("_voxel")]
    tables = []
    for name in dict.fromkeys(tests["class"]) if len(tests) else []:
        of_class = tests[tests["class"] == name]
        rows = []
        for method in dict.fromkeys(of_class["method"]):
            by_metric = of_class[of_class["method"] == method].set_index("metric").to_dict("index")
            cells = [_comparison_cell(by_metric[metric], metric) for metric in metrics]
            rows.append([Cell(str(method)), *cells, Cell(str(by_metric["dice"]["units"]))])
        head = ["method", *(title_of(metric, comparison) for metric in metrics)]
        head.append("patients" if comparison.by_patient else "cases")
        baseline = comparison.baseline.label if comparison.baseline else ""
        caption = f"{_capitalized(str(name))}, difference to {baseline}"
        tables.append(Table("tests", caption, head, rows, {"dataset": comparison.dataset, "class": str(name)}))
    return tables


def _comparison_cell(test: Mapping[str, Any], metric: str) -> Cell:
    digits = DECIMALS[metric]
    below = _interval(test["difference_low"], test["difference_high"], digits, sign=True)
    p = (f"p {p_value(test['p'])}, corrected {p_value(test['p_holm'])}",) if known(test["p"]) else ()
    return Cell(number(test["difference"], digits, sign=True), below + p)


def empty_mask_table(comparison: Comparison, scores: pd.DataFrame) -> Table | None:
    """How often a class was missed, false positive, or in neither mask; None if that never happened."""
    if not scores[list(FLAGS)].to_numpy().any():
        return None
    titles = {"missed": "missed", "false_positive": "false positive", "both_empty": "in neither mask"}
    distance = distance_of(comparison)
    rows = [
        [
            Cell(row["method"]),
            Cell(row["class"]),
            *(Cell(str(row[flag])) for flag in titles),
            Cell(str(row.get(f"{distance}_cases", EMPTY))),
        ]
        for row in scores[scores["class"] != ALL_CLASSES].to_dict("records")
    ]
    head = ["method", "class", *titles.values(), "cases with a distance"]
    return Table("scores", "Empty masks", head, rows, {"dataset": comparison.dataset})


def caveats(frame: pd.DataFrame) -> dict[str, str]:
    """Caveat -> its letter in `published_table`."""
    return {text: chr(ord("a") + i) for i, text in enumerate(dict.fromkeys(frame["caveat"]))}


def published_table(frame: pd.DataFrame) -> Table:
    """Numbers of papers with their sources, and letters for the caveats."""
    letters = caveats(frame)
    metrics = [m for m in ("dice", "jaccard", "hd95", "asd", "mae") if m in frame and frame[m].notna().any()]
    titles = {"dice": "Dice %", "jaccard": "Jaccard %", "hd95": "HD95", "asd": "ASD", "mae": "MAE %"}
    with_unit = {"hd95", "asd"}
    rows = []
    for row in frame.to_dict("records"):
        numbers = [
            Cell(number(row[m], 2), (str(row["distance_unit"]),) if m in with_unit and known(row[m]) else ())
            for m in metrics
        ]
        unverified = () if row["verified"] else ("not verified",)
        names = [Cell(row["method"], unverified), Cell(row["network"]), Cell(row["protocol"])]
        rows.append([*names, *numbers, Cell(row["source"]), Cell(letters[row["caveat"]])])
    head = ["method", "network", "labels", *(titles[m] for m in metrics), "source", "caveat"]
    dataset = str(frame["dataset"].iloc[0])
    return Table("published", f"Reported by papers for {dataset}; not measured here", head, rows, {"dataset": dataset})


def _score_cell(row: Mapping[str, Any], metric: str) -> Cell:
    digits = DECIMALS[metric]
    below = _interval(row[f"{metric}_low"], row[f"{metric}_high"], digits)
    spread = row[f"{metric}_std_seeds"]
    if known(spread):
        below += (f"± {spread:.{digits}f} over {row['seeds']} seeds",)
    return Cell(number(row[metric], digits), below)


def _interval(low: float, high: float, digits: int, *, sign: bool = False) -> tuple[str, ...]:
    return (f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]",) if known(low) else ()


def number(value: float, digits: int, *, sign: bool = False) -> str:
    """A number with this number of decimals, or a dash."""
    return f"{value:{'+' if sign else ''}.{digits}f}" if known(value) else EMPTY


def p_value(value: float) -> str:
    """A probability with three decimals, or a dash."""
    return EMPTY if not known(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def known(value: Any) -> bool:
    """Whether the value is a number and not NaN."""
    return value is not None and math.isfinite(value)


def _capitalized(name: str) -> str:
    return name[0].upper() + name[1:]
