"""The simplest form of `nnunet_collab evaluate`: every file is read twice, every class is a mask of the whole image.

The faster code of the package must give these values to the last bit (tests/evaluation/test_one_case.py), in less time
(benchmarks/metrics_time.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import KDTree

DISTANCES = ("hd", "hd95", "asd")


def plain_evaluation(
    prediction: Path, label: Path, reader: type[Any], classes: dict[str, tuple[int, ...]], ignore: int | None = None
) -> list[dict[str, float]]:
    """One dictionary of metrics per class, in mm and in voxels; files are checked first, and read again then."""
    known = {0, *(value for values in classes.values() for value in values)}
    for file, allowed in ((prediction, known), (label, known | ({ignore} - {None}))):
        if not np.isin(reader().read_seg(str(file))[0], sorted(allowed)).all():
            raise ValueError(f"{file} must hold only {sorted(allowed)}")
    predicted, _ = reader().read_seg(str(prediction))
    truth, properties = reader().read_seg(str(label))
    keep = np.ones(truth[0].shape, dtype=bool) if ignore is None else truth[0] != ignore
    predicted, truth = predicted[0].astype(np.uint8), truth[0].astype(np.uint8)
    return [
        plain_metrics(np.isin(predicted, values) & keep, np.isin(truth, values) & keep, keep, properties["spacing"])
        for values in classes.values()
    ]


def plain_metrics(prediction: np.ndarray, truth: np.ndarray, keep: np.ndarray, spacing: Any) -> dict[str, float]:
    """Metrics of one class from masks of the whole image, `(Z, Y, X)` bool; the spacing is in mm, z, y, x."""
    predicted, true = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    both, size = int(np.count_nonzero(prediction & truth)), int(np.count_nonzero(keep))
    either = predicted + true - both
    row: dict[str, float] = {
        "dice": 2 * both / (predicted + true) if either else np.nan,
        "jaccard": both / either if either else np.nan,
        "mae": (either - both) / size if size else np.nan,
        "missed": int(true > 0 and predicted == 0),
        "false_positive": int(true == 0 and predicted > 0),
        "both_empty": int(either == 0),
    }
    surfaces = _surfaces(prediction, truth) if predicted and true else None
    thick = [axis for axis, length in enumerate(prediction.shape) if length > 1]
    for unit, scale in (("mm", np.asarray(spacing, dtype=np.float64)), ("voxel", np.ones(prediction.ndim))):
        values = (np.nan,) * 3
        if surfaces is not None:
            values = _distances(*(points * scale[thick] for points in surfaces)) if thick else (0.0,) * 3
        row |= {f"{name}_{unit}": value for name, value in zip(DISTANCES, values, strict=True)}
    return row


def _surfaces(prediction: np.ndarray, truth: np.ndarray) -> list[np.ndarray]:
    """Coordinates of the surface voxels of both masks, `(N, axes)`, axes of one voxel left out."""
    prediction, truth = prediction.squeeze(), truth.squeeze()
    for axis in range(prediction.ndim):
        others = tuple(other for other in range(prediction.ndim) if other != axis)
        occupied = np.flatnonzero(prediction.any(axis=others) | truth.any(axis=others))
        window = (slice(None),) * axis + (slice(occupied[0], occupied[-1] + 1),)
        prediction, truth = prediction[window], truth[window]
    points = []
    for mask in (prediction, truth):
        padded = np.pad(mask, 1)  # so that the values that wrap around are False
        interior = padded.copy()
        for axis in range(mask.ndim):
            interior &= np.roll(padded, 1, axis)
            interior &= np.roll(padded, -1, axis)
        points.append(np.argwhere(padded & ~interior))
    return points


def _distances(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """HD, HD95 and ASD between two sets of points."""
    there = KDTree(theirs, leafsize=32).query(ours)[0]
    back = KDTree(ours, leafsize=32).query(theirs)[0]
    return (
        float(max(there.max(), back.max())),
        float(max(np.percentile(there, 95), np.percentile(back, 95))),
        float((there.sum() + back.sum()) / (there.size + back.size)),
    )
