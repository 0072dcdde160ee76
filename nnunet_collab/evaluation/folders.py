"""A folder of predictions against a folder of labels: one row of metrics per case and class.

Files are paired by name and read with nnU-Net's own reader, so NIfTI, nrrd, PNG and its other formats work, with its
axis order (z, y, x) and spacing. All are read and checked before the first metric is computed; all problems are told at
once. Classes are the labels or regions of dataset.json but the background. The ignore label counts where the *label*
has it. Images of nnU-Net's 2D reader (PNG, BMP, TIFF) have no spacing: their distances are in pixels only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.metrics import case_metrics

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20  # problems or names listed before "and n more"


class Plan(NamedTuple):
    """What will be compared with what; `plan_evaluation` makes it, worker processes receive it."""

    predictions: Path
    labels: Path
    dataset_json: Path
    ending: str  # of the files in both folders, e.g. ".nii.gz"
    reader: type[Any]  # nnU-Net's reader class for it
    classes: dict[str, tuple[int, ...]]  # class or region name -> its label values
    ignore: int | None  # the ignore label's value
    cases: list[str]  # file names without the ending, here and below
    without_label: list[str]
    without_prediction: list[str]
    distance_unit: str  # "mm", or "pixel" for images without spacing


def evaluate_folders(
    predictions: Path,
    labels: Path,
    *,
    dataset_json: Path | None = None,
    processes: int = 2,
    allow_missing: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every prediction against the label of the same name.

    Workers are spawned: a script of your own must call this under `if __name__ == "__main__":`, or with `processes=1`.

    Args:
        predictions: Folder of predicted segmentations.
        labels: Folder of labels.
        dataset_json: Names the classes. None looks in `predictions`, where nnU-Net puts it, in the two folders above,
            in `labels`, and in the folder above.
        processes: Worker processes; 1 works without any.
        allow_missing: Leave out files without a partner instead of raising.
        progress: Show progress bars.

    Returns:
        One row per case and class: `case`, `class`, the metrics and flags of `case_metrics`, and `distance_unit`: `mm`,
        or `pixel` where there is no spacing and so no distance in mm.

    Raises:
        CollabError: If a folder or dataset.json is missing or unusable, no prediction has a label, files lack a
            partner, cannot be read, differ in shape or spacing, or hold values that dataset.json does not name.
    """
    import pandas as pd

    if processes < 1:
        raise CollabError(f"evaluate: the number of processes must be at least 1; got {processes}. Set it with -np.")
    plan = plan_evaluation(predictions, labels, dataset_json=dataset_json)
    problems = [] if allow_missing else _unpaired(plan)
    with workers(min(processes, len(plan.cases)), progress) as run:
        problems += run("checking", partial(_check_case, plan), plan.cases)
        if problems:
            raise CollabError(
                f"evaluate: predictions and labels must fit each other; found {len(problems)} problem(s) between "
                f"{predictions} and {labels}. Nothing was computed.\n"
                + "\n".join(f"- {problem}" for problem in problems[:_SHOWN])
                + (f"\n- and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
            )
        return pd.DataFrame(run("measuring", partial(_measure_case, plan), plan.cases))


def plan_evaluation(predictions: Path, labels: Path, *, dataset_json: Path | None = None) -> Plan:
    """Find the classes and pair the files by name, without opening an image; see `evaluate_folders`."""
    for role, folder in (("predictions", predictions), ("labels", labels)):
        if not folder.is_dir():
            raise CollabError(f"evaluate: the folder of {role} must exist; got {folder}. Check the path.")
    source = _find_dataset_json(predictions, labels, dataset_json)
    ending, classes, ignore, reader = _read_dataset_json(source, labels)
    predicted, labeled = _case_names(predictions, ending), _case_names(labels, ending)
    if not predicted & labeled:
        raise CollabError(
            f"evaluate: a prediction needs a label of the same name, ending in {ending} as {source} says; got "
            f"{listed(predicted)} in {predictions} and {listed(labeled)} in {labels}. Check the two folders."
        )
    return Plan(
        *(predictions, labels, source, ending, reader, classes, ignore),
        cases=sorted(predicted & labeled),
        without_label=sorted(predicted - labeled),
        without_prediction=sorted(labeled - predicted),
        distance_unit="pixel" if reader.__name__ == "NaturalImage2DIO" else "mm",
    )


def _find_dataset_json(predictions: Path, labels: Path, given: Path | None) -> Path:
    """The file that was given, or the first one found around the two folders."""
    near = (predictions, *predictions.resolve().parents[:2], labels, labels.resolve().parent)
    candidates = [folder / "dataset.json" for folder in near] if given is None else [given]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        at = ", ".join(map(str, candidates))
        raise CollabError(f"evaluate: dataset.json must name the classes; none at {at}. Give it with --dataset-json.")
    return found


def _read_dataset_json(path: Path, labels: Path) -> tuple[str, dict[str, tuple[int, ...]], int | None, type[Any]]:
    """File ending, foreground classes, ignore value and reader class that a dataset.json states."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ending = str(content["file_ending"])
        values = {name: tuple(map(int, np.atleast_1d(value))) for name, value in content["labels"].items()}
        ignore = values.pop("ignore", (None,))[0]
        classes = {name: of_class for name, of_class in values.items() if any(of_class)}
        if not classes:
            raise ValueError("no foreground class")
        # Two readers claim .tif; only trying them on a file tells which one can read it.
        example = min(map(str, labels.glob("*.tif")), default=None) if ending == ".tif" else None
        reader = determine_reader_writer_from_dataset_json(content, example, verbose=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise CollabError(
            "evaluate: dataset.json must be nnU-Net's, with `labels` and a `file_ending` that nnU-Net reads; "
            f"{path} gave {type(error).__name__}: {error}. Mend it, or give another with --dataset-json."
        ) from error
    return ending, classes, ignore, reader


def _case_names(folder: Path, ending: str) -> set[str]:
    """Names of the files with that ending, without it; hidden files are not cases."""
    names = (file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return {name[: -len(ending)] for name in names if name.endswith(ending)}


def listed(names: Collection[str]) -> str:
    """How many there are and which, cut short if there are many."""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(sorted(names)[:_SHOWN])}{more})" if names else "none"


def _unpaired(plan: Plan) -> list[str]:
    """One problem for each of the two ways in which files can lack a partner."""
    mend = "Add them, or leave these cases out with --allow-missing."
    ways = (("prediction", "label", plan.without_label), ("label", "prediction", plan.without_prediction))
    return [f"every {has} needs a {lacks}; without one: {listed(names)}. {mend}" for has, lacks, names in ways if names]


@contextmanager
def workers(processes: int, progress: bool) -> Iterator[Callable[..., list[Any]]]:
    """A function `run(title, function, cases)` that joins the lists `function(case)`; CollabError if a process dies."""
    from tqdm import tqdm

    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn")) if processes > 1 else None

    def run(title: str, function: Callable[[str], list[Any]], cases: list[str]) -> list[Any]:
        results = (pool.map if pool else map)(function, cases)
        return [item for items in tqdm(results, title, len(cases), unit="case", disable=not progress) for item in items]

    try:
        yield run
    except BrokenProcessPool as error:
        raise CollabError(
            "evaluate: worker processes must live to the end; one died, most often because memory ran out. Use -np 1. "
            '(A script that calls evaluate_folders must do so under `if __name__ == "__main__":`.)'
        ) from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def read_segmentation(plan: Plan, file: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Segmentation `(C, Z, Y, X)` as nnU-Net reads it (Z = 1 in 2D, C should be 1) and spacing `(3,)` in mm."""
    segmentation, properties = plan.reader().read_seg(str(file))
    return segmentation, np.asarray(properties["spacing"], dtype=np.float64)


def _check_case(plan: Plan, case: str) -> list[str]:
    """What is wrong with one pair of files."""
    known = {0, *(value for values in plan.classes.values() for value in values)}
    with_ignore = known if plan.ignore is None else known | {plan.ignore}
    problems, read = [], []
    for folder, allowed in ((plan.predictions, known), (plan.labels, with_ignore)):
        file = folder / f"{case}{plan.ending}"
        try:
            segmentation, spacing = read_segmentation(plan, file)
        except Exception as error:  # whatever a reader of damaged files raises
            problems.append(f"{file} must be readable; got {type(error).__name__}: {error}. Write it again.")
            continue
        if (channels := segmentation.shape[0]) != 1:
            problems.append(f"{file} must have one channel; got {channels}. Save label values, not colors.")
        strange = np.unique(segmentation[~np.isin(segmentation, sorted(allowed))])
        if strange.size:
            got = ", ".join(f"{value:g}" for value in strange[:_SHOWN])
            rule = f"must hold only the values {sorted(allowed)} of {plan.dataset_json}"
            problems.append(f"{file} {rule}; got {got}. Map its values, or give the right --dataset-json.")
        read.append((file, segmentation.shape[1:], spacing))
    if len(read) == 2:
        (predicted, shape, spacing), (label, label_shape, label_spacing) = read
        mend = "Predict the very image that this label was drawn on."
        if shape != label_shape:
            problems.append(f"{predicted} and {label} must have one shape; got {shape} and {label_shape}. {mend}")
        if not np.allclose(spacing, label_spacing, rtol=1e-3, atol=0):
            got = " and ".join(str([float(f"{mm:.6g}") for mm in side]) for side in (spacing, label_spacing))
            problems.append(f"{predicted} and {label} must have one spacing; got {got} mm. {mend}")
    return problems


def _measure_case(plan: Plan, case: str) -> list[dict[str, Any]]:
    """The rows of one case, one per class."""
    prediction, _ = read_segmentation(plan, plan.predictions / f"{case}{plan.ending}")
    truth, spacing = read_segmentation(plan, plan.labels / f"{case}{plan.ending}")
    spacing_mm = tuple(spacing) if plan.distance_unit == "mm" else None
    keep = None if plan.ignore is None else truth[0] != plan.ignore
    # Small integers compare faster; every value fits, because the check has passed.
    small = np.min_scalar_type(max(plan.ignore or 0, *(max(values) for values in plan.classes.values())))
    prediction, truth = prediction[0].astype(small), truth[0].astype(small)
    rows = []
    for name, values in plan.classes.items():
        metrics = case_metrics(np.isin(prediction, values), np.isin(truth, values), spacing_mm, keep=keep)
        rows.append({"case": case, "class": name, **metrics, "distance_unit": plan.distance_unit})
    return rows
