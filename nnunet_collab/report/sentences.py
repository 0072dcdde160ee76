"""What the report says in words: what was compared, what to beware of, the main result, and how to read numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnunet_collab.evaluation.metrics import ALL_CLASSES
from nnunet_collab.report.tables import known, number, p_value

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_collab.report.collect import Comparison

READING = (
    "Scores are means over cases; below each, in brackets, its 95 % bootstrap interval. What is drawn anew are "
    "patients with all their cases where patients are known, else cases. The intervals say how much the test cases "
    "matter; they do not say how another training (another seed) would differ.",
    "Several seeds of a method: its scores are the means of the seeds' scores, and ± is their standard deviation. "
    "A single seed says nothing about that spread: differences of one or two points of Dice are common between seeds.",
    "Dice and Jaccard: 0 to 1, higher is better. HD95 (the larger of the two directed 95th percentiles) and ASD (mean "
    "over both surfaces): distances between surface voxels, lower is better. In mm they use the true spacing. In "
    "voxels every axis counts alike: only for comparison with papers that report voxels.",
    "Empty masks: a class in neither mask of a case is left out. A class in one mask only scores Dice and Jaccard 0 "
    "and has no distance, so read distances beside the number of cases that have one.",
    "Tests: Wilcoxon signed-rank, two-sided, on the differences between two methods on the same cases (averaged per "
    "patient and over seeds). p is corrected by Holm's method: for all methods on the mean of the classes, and for all "
    "methods on all classes, of one metric. With n patients no p below 2 / 2^n is possible. A large p does not show "
    "that two methods are equal.",
    "Validation cases were predicted by checkpoint_final. They did not choose it, but they are the cases of the "
    "learning curves: a choice made by looking at those has seen them. Test cases kept apart are better evidence.",
)


def facts(comparison: Comparison) -> list[str]:
    """What was compared on what."""
    results = [result for method in comparison.methods for result in method.results]
    of_patients = f" of {len(set(comparison.units))} patients" if comparison.by_patient else ""
    folds = sorted({fold.removeprefix("fold_") for result in results for fold in result.source.folds})
    which = f"validation cases of fold {', '.join(folds)}" if folds else "cases predicted after training"
    return [
        f"{len(comparison.cases)} cases{of_patients} ({which}), {len(comparison.classes)} classes: "
        f"{', '.join(comparison.classes)}.",
        f"{_count(len(comparison.methods), 'method')} from {_count(len(results), 'set')} of predictions.",
    ]


def warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    if any("fold_all" in result.source.folds for method in comparison.methods for result in method.results):
        found.append(
            "Fold all validates on the very cases it was trained on: these scores say nothing about other cases."
        )
    if any(len(method.results) == 1 for method in comparison.methods):
        alone = [method.label for method in comparison.methods if len(method.results) == 1]
        who = "Every method has" if len(alone) == len(comparison.methods) else f"{', '.join(alone)}:"
        found.append(f"{who} a single seed: how much another seed would change the scores was not measured.")
    if not comparison.by_patient:
        found.append(
            f"Every case counts as a patient of its own: {_why_no_patients(comparison)} If some are of one patient, "
            "the intervals are too narrow and p is too small."
        )
    return found


def without_voxels(scores: pd.DataFrame) -> list[str]:
    """A sentence if no distance in voxels was measured."""
    if "hd95_voxel" in scores:
        return []
    return [
        "Distances in voxels are left out: the tables do not hold them. Run nnunet_collab evaluate again to have both."
    ]


def summary(comparison: Comparison, scores: pd.DataFrame, tests: pd.DataFrame) -> list[str]:
    """Dice, mean of the classes, in one line per method."""
    sentences = []
    for row in scores[scores["class"] == ALL_CLASSES].to_dict("records"):
        sentence = f"{row['method']}: {number(row['dice'], 3)}"
        if comparison.baseline and row["method"] == comparison.baseline.label:
            sentence += " (baseline)"
        elif len(tests):
            chosen = (tests["metric"] == "dice") & (tests["class"] == ALL_CLASSES) & (tests["method"] == row["method"])
            test = tests[chosen].iloc[0]
            interval = [number(test[f"difference_{end}"], 3, sign=True) for end in ("low", "high")]
            sentence += f", difference {number(test['difference'], 3, sign=True)}"
            sentence += f" [{', '.join(interval)}]" if known(test["difference_low"]) else ""
            sentence += f", p {p_value(test['p_holm'])}"
        sentences.append(sentence)
    return sentences


def _why_no_patients(comparison: Comparison) -> str:
    sources = [result.source for method in comparison.methods for result in method.results]
    if any(source.facts for source in sources):
        return "dataset.json does not say which cases are of one patient (patient_pattern)."
    return (
        "no dataset.json, whose patient_pattern says which cases are of one patient, was found beside the predictions "
        "or their labels (name these with --labels)."
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
