r"""The one table that a paper needs, in LaTeX with booktabs: scores, paired differences, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnunet_collab.evaluation.metrics import ALL_CLASSES
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.measures import MEASURES, definitions, higher_is_better, main_metrics, title_of
from nnunet_collab.report.tables import known, number, p_value

if TYPE_CHECKING:
    import pandas as pd

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "<": "$<$", ">": "$>$",
    "|": "$|$", "∩": r"$\cap$", "∪": r"$\cup$", "Δ": r"$\Delta$",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_TEX.get(character, character) for character in text)


def paper_table(comparison: Comparison, scores: pd.DataFrame, tests: pd.DataFrame) -> str:
    r"""A complete `table` environment, for \input; it needs booktabs.

    One line per method: seeds, and for the mean of the classes the main metrics with their 95 % intervals. With a
    baseline, the paired difference in Dice with its interval, p after Holm's correction, and the chance of a false
    claim. The best mean of each metric is bold.
    """
    metrics = main_metrics(comparison)
    rows = scores[scores["class"] == ALL_CLASSES].to_dict("records")
    best = {metric: _best([row[metric] for row in rows], metric) for metric in metrics}
    chosen = tests[(tests["metric"] == "dice") & (tests["class"] == ALL_CLASSES)] if len(tests) else tests
    by_method: dict[Any, Mapping[Any, Any]] = {row["method"]: row for row in chosen.to_dict("records")}
    head = ["Method", "Seeds", *(latex_text(title_of(m, comparison)) for m in metrics)]
    head += [r"$\Delta$ Dice", "$p$", r"$P_\mathrm{false}$"] if by_method else []
    lines = []
    for row in rows:
        cells = [latex_text(row["method"]), str(row["seeds"])]
        cells += [_score(row, metric, bold=row[metric] == best[metric]) for metric in metrics]
        if by_method:
            cells += _test(by_method.get(row["method"]))
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join(
        [
            r"% \usepackage{booktabs} in the preamble; \input{paper_table} in the text.",
            r"\begin{table}[tb]",
            r"\centering",
            rf"\caption{{{_caption(comparison, metrics, bool(by_method))}}}",
            rf"\label{{tab:{''.join(c for c in comparison.dataset.lower() if c.isalnum())}}}",
            r"\scriptsize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{@{{}}l{'c' * (len(head) - 1)}@{{}}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _best(values: list[float], metric: str) -> float | None:
    finite = [value for value in values if known(value)]
    return (max if higher_is_better(metric) else min)(finite, default=None)


def _score(row: Mapping[Any, Any], metric: str, *, bold: bool) -> str:
    digits = MEASURES[metric].decimals
    text = latex_text(number(row[metric], digits))
    ends = [row[f"{metric}_{end}"] for end in ("low", "high")]
    interval = f" [{', '.join(number(end, digits) for end in ends)}]" if all(map(known, ends)) else ""
    return (rf"\textbf{{{text}}}" if bold and known(row[metric]) else text) + interval


def _test(test: Mapping[Any, Any] | None) -> list[str]:
    if test is None:
        return ["baseline", "--", "--"]
    ends = [test["difference_low"], test["difference_high"]]
    interval = f" [{', '.join(_signed(end) for end in ends)}]" if all(map(known, ends)) else ""
    return [
        _signed(test["difference"]) + interval,
        *(latex_text(p_value(test[key])) for key in ("p_holm", "false_claim")),
    ]


def _signed(value: float) -> str:
    """With a minus sign of mathematics."""
    return f"${number(value, 3, sign=True)}$" if known(value) else "--"


def _caption(comparison: Comparison, metrics: list[str], compared: bool) -> str:
    units = len(set(comparison.units))
    which = f"{len(comparison.cases)} cases" + (f" of {units} patients" if comparison.by_patient else "")
    of_whom = "patients" if comparison.by_patient else "cases"
    caption = (
        f"{comparison.dataset}, {which}, mean of {len(comparison.classes)} classes. In brackets: 95 % intervals of a "
        f"bootstrap over {of_whom} and, of methods with several seeds, over seeds. {definitions(metrics, comparison)}"
    )
    text = latex_text(caption)
    if compared and comparison.baseline:
        text += (
            rf" $\Delta$ Dice: paired difference to {latex_text(comparison.baseline.label)}; $p$: Wilcoxon signed-rank "
            r"test, Holm's correction; $P_\mathrm{false}$: share of bootstrap samples in which the method is not "
            "better."
        )
    return text
