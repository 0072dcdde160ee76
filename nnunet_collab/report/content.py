"""Content of the report in order, for all formats: sections of sentences, tables and pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nnunet_collab.evaluation.statistics import smallest_p
from nnunet_collab.report.checklist import checklist_table
from nnunet_collab.report.comparison_tables import comparison_tables, rank_table
from nnunet_collab.report.costs import training_frame, training_table
from nnunet_collab.report.figures import Picture, box_plots, learning_curves, pseudo_label_curves
from nnunet_collab.report.overlays import overlays
from nnunet_collab.report.paper import paper_table
from nnunet_collab.report.scores import cases_frame, comparisons_frame, published_frame, ranks_frame, scores_frame
from nnunet_collab.report.sentences import facts, summary, warnings, without_voxels
from nnunet_collab.report.settings import settings_of, settings_table
from nnunet_collab.report.tables import (
    MANY,
    Table,
    caveats,
    empty_mask_table,
    published_table,
    score_tables,
)

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_collab.report.collect import Comparison


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading.

    Attributes:
        title: The heading.
        text: Paragraphs.
        tables: Tables below the text.
        pictures: Pictures below the tables.
        legend: Whether to explain the colors of the methods.
        published: Whether these are numbers from papers, which have another style.
        details: Titles and preformatted texts of foldable parts.
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    legend: bool = False
    published: bool = False
    details: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetReport:
    """All sections on one dataset.

    Attributes:
        title: Name of the dataset.
        facts: What was compared and on which cases, in sentences.
        warnings: Limits of the numbers that a reader must know.
        summary: The main result, one sentence per method.
        baseline: Label of the method to which the differences in the summary refer; empty if nothing is compared.
        methods: Labels of the methods, in the order of their colors.
        sections: Sections in order.
        frames: Name of a CSV file -> its rows.
        paper: LaTeX of the one table that a paper needs.
    """

    title: str
    facts: list[str]
    warnings: list[str]
    summary: list[str]
    baseline: str
    methods: list[str]
    sections: list[Section]
    frames: dict[str, pd.DataFrame]
    paper: str


def make_dataset_report(comparison: Comparison) -> DatasetReport:
    """Compute, draw and write everything on one dataset."""
    scores, tests, training = scores_frame(comparison), comparisons_frame(comparison), training_frame(comparison)
    published, ranks = published_frame(comparison.dataset), ranks_frame(comparison)
    return DatasetReport(
        title=comparison.dataset,
        facts=facts(comparison),
        warnings=warnings(comparison),
        summary=summary(comparison, scores, tests),
        baseline=comparison.baseline.label if comparison.baseline else "",
        methods=[method.label for method in comparison.methods],
        sections=[
            Section("Scores", without_voxels(scores), score_tables(comparison, scores)),
            Section("Scores, case by case", [_dots(comparison)], pictures=box_plots(comparison), legend=True),
            _tests_section(comparison, tests),
            *_ranks_section(comparison, ranks),
            _empty_masks_section(comparison, scores),
            _overlays_section(comparison),
            *_curve_sections(comparison),
            _training_section(comparison, training),
            _settings_section(comparison),
            _checklist_section(comparison, training),
            _published_section(published),
        ],
        frames={
            "scores": scores,
            "tests": tests,
            "ranks": ranks,
            "training": training,
            "published": published,
            "cases": cases_frame(comparison),
        },
        paper=paper_table(comparison, scores, tests),
    )


def _dots(comparison: Comparison) -> str:
    of_mean = f" Of the mean of {len(comparison.classes)} classes; the values of each are in cases.csv."
    return "Each dot is a case." + (of_mean if len(comparison.classes) > MANY else "")


def _tests_section(comparison: Comparison, tests: pd.DataFrame) -> Section:
    if comparison.baseline is None:
        return Section("Against the baseline", [comparison.no_baseline])
    n = int(tests["units"].max())
    text = [
        f"Baseline: {comparison.baseline.label}. Differences are means over the cases of both methods, with "
        f"95 % intervals in brackets: over patients and, of methods with several seeds, over seeds. "
        f"With {n} {'patients' if comparison.by_patient else 'cases'} no p can be below "
        f"{smallest_p(n):.4g}, before correction."
    ]
    return Section("Against the baseline", text, tables=comparison_tables(comparison, tests))


def _ranks_section(comparison: Comparison, ranks: pd.DataFrame) -> list[Section]:
    if len(comparison.methods) < 2:
        return []
    text = "The less often a method is first with other patients and seeds, the less its rank says."
    return [Section("Rank stability", [text], [rank_table(comparison, ranks)])]


def _checklist_section(comparison: Comparison, training: pd.DataFrame) -> Section:
    text = "Filled from dataset.json, plans.json and the logs of the trainings. Add what is marked as not known."
    return Section("Reproducibility checklist", [text], [checklist_table(comparison, training)])


def _empty_masks_section(comparison: Comparison, scores: pd.DataFrame) -> Section:
    table = empty_mask_table(comparison, scores)
    if table is None:
        return Section("Empty masks", ["There are none: every class is in every label and every prediction."])
    text = "Summed over cases and seeds. Missed: in the label only. False positive: in the prediction only."
    return Section("Empty masks", [text], [table])


def _overlays_section(comparison: Comparison) -> Section:
    pictures, missing = overlays(comparison)
    text = (
        ["Selected by the mean Dice of a case in its volume. The slice with most foreground in the truth is shown."]
        if pictures
        else []
    )
    return Section("Best, median and worst case", text + missing, pictures=pictures)


def _curve_sections(comparison: Comparison) -> list[Section]:
    learning, pseudo = learning_curves(comparison), pseudo_label_curves(comparison)
    without = [m.label for m in comparison.methods if not any(fold.curves for fold in m.results[0].folds)]
    missing = [f"Without a curve, because no curves.json of their training was found: {', '.join(without)}."]
    text = ["First seed and fold. Pseudo Dice is measured on patches during training. Do not report it as a score."]
    none = ["No method used pseudo labels, or the trainings did not record their curves."]
    return [
        Section(
            "Learning curves", (text if learning else []) + (missing if without else []), [], learning, bool(learning)
        ),
        Section("Pseudo labels", [] if pseudo else none, [], pseudo, bool(pseudo)),
    ]


def _training_section(comparison: Comparison, training: pd.DataFrame) -> Section:
    found = set(training["method"]) if len(training) else set()
    without = [method.label for method in comparison.methods if method.label not in found]
    text = (
        ["From the logs of the trainings. Seconds per iteration include the validation steps of the epochs."]
        if found
        else []
    )
    if without:
        text.append(f"The results folder of the training was not found for: {', '.join(without)}. Set nnUNet_results.")
    return Section("Data, time and memory", text, [training_table(comparison, training)] if found else [])


def _settings_section(comparison: Comparison) -> Section:
    details = [
        (f"All settings of {method.label}", json.dumps(settings, indent=2))
        for method in comparison.methods
        if (settings := settings_of(method))
    ]
    table = settings_table(comparison)
    none = [] if details else ["None of the methods recorded its settings."]
    same = ["All methods have the same settings."] if table and not table.rows else []
    return Section("Settings", none + same, [table] if table and table.rows else [], details=details)


def _published_section(frame: pd.DataFrame) -> Section:
    if frame.empty:
        return Section("What papers report", ["No published numbers are on file for this dataset."], published=True)
    text = [
        "These numbers are from papers, for other cases, networks, resolutions and trainings. They were not "
        "measured here. Do not compare them directly with the numbers above. The last column names the "
        "caveats:"
    ]
    text += [f"{letter}: {caveat}" for caveat, letter in caveats(frame).items()]
    return Section("What papers report", text, [published_table(frame)], published=True)
