"""Tables of every method against the baseline, and of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnunet_collab.evaluation.metrics import ALL_CLASSES
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.measures import MEASURES, in_groups, main_metrics, metrics_of, title_of
from nnunet_collab.report.tables import MANY, Cell, Table, capitalized, interval_of, known, number, p_value, pieces

if TYPE_CHECKING:
    import pandas as pd

CHANCE = (
    "the chance that the claim of an improvement is false, which is how often the method is not better than the "
    "baseline in bootstrap samples of patients and seeds"
)


def comparison_tables(comparison: Comparison, tests: pd.DataFrame) -> list[Table]:
    """For the mean of the classes, then each class: every method against the baseline, in mm (or pixels).

    With many classes, one table per metric instead of one per class.
    """
    if not len(tests):
        return []
    metrics = [m for m in metrics_of(comparison) if comparison.distance_unit == "pixel" or not m.endswith("_voxel")]
    many = len(comparison.classes) > MANY
    tables = []
    for name in [ALL_CLASSES] if many else dict.fromkeys(tests["class"]):
        for group in in_groups(metrics):
            tables.append(_comparison_table(comparison, tests, str(name), group))
    for metric in main_metrics(comparison) if many else ():
        rows = tests[tests["metric"] == metric].to_dict("records")
        cells = {(row["class"], row["method"]): _comparison_cell(row, metric) for row in rows}
        labels = [method.label for method in comparison.methods if method is not comparison.baseline]
        caption = f"{title_of(metric, comparison)}, difference to {_baseline(comparison)}"
        tables += pieces(comparison, "tests", caption, metric, labels, cells, _comparison_note([metric], comparison))
    return tables


def _comparison_table(comparison: Comparison, tests: pd.DataFrame, name: str, metrics: list[str]) -> Table:
    of_class = tests[tests["class"] == name]
    rows = []
    for method in dict.fromkeys(of_class["method"]):
        by_metric = of_class[of_class["method"] == method].set_index("metric").to_dict("index")
        cells = [_comparison_cell(by_metric[metric], metric) for metric in metrics]
        rows.append([Cell(str(method)), *cells, Cell(str(by_metric[metrics[0]]["units"]))])
    head = ["method", *(title_of(metric, comparison) for metric in metrics)]
    head.append("patients" if comparison.by_patient else "cases")
    caption = f"{capitalized(name)}, difference to {_baseline(comparison)}"
    selects = {"dataset": comparison.dataset, "class": name}
    return Table("tests", caption, head, rows, selects, _comparison_note(metrics, comparison))


def _comparison_note(metrics: list[str], comparison: Comparison) -> str:
    error = " (of the size of the error)" if "rve" in metrics else ""
    cases = "patient" if comparison.by_patient else "case"
    return (
        f"Method minus baseline on the same cases{error}, in brackets the 95 % interval of this paired difference over "
        f"{cases}s and seeds; p of Wilcoxon's signed-rank test, one value per {cases}, and corrected by Holm; false: "
        f"{CHANCE}."
    )


def _baseline(comparison: Comparison) -> str:
    return comparison.baseline.label if comparison.baseline else ""


def _comparison_cell(test: Mapping[str, Any], metric: str) -> Cell:
    digits = MEASURES[metric].decimals
    below = interval_of(test["difference_low"], test["difference_high"], digits, sign=True)
    p = (f"p {p_value(test['p'])}", f"corrected {p_value(test['p_holm'])}") if known(test["p"]) else ()
    false = (f"false {p_value(test['false_claim'])}",) if known(test["false_claim"]) else ()
    return Cell(number(test["difference"], digits, sign=True), below + p + false)


def rank_table(comparison: Comparison, ranks: pd.DataFrame) -> Table:
    """Rank of every method by the mean of the classes, and the share of the bootstrap in which it is first."""
    metrics = [m for m in metrics_of(comparison) if comparison.distance_unit == "pixel" or not m.endswith("_voxel")]
    of_mean = ranks[ranks["class"] == ALL_CLASSES]
    cells = {(r["method"], r["metric"]): r for r in of_mean.to_dict("records")}
    rows = [
        [Cell(method.label), *(_rank_cell(cells[method.label, metric]) for metric in metrics)]
        for method in comparison.methods
    ]
    head = ["method", *(title_of(metric, comparison) for metric in metrics)]
    note = (
        "Rank by the mean of the classes, below it the share of bootstrap samples of patients and seeds in which the "
        "method is first."
    )
    selects = {"dataset": comparison.dataset, "class": ALL_CLASSES}
    return Table("ranks", "Rank, and how often first", head, rows, selects, note)


def _rank_cell(row: Mapping[str, Any]) -> Cell:
    share = (f"first in {100 * row['share_first']:.0f} %",) if known(row["share_first"]) else ()
    return Cell(number(row["rank"], 0), share)
