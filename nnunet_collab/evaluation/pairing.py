"""Find the files to compare and their dataset.json, without opening an image."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.image_io import read_whole
from nnunet_collab.core.patients import PatientRule, patient_rule
from nnunet_collab.core.pseudo_labels import pseudo_labels_in
from nnunet_collab.evaluation.choices import NOTHING, Choices, Options, read_choices

SHOWN = 20  # problems or names listed before "and n more"


class Plan(NamedTuple):
    """The files to compare and how; `plan_evaluation` makes it, worker processes receive it."""

    predictions: Path
    labels: Path
    dataset_json: Path
    ending: str  # file ending in both folders, e.g. ".nii.gz"
    reader: type[Any]  # nnU-Net's reader class for this ending
    classes: dict[str, tuple[int, ...]]  # class or region name -> its label values
    ignore: int | None  # value of the ignore label
    cases: list[str]  # file names without the ending, also below
    without_label: list[str]
    without_prediction: list[str]
    distance_unit: str  # "mm", or "pixel" for images without spacing
    patients: PatientRule  # see `core.patients`
    choices: Choices  # what is measured beside the usual metrics
    pseudo_labeled: tuple[str, ...] = ()  # left out: their labels are pseudo labels


def plan_evaluation(
    predictions: Path, labels: Path, *, dataset_json: Path | None = None, options: Options = NOTHING
) -> Plan:
    """Find the classes and pair the files by name, without opening an image; see `evaluate_folders`.

    Cases whose label is a pseudo label are in none of the lists but `pseudo_labeled`.
    """
    for role, folder in (("predictions", predictions), ("labels", labels)):
        if not folder.is_dir():
            raise CollabError(f"evaluate: the folder of {role} must exist; got {folder}. Check the path.")
    source = _find_dataset_json(predictions, labels, dataset_json)
    ending, classes, ignore, reader, content = described_labels(source, labels)
    predicted, labeled = _case_names(predictions, ending), _case_names(labels, ending)
    if not predicted & labeled:
        raise CollabError(
            f"evaluate: a prediction needs a label of the same name, ending in {ending} as {source} says; got "
            f"{listed(predicted)} in {predictions} and {listed(labeled)} in {labels}. Check the two folders."
        )
    pseudo = pseudo_labels_in(labels, ending, labeled, [source, predictions / "dataset.json"])
    if not predicted & labeled - pseudo:
        raise CollabError(
            f"evaluate: predictions must be compared with true labels; those in {labels} of the predicted cases are "
            f"pseudo labels: {listed(predicted & pseudo)}. Name a folder of true labels."
        )
    left_out = tuple(sorted(predicted & labeled & pseudo))
    predicted, labeled = predicted - pseudo, labeled - pseudo
    return Plan(
        *(predictions, labels, source, ending, reader, classes, ignore),
        cases=sorted(predicted & labeled),
        without_label=sorted(predicted - labeled),
        without_prediction=sorted(labeled - predicted),
        distance_unit="pixel" if reader.__name__ == "NaturalImage2DIO" else "mm",
        patients=patient_rule(content, source.parent, labels.resolve().parent),
        choices=read_choices(classes, options),
        pseudo_labeled=left_out,
    )


def dataset_json_places(predictions: Path, labels: Path | None) -> list[Path]:
    """Folders that may hold the dataset.json of predictions.

    With the predictions, where nnU-Net puts it; in the two folders above; with the labels; in the folder above.
    """
    near = [predictions, *predictions.resolve().parents[:2]]
    near += [] if labels is None else [labels, labels.resolve().parent]
    return [folder / "dataset.json" for folder in near]


def _find_dataset_json(predictions: Path, labels: Path, given: Path | None) -> Path:
    """The given file, or the first one found in or near the two folders."""
    candidates = dataset_json_places(predictions, labels) if given is None else [given]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        at = ", ".join(map(str, candidates))
        raise CollabError(
            f"evaluate: dataset.json must name the classes; there is none at {at}. Give it with --dataset-json."
        )
    return found


def described_labels(
    path: Path, labels: Path
) -> tuple[str, dict[str, tuple[int, ...]], int | None, type[Any], dict[str, Any]]:
    """File ending, foreground classes, ignore value, reader class and the content of a dataset.json.

    Args:
        path: The dataset.json.
        labels: Folder of segmentations. Two readers support .tif; only a file shows which one can read it.

    Raises:
        CollabError: If the file is not nnU-Net's.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ending = str(content["file_ending"])
        values = {name: tuple(map(int, np.atleast_1d(value))) for name, value in content["labels"].items()}
        ignore = values.pop("ignore", (None,))[0]
        classes = {name: of_class for name, of_class in values.items() if any(of_class)}
        if not classes:
            raise ValueError("no foreground class")
        # Two readers support .tif; only a trial on a file shows which one can read it.
        example = min(map(str, labels.glob("*.tif")), default=None) if ending == ".tif" else None
        if example is not None:
            read_whole(Path(example), str)  # a damaged file would look like a fault of dataset.json
        reader = determine_reader_writer_from_dataset_json(content, example, verbose=False)
    except CollabError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise CollabError(
            "evaluate: dataset.json must be nnU-Net's, with `labels` and a `file_ending` that nnU-Net reads; "
            f"{path} gave {type(error).__name__}: {error}. Fix it, or give another with --dataset-json."
        ) from error
    return ending, classes, ignore, reader, content


def _case_names(folder: Path, ending: str) -> set[str]:
    """Names of the files with this ending, without the ending; hidden files are not cases."""
    names = (file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return {name[: -len(ending)] for name in names if name.endswith(ending)}


def listed(names: Collection[str]) -> str:
    """The number of names and the names, shortened if there are many."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} ({', '.join(sorted(names)[:SHOWN])}{more})" if names else "none"


def unpaired(plan: Plan) -> list[str]:
    """One problem for predictions without labels, and one for labels without predictions."""
    fix = "Add them, or leave these cases out with --allow-missing."
    ways = (("prediction", "label", plan.without_label), ("label", "prediction", plan.without_prediction))
    return [f"every {has} needs a {lacks}; without one: {listed(names)}. {fix}" for has, lacks, names in ways if names]
