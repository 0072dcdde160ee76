"""Measure the sources, put the seeds of a method together, and refuse what does not belong into one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.patients import patient_lookup
from nnunet_collab.evaluation.folders import evaluate_folders
from nnunet_collab.evaluation.pairing import listed, plan_evaluation
from nnunet_collab.report.grouping import Method, Result, choose_baseline, group_by_method
from nnunet_collab.report.runs import read_folds
from nnunet_collab.report.sources import Source

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Comparison:
    """Methods that were measured on the same cases; one section of the page.

    Attributes:
        dataset: Name of the dataset.
        classes: Names of the classes.
        cases: Names of the cases.
        units: The patient of each case, or the case itself where patients are not known.
        methods: At least one; the baseline, if there is one, first.
        baseline: What the others are tested against.
        no_baseline: Why there is none, as a sentence; empty if there is one.
        distance_unit: `mm`, or `pixel` for images without spacing, which have distances in pixels only.
    """

    dataset: str
    classes: list[str]
    cases: list[str]
    units: list[str]
    methods: list[Method]
    baseline: Method | None
    no_baseline: str
    distance_unit: str

    @property
    def by_patient(self) -> bool:
        """Whether patients are known."""
        return self.units != self.cases

    def values(self, result: Result, metric: str) -> NDArray[np.float64]:
        """`(cases, classes)` of one metric; NaN where it is not defined or was not measured."""
        if metric not in result.frame:
            return np.full((len(self.cases), len(self.classes)), np.nan)
        table = result.frame.pivot(index="case", columns="class", values=metric)
        values: NDArray[np.float64] = table.loc[self.cases, self.classes].to_numpy(dtype=np.float64)
        return values

    def over_seeds(self, method: Method, metric: str) -> NDArray[np.float64]:
        """`(cases, seeds, classes)` of one metric."""
        return np.stack([self.values(result, metric) for result in method.results], axis=1)


def collect(sources: Sequence[Source], *, baseline: str | None = None, processes: int = 2) -> list[Comparison]:
    """Measure what has no table yet and sort everything into comparisons, one per dataset.

    Raises:
        CollabError: If a source cannot be measured, two of one dataset were not measured on the same cases and classes,
            or no method is called `baseline`.
    """
    results: dict[str, list[Result]] = {}
    for source in sources:
        frame = _read_table(source) if source.table else _measure(source, processes)
        seed = source.record.get("settings", {}).get("seed")
        results.setdefault(source.dataset, []).append(Result(source, seed, frame, read_folds(source)))
    if len(results) == 2 and "" in results:  # tables without a dataset.json: they are checked against the others
        unnamed = results.pop("")
        next(iter(results.values())).extend(unnamed)
    comparisons = [_comparison(dataset, members, baseline) for dataset, members in results.items()]
    if baseline is not None and all(comparison.baseline is None for comparison in comparisons):
        labels = [method.label for comparison in comparisons for method in comparison.methods]
        raise CollabError(
            f"report: --baseline must name one of the methods; got {baseline!r}. There are: {', '.join(labels)}. The "
            "name of a folder works, too."
        )
    return comparisons


def _read_table(source: Source) -> pd.DataFrame:
    rule = f"report: {source.table} must be a table of `nnunet_collab evaluate`"
    try:
        table = pd.read_csv(source.table, dtype={"case": str, "class": str})
        frame = table[table["statistic"] == "case"].drop(columns="statistic").reset_index(drop=True)
        numbers = frame.columns.drop(["case", "class", "distance_unit"], errors="ignore")
        frame[numbers] = frame[numbers].astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise CollabError(f"{rule}; {type(error).__name__}: {error}. Write it again.") from error
    if frame.empty or frame.duplicated(["case", "class"]).any():
        raise CollabError(f"{rule}, with every case and class once; it is empty or has some twice. Write it again.")
    ending = str(source.facts.get("file_ending", ""))
    predicted = {path.name.removesuffix(ending) for f in source.predictions for path in f.glob(f"*{ending}") if ending}
    if predicted and predicted != set(frame["case"]):
        strange = predicted ^ set(frame["case"])
        raise CollabError(
            f"{rule} of the predictions beside it; they differ in {listed(strange)}. Run nnunet_collab evaluate again."
        )
    return frame


def _measure(source: Source, processes: int) -> pd.DataFrame:
    if source.labels is None:
        raise CollabError(
            f"report: the labels of the predictions must be found; those of {source.name} are neither where its "
            "validation found them, nor in nnUNet_preprocessed, nor in nnUNet_raw. Name their folder with --labels."
        )
    frames = []
    for folder in source.predictions:
        dataset_json = _dataset_json(folder)
        plan = plan_evaluation(folder, source.labels, dataset_json=dataset_json)
        if plan.without_label:
            raise CollabError(
                f"report: every prediction must have a label in {source.labels}; without one: "
                f"{listed(plan.without_label)} of {folder}. Add them, or name another folder with --labels."
            )
        print(f"measures {folder}", flush=True)
        # The labels of other folds have no prediction here.
        frames.append(
            evaluate_folders(
                folder, source.labels, dataset_json=dataset_json, processes=processes, allow_missing=bool(source.folds)
            )
        )
    frame = pd.concat(frames, ignore_index=True)
    twice = frame.loc[frame.duplicated(["case", "class"]), "case"].unique()
    if len(twice):
        raise CollabError(
            f"report: the folds of {source.name} must validate different cases; in several: {listed(twice)}. Report "
            "each fold's predictions by itself."
        )
    return frame


def _dataset_json(folder: Path) -> Path | None:
    """A results folder's own; for a folder of predictions, where `evaluate` looks."""
    path = folder.parent.parent / "dataset.json"
    return path if folder.name == "validation" and path.is_file() else None


def _comparison(dataset: str, results: list[Result], baseline: str | None) -> Comparison:
    first = results[0]
    cases, classes = sorted(first.frame["case"].unique()), list(first.frame["class"].unique())
    for other in results[1:]:
        _refuse_other_cases(dataset, first, other)
    methods = group_by_method(results)
    chosen, why_not = choose_baseline(methods, baseline)
    pattern = next((r.source.facts["patient_pattern"] for r in results if "patient_pattern" in r.source.facts), None)
    units = {str(unit) for result in results for unit in result.frame.get("distance_unit", ["mm"])}
    return Comparison(
        dataset=dataset or "unnamed dataset",
        classes=classes,
        cases=cases,
        units=[*map(patient_lookup(pattern, cases), cases)],
        methods=[*([chosen] if chosen else []), *(method for method in methods if method is not chosen)],
        baseline=chosen,
        no_baseline=why_not,
        distance_unit="pixel" if units == {"pixel"} else "mm",
    )


def _refuse_other_cases(dataset: str, first: Result, other: Result) -> None:
    for what in ("case", "class"):
        ours, theirs = set(first.frame[what]), set(other.frame[what])
        if ours != theirs:
            plural = "cases" if what == "case" else "classes"
            raise CollabError(
                f"report: methods in one table must have been measured on the same {plural}; of "
                f"{dataset or 'an unnamed dataset'}, only {first.source.name} has {listed(ours - theirs)}, and only "
                f"{other.source.name} has {listed(theirs - ours)}. Predict the same {plural} with both, or make a "
                "report for each test set."
            )
