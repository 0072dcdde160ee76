"""Sentences of the report: what was compared, warnings, the main result, and how to read the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnunet_collab.evaluation.metrics import ALL_CLASSES
from nnunet_collab.report.tables import known, number, p_value

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_collab.report.collect import Comparison

READING = (
    "Scores are means over cases. The 95 % bootstrap interval is below each, in brackets. The bootstrap draws "
    "patients with all their cases if patients are known, else cases; and, of a method with several seeds, the mean of "
    "as many new seeds (for a difference, seed by seed where both methods have the same seeds). "
    "It shows what other test patients and other seeds would change. Of a method with one seed it "
    "shows the patients alone.",
    "For a method with several seeds, scores are means over the seeds, and ± is their standard deviation. A single "
    "seed says nothing about this spread: differences of 0.01 to 0.02 in Dice between seeds are common.",
    "Dice and Jaccard: 0 to 1, higher is better. HD95 (the larger of the two directed 95th percentiles) and ASD (mean "
    "over both surfaces): distances between surface voxels, lower is better. In mm they use the true spacing. In "
    "voxels all axes count equally: use them only for comparison with papers that report voxels.",
    "RVE: relative volume error, (predicted - true) / true. Errors of both signs cancel in its mean; differences to "
    "the baseline are of its size. NSD: normalized surface Dice at the stated tolerance. Lesions: connected "
    "components; a predicted and a true one match if they overlap enough (IoU), each once.",
    "Empty masks: a class in neither mask of a case is left out. A class in only one mask has Dice and Jaccard 0 "
    "and no distance. So read distances together with the number of cases that have one.",
    "Tests: Wilcoxon signed-rank, two-sided, on the differences between two methods on the same cases (averaged per "
    "patient and over seeds). For each metric, p is corrected by Holm's method: for all methods on the mean of the "
    "classes, and for all methods on all classes. With n patients no p below 2 / 2^n is possible. A large p does not "
    "show that two methods are equal.",
    'False: the chance that the claim "better than the baseline" is false, from the bootstrap of the paired '
    "difference; it is below 0.025 where the 95 % interval lies on the better side of 0. It is not corrected for the "
    "number of comparisons, and it is one-sided. Ranks: how often a method would be first with other patients and "
    "seeds.",
    "Validation cases were predicted by checkpoint_final. It was not selected on them, but the learning curves show "
    "them. A choice based on these curves is a choice on these cases. Separate test cases are better evidence.",
)


def facts(comparison: Comparison) -> list[str]:
    """What was compared, and on which cases."""
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
    """Limits of the numbers that a reader must know."""
    found = []
    if any("fold_all" in result.source.folds for method in comparison.methods for result in method.results):
        found.append("Fold all validates on its training cases: these scores say nothing about other cases.")
    if any(len(method.results) == 1 for method in comparison.methods):
        alone = [method.label for method in comparison.methods if len(method.results) == 1]
        who = "Every method has" if len(alone) == len(comparison.methods) else f"{', '.join(alone)}:"
        found.append(f"{who} a single seed: how much another seed would change the scores was not measured.")
    if not comparison.by_patient:
        found.append(
            f"Every case counts as a separate patient: {_why_no_patients(comparison)} If some belong to one patient, "
            "the intervals are too narrow and p is too small."
        )
    return found


def without_voxels(scores: pd.DataFrame) -> list[str]:
    """A sentence if no distance in voxels was measured."""
    if "hd95_voxel" in scores:
        return []
    return [
        "Distances in voxels are left out: the tables do not have them. Run nnunet_collab evaluate again to get both."
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
            sentence += (
                f", chance of a false claim {p_value(test['false_claim'])}" if known(test["false_claim"]) else ""
            )
        sentences.append(sentence)
    return sentences


def _why_no_patients(comparison: Comparison) -> str:
    sources = [result.source for method in comparison.methods for result in method.results]
    if any(source.facts for source in sources):
        return "dataset.json does not say which cases belong to one patient (patient_pattern)."
    return (
        "no dataset.json was found next to the predictions or their labels (name these with --labels); its "
        "patient_pattern says which cases belong to one patient."
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
