"""Evaluate one prediction against one label: both files are read once, checked, and measured class by class.

**Same grid.** Voxel `(i, j, k)` of the prediction is compared with voxel `(i, j, k)` of the label, so
both files must have the same grid: size, spacing, origin and direction, except for the rounding of headers
(`core.grid`, the tolerance of conversion). Different grids are refused, also if one is a mirrored or rotated version of
the other: nnU-Net writes each prediction on the grid of its image, so a label on another grid was not drawn on that
image, and nnU-Net has trained and predicted without that rotation. dataset.json may name a reader that reorients both
(`"overwrite_image_reader_writer": "SimpleITKIOWithReorient"`); then its output is compared and measured.

**Bounding boxes.** A class is measured in the bounding box of its voxels in both files. This changes no value: outside
of the box both masks are empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.grid import Grid, grid_differences
from nnunet_collab.core.image_io import Volume, read_volume, whole_numbers
from nnunet_collab.evaluation.metrics import case_metrics
from nnunet_collab.evaluation.pairing import SHOWN, Plan

Box = tuple[slice, ...]


class CaseResult(NamedTuple):
    """Result of one case.

    Attributes:
        problems: Problems of its files.
        rows: One row of metrics per class; none if there is a problem, or if the files were only checked.
    """

    problems: list[str]
    rows: list[dict[str, Any]]


def evaluate_case(plan: Plan, case: str, *, measure: bool = True) -> CaseResult:
    """Read and check both files of a case, and measure it if there is no problem."""
    known = {0, *(value for values in plan.classes.values() for value in values)}
    with_ignore = known if plan.ignore is None else known | {plan.ignore}
    problems: list[str] = []
    labels: list[_Labels] = []
    grids: list[tuple[Path, Grid]] = []
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
        labels.append(_as_labels(volume, allowed))
        if labels[-1].strange:
            rule = f"must hold only the values {sorted(allowed)} of {plan.dataset_json}"
            problems.append(
                f"{file} {rule}; got {labels[-1].strange}. Map its values, or give the right --dataset-json."
            )
    if len(grids) == 2:
        (predicted, grid), (label, label_grid) = grids
        problems += [
            f"{predicted}: the {what} must be that of its label {label}, {wanted}; got {found} (x, y, z). Predict "
            "the image on which this label was drawn."
            for what, wanted, found in grid_differences(label_grid, grid)
        ]
    if problems or not measure:
        return CaseResult(problems, [])
    return CaseResult([], _measure(plan, case, *labels))


class _Labels(NamedTuple):
    """A segmentation, ready to be measured.

    Attributes:
        voxels: `(Z, Y, X)` small integers; comparing them is faster than comparing floats.
        boxes: Bounding boxes of the values 1, 2, ...; None for a value that no voxel has.
        spacing: `(3,)` in mm.
        strange: Values that are not allowed, as text; empty if there are none.
    """

    voxels: NDArray[Any]
    boxes: list[Box | None]
    spacing: NDArray[np.float64]
    strange: str


def _as_labels(volume: Volume, allowed: set[int]) -> _Labels:
    """Convert the float32 arrays of nnU-Net's readers to integers."""
    voxels = np.empty(volume.voxels.shape[1:], np.min_scalar_type(max(allowed)))
    strange: list[Any] = []
    for read, whole in zip(
        volume.voxels[0], voxels, strict=True
    ):  # slice by slice, because a slice fits into the processor's cache
        with np.errstate(invalid="ignore"):  # NaN is not an integer; it is reported below
            np.copyto(whole, read, casting="unsafe")
        if not np.array_equal(whole, read):
            rounded, uneven = whole_numbers(read)
            beyond = np.unique(rounded[(rounded < 0) | (rounded > max(allowed))])
            strange += [*uneven, *beyond]
            np.copyto(whole, rounded, where=np.isfinite(rounded), casting="unsafe")
    boxes: list[Box | None] = find_objects(voxels)
    if not strange:
        strange = [value for value, box in enumerate(boxes, start=1) if box is not None and value not in allowed]
    distinct = np.unique(strange)
    more = f" and {distinct.size - SHOWN} more" if distinct.size > SHOWN else ""
    told = ", ".join(_shortest(value) for value in distinct[:SHOWN]) + more
    return _Labels(voxels, boxes, volume.spacing, told)


def _shortest(value: Any) -> str:
    """The shortest text that identifies a value: 3.0000002 must not be printed as 3."""
    return np.format_float_positional(value, trim="-") if value.dtype.kind == "f" else str(value)


def _measure(plan: Plan, case: str, prediction: _Labels, truth: _Labels) -> list[dict[str, Any]]:
    """The rows of one case, one per class."""
    spacing_mm = tuple(truth.spacing) if plan.distance_unit == "mm" else None
    keep = None if plan.ignore is None else truth.voxels != plan.ignore
    size = truth.voxels.size if keep is None else int(np.count_nonzero(keep))
    rows = []
    for name, values in plan.classes.items():
        found = [of.boxes[value - 1] for of in (prediction, truth) for value in values if 0 < value <= len(of.boxes)]
        box = _hull([one for one in found if one is not None], truth.voxels.shape)
        metrics = case_metrics(
            _mask(prediction.voxels[box], values),
            _mask(truth.voxels[box], values),
            spacing_mm,
            keep=None if keep is None else keep[box],
            image_size=size,
            nsd_tolerance=plan.choices.nsd_tolerance.get(name),
            lesion_iou=plan.choices.lesion_iou if name in plan.choices.lesions else None,
        )
        rows.append({"case": case, "class": name, **metrics, "distance_unit": plan.distance_unit})
    return rows


def _hull(boxes: list[Box], shape: tuple[int, ...]) -> Box:
    """The smallest box around all boxes, at least two voxels thick along each axis along which the image is.

    Nothing is measured along an axis of a single voxel (`surface.py`), so a box must not create one.
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
    """Mask of the voxels whose label is one of the values."""
    return labels == values[0] if len(values) == 1 else np.isin(labels, values)
