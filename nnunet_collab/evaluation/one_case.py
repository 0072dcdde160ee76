"""One prediction against one label: both files are read once, checked, and measured class by class.

**Same place in the world.** Voxel `(i, j, k)` of the prediction is compared with voxel `(i, j, k)` of the label, so
both files must state the same grid: size, spacing, origin and direction, but for the rounding of headers (`core.grid`,
the tolerance of conversion). Other grids are refused, also where one is the other one mirrored or turned and could be
turned back: nnU-Net writes each prediction on the grid of its image, so a label on another grid was not drawn on that
image, and nnU-Net has trained and predicted without that turn. dataset.json may name a reader that turns both upright
(`"overwrite_image_reader_writer": "SimpleITKIOWithReorient"`); then what it returns is compared and measured.

**Every class in its box.** A class is measured in the box that holds it in either file, which changes no value: outside
of it both masks are empty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.grid import grid_differences
from nnunet_collab.core.image_io import read_volume, whole_numbers
from nnunet_collab.evaluation.metrics import case_metrics
from nnunet_collab.evaluation.pairing import SHOWN, Plan

Box = tuple[slice, ...]


class CaseResult(NamedTuple):
    """What came of one case.

    Attributes:
        problems: What is wrong with its files.
        rows: One row of metrics per class; none if there is a problem, or if only a check was asked for.
    """

    problems: list[str]
    rows: list[dict[str, Any]]


def evaluate_case(plan: Plan, case: str, *, measure: bool = True) -> CaseResult:
    """Read both files of a case, check them, and measure it if they are in order."""
    known = {0, *(value for values in plan.classes.values() for value in values)}
    with_ignore = known if plan.ignore is None else known | {plan.ignore}
    problems, labels, grids = [], [], []
    for folder, allowed in ((plan.predictions, known), (plan.labels, with_ignore)):
        file = folder / f"{case}{plan.ending}"
        try:
            volume = read_volume(file, plan.reader, label=True)
        except CollabError as error:
            problems.append(str(error))
            continue
        grids.append((file, volume.grid))
        if (channels := volume.voxels.shape[0]) != 1:
            problems.append(f"{file} must have one channel; got {channels}. Save label values, not colors.")
            continue
        classes, strange = _as_classes(volume.voxels[0], allowed)
        labels.append((classes, volume.spacing))
        if strange:
            rule = f"must hold only the values {sorted(allowed)} of {plan.dataset_json}"
            problems.append(f"{file} {rule}; got {strange}. Map its values, or give the right --dataset-json.")
    if len(grids) == 2:
        (predicted, grid), (label, label_grid) = grids
        problems += [
            f"{predicted}: the {what} must be that of its label {label}, {wanted}; it is {found} (x, y, z). Predict "
            "the very image that this label was drawn on."
            for what, wanted, found in grid_differences(label_grid, grid)
        ]
    if problems or not measure:
        return CaseResult(problems, [])
    (prediction, _), (truth, spacing) = labels
    return CaseResult([], _measure(plan, case, prediction, truth, spacing))


def _as_classes(voxels: NDArray[np.float32], allowed: set[int]) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], str]:
    """Labels as small integers, which compare faster, and the values that are not allowed, as text."""
    rounded, uneven = whole_numbers(voxels)
    if uneven.size:
        strange = uneven
    elif rounded.min(initial=0) < 0 or rounded.max(initial=0) > max(allowed):
        strange = np.unique(rounded)
    else:
        small = rounded.astype(np.min_scalar_type(max(allowed)))
        is_allowed = np.isin(np.arange(max(allowed) + 1), sorted(allowed))
        if is_allowed[small].all():
            return small, ""
        strange = np.unique(small)
    strange = strange[~np.isin(strange, sorted(allowed))]
    more = f" and {strange.size - SHOWN} more" if strange.size > SHOWN else ""
    return np.zeros(0, np.uint8), ", ".join(_shortest(value) for value in strange[:SHOWN]) + more


def _shortest(value: Any) -> str:
    """The shortest text that tells a value from its neighbors: 3.0000002 must not be printed as 3."""
    return np.format_float_positional(value, trim="-") if value.dtype.kind == "f" else str(value)


def _measure(
    plan: Plan, case: str, prediction: NDArray[Any], truth: NDArray[Any], spacing: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """The rows of one case, one per class."""
    spacing_mm = tuple(spacing) if plan.distance_unit == "mm" else None
    keep = None if plan.ignore is None else truth != plan.ignore
    size = truth.size if keep is None else int(np.count_nonzero(keep))
    boxes = [find_objects(labels) for labels in (prediction, truth)]
    rows = []
    for name, values in plan.classes.items():
        found = [box[value - 1] for box in boxes for value in values if 0 < value <= len(box)]
        box = _hull([one for one in found if one is not None], truth.shape)
        metrics = case_metrics(
            _mask(prediction[box], values),
            _mask(truth[box], values),
            spacing_mm,
            keep=None if keep is None else keep[box],
            image_size=size,
        )
        rows.append({"case": case, "class": name, **metrics, "distance_unit": plan.distance_unit})
    return rows


def _hull(boxes: list[Box], shape: tuple[int, ...]) -> Box:
    """The smallest box around all boxes, at least two voxels thick along each axis on which the image is.

    An axis of a single voxel is one across which nothing is measured (`surface.py`), so a box must not make one.
    """
    hull = []
    for axis, size in enumerate(shape):
        start = min((box[axis].start for box in boxes), default=0)
        stop = max((box[axis].stop for box in boxes), default=1)
        if stop - start == 1:
            start, stop = (start, stop + 1) if stop < size else (max(start - 1, 0), stop)
        hull.append(slice(start, stop))
    return tuple(hull)


def _mask(labels: NDArray[Any], values: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where the labels have one of the values."""
    return labels == values[0] if len(values) == 1 else np.isin(labels, values)
