"""Measure the sources, group the seeds of each method, and refuse results that cannot be in one table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.patients import patient_lookup, patient_rule
from nnunet_collab.evaluation.choices import NOTHING, Options
from nnunet_collab.evaluation.folders import evaluate_folders
from nnunet_collab.evaluation.pairing import listed, plan_evaluation
from nnunet_collab.report.evaluation_table import read_evaluation
from nnunet_collab.report.grouping import Method, Result, choose_baseline, group_by_method
from nnunet_collab.report.runs import Fold, read_folds
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
        units: The patient of each case, or the case itself if patients are not known.
        by_patient: Whether patients are known.
        methods: At least one; the baseline, if there is one, is the first.
        baseline: The method against which the others are tested.
        no_baseline: Reason why there is no baseline, as a sentence; empty if there is one.
        distance_unit: `mm`, or `pixel` for images without spacing, which have distances in pixels only.
    """

    dataset: str
    classes: list[str]
    cases: list[str]
    units: list[str]
    by_patient: bool
    methods: list[Method]
    baseline: Method | None
    no_baseline: str
    distance_unit: str

    @property
    def nsd_tolerances(self) -> dict[str, float]:
        """Tolerance of the surface Dice of each class; empty if no method has one."""
        frames = [r.frame for m in self.methods for r in m.results if "nsd_tolerance" in r.frame]
        return _tolerances(frames[0]) if frames else {}

    def values(self, result: Result, metric: str) -> NDArray[np.float64]:
        """`(cases, classes)` values of one metric; NaN if it is not defined or was not measured."""
        if metric not in result.frame:
            return np.full((len(self.cases), len(self.classes)), np.nan)
        table = result.frame.pivot(index="case", columns="class", values=metric)
        values: NDArray[np.float64] = table.loc[self.cases, self.classes].to_numpy(dtype=np.float64)
        return values

    def over_seeds(self, method: Method, metric: str) -> NDArray[np.float64]:
        """`(cases, seeds, classes)` values of one metric."""
        return np.stack([self.values(result, metric) for result in method.results], axis=1)


def collect(
    sources: Sequence[Source], *, baseline: str | None = None, processes: int = 2, options: Options = NOTHING
) -> list[Comparison]:
    """Measure the sources without a table, and group everything into comparisons, one per dataset.

    Raises:
        CollabError: If a source cannot be measured, two sources of one dataset were not measured on the same cases and
            classes, or no method has the name `baseline`.
    """
    results: dict[str, list[Result]] = {}
    for source in sources:
        folds = read_folds(source)
        _refuse_stale_validation(source, folds)
        frame = _read_table(source.table, source) if source.table else _measure(source, processes, options)
        seed = source.record.get("settings", {}).get("seed")
        results.setdefault(source.dataset, []).append(Result(source, seed, frame, folds))
    if len(results) == 2 and "" in results:  # tables without a dataset.json: they are checked against the others
        unnamed = results.pop("")
        next(iter(results.values())).extend(unnamed)
    results = _by_dataset(results)
    comparisons = [_comparison(dataset, members, baseline) for dataset, members in results.items()]
    if baseline is not None and all(comparison.baseline is None for comparison in comparisons):
        labels = [method.label for comparison in comparisons for method in comparison.methods]
        raise CollabError(
            f"report: --baseline must name one of the methods; got {baseline!r}. There are: {', '.join(labels)}. The "
            "name of a folder is accepted, too."
        )
    return comparisons


def _by_dataset(results: dict[str, list[Result]]) -> dict[str, list[Result]]:
    """One name for `Dataset027_ACDC` (as in plans.json) and `ACDC` (as in dataset.json)."""
    merged: dict[str, list[Result]] = {}
    for name, members in results.items():
        full = [other for other in results if re.fullmatch(r"Dataset\d{3}_" + re.escape(name), other)]
        merged.setdefault(full[0] if len(full) == 1 else name, []).extend(members)
    return merged


def _patients(results: Sequence[Result], cases: list[str]) -> tuple[list[str], bool]:
    """The patient of each case, from the first dataset.json or table that has patients; else the case itself.

    Also, whether patients are known.
    """
    rules = (patient_rule(result.source.facts, *result.source.dataset_folders) for result in results)
    rule = next((rule for rule in rules if rule is not None), None)
    for result in results if rule is None else []:
        if "patient" in result.frame:
            patients = result.frame.drop_duplicates("case").set_index("case")["patient"]
            return [str(patient) for patient in patients.loc[cases]], True
    return [*map(patient_lookup(rule, cases), cases)], rule is not None


def _read_table(table: Path, source: Source) -> pd.DataFrame:
    frame = read_evaluation(table)
    ending = str(source.facts.get("file_ending", ""))
    predicted = {path.name.removesuffix(ending) for f in source.predictions for path in f.glob(f"*{ending}") if ending}
    if predicted and predicted != set(frame["case"]):
        strange = predicted ^ set(frame["case"])
        raise CollabError(
            f"report: {table} must be a table of the predictions next to it; they differ in {listed(strange)}. Run "
            "nnunet_collab evaluate again."
        )
    return frame


def _refuse_stale_validation(source: Source, folds: Sequence[Fold]) -> None:
    """Raise if predictions are from an earlier training in the same folder, which may have had another split."""
    ending = str(source.facts.get("file_ending", ""))
    # zip: folds of a training are listed in the order of its folders of validation cases.
    for folder, fold in zip(source.predictions, folds, strict=False) if source.folds else ():
        predicted = len([*folder.glob(f"*{ending}")]) if ending else 0
        if fold.validated is not None and predicted > fold.validated:
            raise CollabError(
                f"report: {folder} must hold only the validation cases of its training, {fold.validated} "
                f"according to its log; got {predicted} predictions, so some are from an earlier training with another "
                "split. Delete the folder, and predict again with nnUNetv2_train ... --val."
            )


def _measure(source: Source, processes: int, options: Options) -> pd.DataFrame:
    if source.labels is None:
        raise CollabError(
            f"report: the labels of the predictions must be found; those of {source.name} are neither in the folder "
            "of its validation, nor in nnUNet_preprocessed, nor in nnUNet_raw. Name their folder with --labels."
        )
    frames = []
    for folder in source.predictions:
        dataset_json = _dataset_json(folder)
        plan = plan_evaluation(folder, source.labels, dataset_json=dataset_json, options=options)
        if plan.without_label:
            raise CollabError(
                f"report: every prediction must have a label in {source.labels}; without one: "
                f"{listed(plan.without_label)} of {folder}. Add them, or name another folder with --labels."
            )
        print(f"measures {folder}", flush=True)
        # The labels of other folds have no prediction here.
        frames.append(
            evaluate_folders(
                folder,
                source.labels,
                dataset_json=dataset_json,
                processes=processes,
                allow_missing=bool(source.folds),
                options=options,
            )
        )
    frame = pd.concat(frames, ignore_index=True)
    twice = frame.loc[frame.duplicated(["case", "class"]), "case"].unique()
    if len(twice):
        raise CollabError(
            f"report: the folds of {source.name} must validate different cases; in several folds: {listed(twice)}. "
            "Report the predictions of each fold separately."
        )
    return frame


def _dataset_json(folder: Path) -> Path | None:
    """The dataset.json of a results folder; for a folder of predictions, the one that `evaluate` finds."""
    path = folder.parent.parent / "dataset.json"
    return path if folder.name == "validation" and path.is_file() else None


def _comparison(dataset: str, results: list[Result], baseline: str | None) -> Comparison:
    first = results[0]
    cases, classes = sorted(first.frame["case"].unique()), list(first.frame["class"].unique())
    for other in results[1:]:
        _refuse_other_cases(dataset, first, other)
    _refuse_other_tolerances(dataset, results)
    methods = group_by_method(results)
    units, by_patient = _patients(results, cases)
    chosen, why_not = choose_baseline(methods, baseline)
    distance_units = {str(unit) for result in results for unit in result.frame.get("distance_unit", ["mm"])}
    return Comparison(
        dataset=dataset or "unnamed dataset",
        classes=classes,
        cases=cases,
        units=units,
        by_patient=by_patient,
        methods=[*([chosen] if chosen else []), *(method for method in methods if method is not chosen)],
        baseline=chosen,
        no_baseline=why_not,
        distance_unit="pixel" if distance_units == {"pixel"} else "mm",
    )


def _tolerances(frame: pd.DataFrame) -> dict[str, float]:
    return {str(name): float(rows["nsd_tolerance"].iloc[0]) for name, rows in frame.groupby("class", sort=False)}


def _refuse_other_tolerances(dataset: str, results: Sequence[Result]) -> None:
    """Raise unless all surface Dice of a table were measured at one tolerance per class."""
    measured = {r.source.name: _tolerances(r.frame) for r in results if "nsd_tolerance" in r.frame}
    if len({tuple(sorted(tolerances.items())) for tolerances in measured.values()}) > 1:
        told = "; ".join(f"{name}: {tolerances}" for name, tolerances in measured.items())
        raise CollabError(
            "report: surface Dice in one table must have been measured at the same tolerances; of "
            f"{dataset or 'an unnamed dataset'}: {told}. Run nnunet_collab evaluate --nsd_tolerance again for some."
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
