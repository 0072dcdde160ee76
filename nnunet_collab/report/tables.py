"""Text tables of the data frames, for HTML, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnunet_collab.evaluation.metrics import ALL_CLASSES, FLAGS
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.measures import (
    MEASURES,
    definitions,
    distance_of,
    in_groups,
    main_metrics,
    metrics_of,
    title_of,
)

if TYPE_CHECKING:
    import pandas as pd

EMPTY = "–"
MANY = 6  # more classes than these get one table per metric, with a line per class
_ROWS, _COLUMNS = 30, 5  # of such a table; more are split, so that a page holds them


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
        note: One sentence below the table that defines its numbers.
    """

    source: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]
    selects: Mapping[str, str]
    note: str = ""


def score_tables(comparison: Comparison, scores: pd.DataFrame) -> list[Table]:
    """The mean of the classes, then each class; with many classes, one table per metric."""
    if len(comparison.classes) > MANY:
        of_all = [t for t in _tables_of_classes(comparison, scores) if t.selects["class"] == ALL_CLASSES]
        return of_all + _by_class(comparison, scores)
    return _tables_of_classes(comparison, scores)


def _tables_of_classes(comparison: Comparison, scores: pd.DataFrame) -> list[Table]:
    tables = []
    for name in dict.fromkeys(scores["class"]):
        for metrics in in_groups(metrics_of(comparison)):
            rows = []
            for row in scores[scores["class"] == name].to_dict("records"):
                cells = [Cell(row["method"]), *(_score_cell(row, metric) for metric in metrics)]
                rows.append([*cells, Cell(str(row[f"{metrics[0]}_cases"]))])
            counted = "cases with a Dice" if metrics[0] == "dice" else f"cases with {_article(metrics[0], comparison)}"
            head = ["method", *(title_of(metric, comparison) for metric in metrics), counted]
            selects = {"dataset": comparison.dataset, "class": name}
            note = f"Means over cases and 95 % intervals over patients and seeds: {definitions(metrics, comparison)}"
            tables.append(Table("scores", capitalized(name), head, rows, selects, note))
    return tables


def _article(metric: str, comparison: Comparison) -> str:
    title = title_of(metric, comparison).split(" ")[0]
    return f"an {title}" if title[0] in "AHN" else f"a {title}"


def _by_class(comparison: Comparison, scores: pd.DataFrame) -> list[Table]:
    """Per metric: a line per class, a column per method, in pieces that fit a page."""
    tables = []
    for metric in main_metrics(comparison):
        cells = {(r["class"], r["method"]): _score_cell(r, metric) for r in scores.to_dict("records")}
        note = f"Means over cases and 95 % intervals over patients and seeds: {definitions([metric], comparison)}"
        labels = [method.label for method in comparison.methods]
        tables += pieces(comparison, "scores", title_of(metric, comparison), metric, labels, cells, note)
    return tables


def pieces(
    comparison: Comparison,
    source: str,
    caption: str,
    metric: str,
    labels: list[str],
    cells: Mapping[tuple[str, str], Cell],
    note: str,
) -> list[Table]:
    """A table with a line per class and a column per method, split where it has too many of either."""
    tables = []
    classes = comparison.classes
    for first in range(0, len(labels), _COLUMNS):
        for start in range(0, len(classes), _ROWS):
            of_piece = labels[first : first + _COLUMNS]
            rows = [
                [Cell(name), *(cells[name, label] for label in of_piece)] for name in classes[start : start + _ROWS]
            ]
            continued = ", continued" if first or start else ""
            selects = {"dataset": comparison.dataset, "by class": metric}
            tables.append(Table(source, f"{caption}, by class{continued}", ["class", *of_piece], rows, selects, note))
    return tables


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
        if len(comparison.classes) <= MANY or any(row[flag] for flag in titles)  # a page has room for those
    ]
    head = ["method", "class", *titles.values(), "cases with a distance"]
    note = (
        "Cases and seeds together: missed is in the label only, false positive in the prediction only; distances exist "
        "where both masks have the class."
    )
    return Table("scores", "Empty masks", head, rows, {"dataset": comparison.dataset}, note)


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
    caption = f"Reported by papers for {dataset}; not measured here"
    note = "As printed in the papers, with their own definitions of the metrics, which the caveats tell."
    return Table("published", caption, head, rows, {"dataset": dataset}, note)


def _score_cell(row: Mapping[str, Any], metric: str) -> Cell:
    digits = MEASURES[metric].decimals
    below = interval_of(row[f"{metric}_low"], row[f"{metric}_high"], digits)
    spread = row[f"{metric}_std_seeds"]
    if known(spread):
        below += (f"± {spread:.{digits}f} over {row['seeds']} seeds",)
    return Cell(number(row[metric], digits), below)


def interval_of(low: float, high: float, digits: int, *, sign: bool = False) -> tuple[str, ...]:
    """The interval as a line of a cell; none if it is not known."""
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


def capitalized(name: str) -> str:
    """With a capital letter first."""
    return name[0].upper() + name[1:]
