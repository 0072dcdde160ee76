"""Evaluate a folder of predictions against a folder of labels: one row of metrics per case and class.

Files are paired by name and read with nnU-Net's own reader, so NIfTI, nrrd, PNG and its other formats work, with its
axis order (z, y, x) and spacing. All problems of all files are reported together; with any problem there is no table.
Classes are the labels or regions of dataset.json, without the background. Voxels with the ignore label in the *label*
file are left out. Images of nnU-Net's 2D reader (PNG, BMP, TIFF) have no spacing: their distances are in pixels only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.patients import patient_lookup
from nnunet_collab.evaluation.choices import NOTHING, Options
from nnunet_collab.evaluation.one_case import CaseResult, evaluate_case
from nnunet_collab.evaluation.pairing import SHOWN, Plan, plan_evaluation, unpaired

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


def evaluate_folders(
    predictions: Path,
    labels: Path,
    *,
    dataset_json: Path | None = None,
    processes: int = 2,
    allow_missing: bool = False,
    progress: bool = True,
    options: Options = NOTHING,
) -> pd.DataFrame:
    """Measure every prediction against the label of the same name.

    Workers are spawned: your own script must call this under `if __name__ == "__main__":`, or with `processes=1`.

    Args:
        predictions: Folder of predicted segmentations.
        labels: Folder of labels.
        dataset_json: Path of the dataset.json with the classes. None: search in `predictions` (where nnU-Net puts it),
            in the two folders above, in `labels`, and in the folder above.
        processes: Number of processes; 1: without worker processes.
        allow_missing: Leave out files without a partner instead of raising.
        progress: Show progress bars.
        options: What to measure beside the usual metrics.

    Returns:
        One row per case and class: `case`, `class`, the metrics and flags of `case_metrics`, and `distance_unit`: `mm`,
        or `pixel` if there is no spacing and so no distance in mm. If the patient of every case is known
        (`core.patients`), the column `patient` follows `case`.

    Raises:
        CollabError: If a folder or dataset.json is missing or unusable, no prediction has a label, files lack a
            partner, cannot be read completely, lie on different grids, or hold values that dataset.json does not name,
            or the options do not fit the classes.
    """
    import pandas as pd

    if processes < 1:
        raise CollabError(f"evaluate: the number of processes must be at least 1; got {processes}. Set it with -np.")
    plan = plan_evaluation(predictions, labels, dataset_json=dataset_json, options=options)
    problems = [] if allow_missing else unpaired(plan)
    rows: list[dict[str, Any]] = []
    result: CaseResult
    with workers(min(processes, len(plan.cases)), progress) as run:
        # After a problem there is no table, so the rest is only checked, not measured.
        for result in run("evaluating", partial(_evaluate, plan, bool(problems)), plan.cases):
            problems += result.problems
            rows += result.rows
    if problems:
        raise CollabError(
            f"evaluate: predictions and labels must match; found {len(problems)} problem(s) between "
            f"{predictions} and {labels}. No scores are given.\n"
            + "\n".join(f"- {problem}" for problem in problems[:SHOWN])
            + (f"\n- and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
        )
    return _with_patients(pd.DataFrame(rows), plan)


def _evaluate(plan: Plan, only_check: bool, case: str) -> CaseResult:
    return evaluate_case(plan, case, measure=not only_check)


def _with_patients(frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Add the patient of each case, so that the table itself says which cases belong together."""
    try:
        patient_of = patient_lookup(plan.patients, plan.cases)
    except CollabError:  # the rule is for the training cases; these have other names
        return frame
    if plan.patients is not None:
        frame.insert(1, "patient", frame["case"].map(patient_of))
    return frame


@contextmanager
def workers(processes: int, progress: bool) -> Iterator[Callable[..., list[T]]]:
    """A function `run(title, function, cases)` that lists `function(case)`; CollabError if a process dies."""
    from tqdm import tqdm

    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn")) if processes > 1 else None

    def run(title: str, function: Callable[[str], T], cases: list[str]) -> list[T]:
        results = (pool.map if pool else map)(function, cases)
        return list(tqdm(results, title, len(cases), unit="case", disable=not progress))

    try:
        yield run
    except BrokenProcessPool as error:
        raise CollabError(
            "evaluate: worker processes must not be killed; one was, probably because memory ran out. Use -np 1. "
            '(A script that calls evaluate_folders must do so under `if __name__ == "__main__":`.)'
        ) from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
