"""The reproducibility checklist of the report, filled from what the results say; what they do not say is marked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from nnunet_collab import __version__
from nnunet_collab.core.patients import PATIENTS
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.settings import settings_of
from nnunet_collab.report.tables import EMPTY, Cell, Table

if TYPE_CHECKING:
    from nnunet_collab.report.grouping import Result

NOT_KNOWN = "not known: add it"


def checklist_table(comparison: Comparison, training: pd.DataFrame) -> Table:
    """One line per question, its answer, and where the answer was found."""
    items = [
        *_about_data(comparison, training),
        *_about_trainings(comparison, training),
        ("Software", _software(comparison), "trainings' debug.json; this command"),
        ("Hardware", _joined(training, "device"), "trainings' debug.json"),
        ("Time", _time(training), "trainings' logs"),
        ("Metrics", _metrics(comparison), "tables of evaluate"),
        ("Statistics", _statistics(comparison), "this report"),
        ("Code, weights, and data are available", NOT_KNOWN, EMPTY),
    ]
    rows = [[Cell(question), Cell(answer or NOT_KNOWN), Cell(where)] for question, answer, where in items]
    note = "What repeating the experiment takes; an item that is not known was not found in the results."
    return Table(
        "", "Reproducibility checklist", ["item", "answer", "found in"], rows, {"dataset": comparison.dataset}, note
    )


def _results(comparison: Comparison) -> list[Result]:
    return [result for method in comparison.methods for result in method.results]


def _about_data(comparison: Comparison, training: pd.DataFrame) -> list[tuple[str, str, str]]:
    facts = next((dict(r.source.facts) for r in _results(comparison) if r.source.facts), {})
    told = {"description": "", "reference": "", "licence": "license ", "license": "license ", "release": "release "}
    about = [f"{word}{facts[key]}" for key, word in told.items() if facts.get(key)]
    test = f"{len(comparison.cases)} cases"
    test += f" of {len(set(comparison.units))} patients" if comparison.by_patient else ", patients not known"
    folds = sorted({fold for result in _results(comparison) for fold in result.source.folds})
    how = f"validation cases of {', '.join(folds)}" if folds else "predicted after training"
    counts = [
        f"{_joined(training, column, digits=0)} {name}"
        for column, name in (("labeled_cases", "labeled"), ("unlabeled_cases", "unlabeled"))
        if _joined(training, column, digits=0)
    ]
    return [
        ("Data", "; ".join([comparison.dataset, *about]), "dataset.json"),
        ("Classes", ", ".join(comparison.classes), "dataset.json"),
        ("Training cases per fold", ", ".join(counts), "trainings' logs"),
        ("Test cases", f"{test}; {how}", "predictions"),
        ("Split by patient", str(facts.get(PATIENTS) or facts.get("patient_pattern", "")), "dataset.json"),
    ]


def _about_trainings(comparison: Comparison, training: pd.DataFrame) -> list[tuple[str, str, str]]:
    seeds = []
    for method in comparison.methods:
        known = [str(result.seed) for result in method.results if result.seed is not None]
        seeds.append(f"{method.label}: {', '.join(known) or 'not known'}")
    lengths = [
        f"{row.epochs:.0f} epochs of {row.iterations_per_epoch:.0f} iterations"
        for row in (training[["epochs", "iterations_per_epoch"]].dropna().itertuples() if len(training) else ())
    ]
    recorded = [method.label for method in comparison.methods if settings_of(method)]
    without = [method.label for method in comparison.methods if not settings_of(method)]
    settings = f"recorded for {', '.join(recorded)}; in this report" if recorded else ""
    settings += f"; not for {', '.join(without)}" if recorded and without else ""
    chosen = "last checkpoint (checkpoint_final), not chosen by a score" if _all_folds(comparison) else ""
    return [
        ("Seeds", "; ".join(seeds), "plans.json of the trainings"),
        ("Baseline", comparison.baseline.label if comparison.baseline else "", "--baseline, or the supervised method"),
        ("Length of training", "; ".join(dict.fromkeys(lengths)), "trainings' logs"),
        ("All settings", settings, "plans.json of the trainings"),
        ("Choice of the model", chosen, "validation of the trainings"),
    ]


def _all_folds(comparison: Comparison) -> bool:
    return all(result.source.folds for result in _results(comparison))


def _software(comparison: Comparison) -> str:
    versions: dict[str, dict[str, None]] = {}
    for result in _results(comparison):
        for fold in result.folds:
            for name, version in fold.software.items():
                versions.setdefault(name, {})[version] = None
    trained = [f"{name} {' and '.join(found)}" for name, found in versions.items()]
    return "; ".join([*trained, f"report by nnunet_collab {__version__}"])


def _joined(training: pd.DataFrame, column: str, *, digits: int | None = None) -> str:
    """The different values of a column."""
    values: Iterable[Any] = training[column].dropna() if column in training else ()
    texts = [str(value) if digits is None else f"{value:.{digits}f}" for value in values]
    return " or ".join(dict.fromkeys(text for text in texts if text != EMPTY))


def _time(training: pd.DataFrame) -> str:
    if not len(training) or not training["hours"].notna().any():
        return ""
    gpu = training["gpu_hours"].sum(min_count=1)
    told = f"{training['hours'].sum():.2f} hours for {len(training)} trainings"
    return told + (f", {gpu:.2f} GPU hours" if gpu == gpu else "")


def _metrics(comparison: Comparison) -> str:
    tolerances = comparison.nsd_tolerances
    stated = ", ".join(f"{name} {value:g} {comparison.distance_unit}" for name, value in tolerances.items())
    told = "defined below each table; classes in neither mask are left out, in one mask alone count as 0"
    return told + (f"; tolerance of the surface Dice: {stated}" if stated else "")


def _statistics(comparison: Comparison) -> str:
    unit = "patients" if comparison.by_patient else "cases (patients are not known)"
    seeds = [len(method.results) for method in comparison.methods]
    over = f"over {unit}" + (" and seeds" if max(seeds) > 1 else "; one seed, so trainings are not in it")
    test = "; Wilcoxon signed-rank test, two-sided, Holm's correction" if comparison.baseline else ""
    return f"95 % intervals by bootstrap {over}{test}"
