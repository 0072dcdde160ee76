"""Find the predictions in the folders on the command line, before anything is measured.

A source is one model's predictions of one test set: the validation folders of a results folder, a folder that
`nnUNetv2_predict` filled, or a CSV of `nnunet_collab evaluate`. This module also finds
its training, images and labels. Only the labels of a source without a CSV are required.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_collab.core.checkpoint import KEY
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import POSTPROCESSED
from nnunet_collab.core.pseudo_labels import source_of
from nnunet_collab.evaluation.pairing import dataset_json_places

_COLUMNS = {"case", "class", "statistic", "dice"}  # columns that identify a CSV of `evaluate`


@dataclass(frozen=True)
class Source:
    """Predictions of one test set by one model.

    Attributes:
        name: Name of the folder or file.
        facts: Content of dataset.json; empty if there is none.
        plans: Content of plans.json; empty if there is none.
        run: Results folder of the training, with its logs and curves; None if it is not found.
        folds: Names of the fold folders that predicted their validation cases; empty if another test set was predicted.
        predictions: Folders of segmentations; may be empty if there is a table.
        table: CSV of `nnunet_collab evaluate`, or None: then the predictions are measured.
        labels: Folder of the labels, or None.
        images: Folder of the images, or None.
    """

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    plans: Mapping[str, Any] = field(default_factory=dict)
    run: Path | None = None
    folds: tuple[str, ...] = ()
    predictions: tuple[Path, ...] = ()
    table: Path | None = None
    labels: Path | None = None
    images: Path | None = None

    @property
    def record(self) -> Mapping[str, Any]:
        """Entry of a trainer of this package in the plans; empty for other trainers."""
        record: Mapping[str, Any] = self.plans.get(KEY, {})
        return record

    @property
    def postprocessed(self) -> bool:
        """Whether nnU-Net's postprocessing was applied to these predictions, as a study does."""
        return any((folder / POSTPROCESSED).is_file() for folder in self.predictions)

    @property
    def dataset_folders(self) -> list[Path]:
        """Folders that may be the raw dataset: those above the labels and the images."""
        return [folder.resolve().parent for folder in (self.labels, self.images) if folder is not None]

    @property
    def dataset(self) -> str:
        """Dataset of the cases. A labeled subset, or a dataset with pseudo labels, belongs to that of its origin."""
        names = (
            self.facts.get("labeled_subset_of"),
            source_of(self.facts),
            self.plans.get("dataset_name"),
            self.facts.get("name"),
        )
        return next((str(name) for name in names if name), "")


def find_sources(
    paths: Sequence[Path], *, labels: Path | None = None, images: Path | None = None
) -> tuple[list[Source], list[str]]:
    """Sources at the given paths, in their order, and a sentence for each training without predictions.

    Args:
        paths: Results folders, folders of predictions, folders of either, or CSV files.
        labels: Folder of the labels for folders of predictions; None: search next to their images.
        images: Folder of the images for folders of predictions; None: search.

    Raises:
        CollabError: If a path is none of these, or there is no source at all.
    """
    found: dict[Path, Source] = {}
    left_out: list[str] = []
    for path in paths:
        if _is_results_folder(path):
            _add_results(path, found, left_out, labels)
        elif path.is_dir() and (inside := sorted(filter(_is_results_folder, path.iterdir()))):
            for folder in inside:
                if "student" in _read_json(folder / "plans.json").get(KEY, {}) and _run_of_student(folder) in inside:
                    continue  # its training represents it
                _add_results(folder, found, left_out, labels)
        else:
            for one in _folders_of_predictions(path) or [path]:
                found.setdefault(one.resolve(), _predictions(one, labels, images))
    if not found:
        raise CollabError(
            "report: at least one of RESULTS must have predictions of validation cases; none has.\n"
            + "\n".join(f"- {line}" for line in left_out)
        )
    return list(found.values()), left_out


def _is_results_folder(path: Path) -> bool:
    return path.name.count("__") == 2 and (path / "plans.json").is_file()


def _run_of_student(folder: Path) -> Path:
    """Results folder of the training that published a student into `folder`; otherwise `folder` itself."""
    record = _read_json(folder / "plans.json").get(KEY, {})
    if "student" not in record:
        return folder
    _, plans, configuration = folder.name.split("__")
    run_name = record["settings"].get("run_name", "")
    return folder.with_name(f"{'_'.join(filter(None, (record['trainer'], run_name)))}__{plans}__{configuration}")


def _add_results(folder: Path, found: dict[Path, Source], left_out: list[str], labels: Path | None) -> None:
    """A results folder and, for a training, the folders of its students."""
    record = _read_json(folder / "plans.json").get(KEY, {})
    folders = [folder]
    if record and "student" not in record:
        trainer, plans, configuration = folder.name.split("__")
        students = [student["name"] for student in record["settings"]["students"]]
        folders += [folder.with_name(f"{trainer}_{name}__{plans}__{configuration}") for name in students]
    validated = {
        one: folds
        for one in folders
        if (folds := tuple(fold for fold in sorted(one.glob("fold_*")) if _is_validated(fold)))
    }
    for one, folds in validated.items():
        found.setdefault(one.resolve(), _results(one, folds, labels))
    if not validated:
        left_out.append(
            f"{folder.name}: left out, because no fold has a finished validation (validation/summary.json). Finish the "
            "training, or run nnUNetv2_train ... --val."
        )


def _is_validated(fold: Path) -> bool:
    return (fold / "validation" / "summary.json").is_file()


def _results(folder: Path, folds: tuple[Path, ...], given: Path | None) -> Source:
    plans, facts = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    dataset = str(plans.get("dataset_name", ""))
    run = _run_of_student(folder)
    measured_against = _references(folds[0] / "validation" / "summary.json")
    places = [given, *measured_against, _below("nnUNet_preprocessed", dataset, "gt_segmentations")]
    return Source(
        name=folder.name,
        facts=facts,
        plans=plans,
        run=run if run.is_dir() else None,
        folds=tuple(fold.name for fold in folds),
        predictions=tuple(fold / "validation" for fold in folds),
        labels=_first_folder([*places, _below("nnUNet_raw", dataset, "labelsTr")]),
        images=_below("nnUNet_raw", dataset, "imagesTr"),
    )


def _references(summary: Path) -> list[Path]:
    """Folder of the labels of nnU-Net's validation, if the summary names it."""
    cases = _read_json(summary).get("metric_per_case", [])
    if not isinstance(cases, list) or not all(
        isinstance(case, dict) and isinstance(case.get("reference_file", ""), str) for case in cases
    ):
        raise CollabError(
            f"report: metric_per_case of {summary} must be a list of cases with a path as reference_file; it is not. "
            "Write it again with nnUNetv2_train ... --val."
        )
    return [Path(case["reference_file"]).parent for case in cases[:1] if "reference_file" in case]


def _folders_of_predictions(path: Path) -> list[Path]:
    """Folders filled by nnUNetv2_predict, inside of a folder that it did not fill."""
    if not path.is_dir() or (path / "dataset.json").is_file():
        return []
    return [folder for folder in sorted(path.iterdir()) if (folder / "dataset.json").is_file()]


def _predictions(path: Path, labels: Path | None, images: Path | None) -> Source:
    """A folder of predictions, or a CSV."""
    is_table = path.suffix == ".csv" and path.is_file()
    folder = path.with_suffix("") if is_table else path
    table = path if is_table and _is_evaluation(path) else None
    if table is None and folder.is_dir():
        candidates = [folder.with_name(f"{folder.name}.csv"), *sorted(folder.glob("*.csv"))]
        table = next(filter(_is_evaluation, candidates), None)
    plans, call = (
        _read_json(folder / name, optional=True) for name in ("plans.json", "predict_from_raw_data_args.json")
    )
    source = call.get("list_of_lists_or_source_folder")
    images = _first_folder([images, Path(source) if isinstance(source, str) else None])
    labels = _first_folder([labels, _sibling(images, "images", "labels")])
    images = _first_folder([images, _sibling(labels, "labels", "images")])
    facts = _facts(folder, labels)
    if table is None and (is_table or not facts or labels is None):
        raise CollabError(
            f"report: RESULTS must be results folders (<Trainer>__<plans>__<configuration>), folders of predictions "
            f"with a "
            f"table of `nnunet_collab evaluate` inside or next to them, folders of either, or such tables; {path} is "
            f"none of them. Check the path, or run nnunet_collab evaluate -p {folder} -l LABELS -o {folder}.csv first."
        )
    return Source(
        name=folder.name,
        facts=facts,
        plans=plans,
        run=_find_run(plans),
        predictions=(folder,) if folder.is_dir() else (),
        table=table,
        labels=labels,
        images=images,
    )


def _facts(folder: Path, labels: Path | None) -> dict[str, Any]:
    """The dataset.json that `evaluate` finds for these predictions: in or near their folder, or near the labels."""
    path = next((path for path in dataset_json_places(folder, labels) if path.is_file()), None)
    if path is None:
        return {}
    facts = _read_json(path)
    if path.parent != folder and re.fullmatch(r"Dataset\d{3}_.+", path.resolve().parent.name):
        facts["name"] = path.resolve().parent.name  # the name in the plans of other predictions
    return facts


def _find_run(plans: Mapping[str, Any]) -> Path | None:
    """The results folder below nnUNet_results with these plans (nnUNetv2_predict copies them), if there is only one."""
    record = plans.get(KEY, {})
    place = _below("nnUNet_results", str(plans.get("dataset_name", "")))
    if not record or place is None:
        return None
    name = "_".join(filter(None, (record["trainer"], record["settings"].get("run_name", ""))))
    runs = [
        folder
        for folder in place.glob(f"{name}__{plans['plans_name']}__*")
        if _is_results_folder(folder)
        and _read_json(folder / "plans.json").get(KEY, {}).get("settings") == record["settings"]
    ]
    if "student" in record:
        blueprint = record["students"][record["student"]]
        runs = [r for r in runs if plans["configurations"][r.name.split("__")[2]].get("architecture") == blueprint]
    return runs[0] if len(runs) == 1 else None


def _below(variable: str, *reports: str) -> Path | None:
    """An existing folder below one of nnU-Net's three, or None."""
    root = os.environ.get(variable)
    return _first_folder([Path(root, *reports)]) if root and all(reports) else None


def _sibling(folder: Path | None, one: str, other: str) -> Path | None:
    """A folder next to another one, such as labelsTs next to imagesTs."""
    return folder.with_name(folder.name.replace(one, other)) if folder is not None and one in folder.name else None


def _first_folder(places: Sequence[Path | None]) -> Path | None:
    return next((place for place in places if place is not None and place.is_dir()), None)


def _is_evaluation(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return set(next(csv.reader(file), [])) >= _COLUMNS


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CollabError(f"report: {path} must be a readable JSON file; {error}. Write it again.") from error
    if not isinstance(content, dict):
        raise CollabError(f"report: {path} must hold a JSON object; got {type(content).__name__}. Write it again.")
    return content
