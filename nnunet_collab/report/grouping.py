"""Group results that differ only in the seed, name the methods, and find the baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_collab.report.runs import Fold
from nnunet_collab.report.sources import Source

if TYPE_CHECKING:
    import pandas as pd

_SUPERVISED = ("SupervisedTrainer", "nnUNetTrainer")


@dataclass(frozen=True)
class Result:
    """A measured source.

    Attributes:
        source: The source of the predictions.
        seed: Seed of its training; None if it is not known.
        frame: One row per case and class, with the columns of `evaluation.metrics.case_metrics`.
        folds: Folds of its training.
    """

    source: Source
    seed: int | None
    frame: pd.DataFrame
    folds: list[Fold]


@dataclass(frozen=True)
class Method:
    """Results that differ only in the seed, in the order of the seeds."""

    label: str
    results: list[Result]


class _Identity(NamedTuple):
    """Key and label of the method of a result, common to all its seeds."""

    label: str
    dataset: str
    configuration: str
    settings: str


def _identity(source: Source) -> _Identity:
    record = source.record
    plans = str(source.plans.get("plans_name", ""))
    configuration = source.run.name.split("__")[2] if source.run else ""
    configuration = configuration if plans in ("", "nnUNetPlans") else f"{plans} {configuration}".strip()
    if not record:
        label, _, rest = source.name.partition("__")
        return _Identity(label, source.dataset, rest, source.name)
    settings = dict(record["settings"])
    seed, run_name = settings.pop("seed", None), settings.pop("run_name", "")
    stem = run_name.removesuffix(str(seed))
    method = record["trainer"].removesuffix("Trainer")
    names = [method, "" if stem in ("s", "seed") or stem.casefold() == method.casefold() else stem]
    student = record.get("student") or ("mean of students" if len(settings["students"]) > 1 else "")
    label = " ".join(filter(None, names)) + (f" / {student}" if student else "")
    label += ", postprocessed" if source.postprocessed else ""
    name = str(source.plans.get("dataset_name", source.dataset))
    same = json.dumps([stem, settings, source.postprocessed], sort_keys=True)
    return _Identity(label, name, configuration, same)


def group_by_method(results: Sequence[Result]) -> list[Method]:
    """Results grouped by everything except the seed, with unique labels."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        identity: Any = _identity(result.source)
        if any(result.seed is None or member.seed == result.seed for member in groups.get(identity, [])):
            identity = (identity, result.source.name)  # the same model, predicted in two ways
        groups.setdefault(identity, []).append(result)
    labels = [_identity(members[0].source)[:3] for members in groups.values()]
    methods = []
    for (label, dataset, configuration), members in zip(labels, groups.values(), strict=True):
        alike = [other for other in labels if other[0] == label]
        if len({other[1] for other in alike}) > 1:
            label = f"{label} ({dataset})"
        if len({other[2] for other in alike}) > 1:
            label = f"{label} ({configuration or members[0].source.name})"
        if len(set(alike)) < len(alike):
            label = members[0].source.name
        methods.append(Method(label, sorted(members, key=lambda result: (result.seed is None, result.seed or 0))))
    return methods


def choose_baseline(methods: Sequence[Method], name: str | None) -> tuple[Method | None, str]:
    """The method of that name; without a name, the only method of a supervised trainer."""
    if name is not None:
        wanted = name.casefold()
        for method in methods:
            if wanted in {method.label.casefold(), *(r.source.name.casefold() for r in method.results)}:
                return method, ""
        return None, f"None of these methods has the name {name}, so nothing was tested."
    if len(methods) == 1:
        return None, "There is only one method, so there is no test."
    supervised = [m for m in methods if _trainer(m.results[0].source) in _SUPERVISED]
    if len(supervised) == 1:
        return supervised[0], ""
    return None, "No baseline was named, so nothing was tested. Name one with --baseline."


def _trainer(source: Source) -> str:
    return str(source.record.get("trainer") or source.name.partition("__")[0])
