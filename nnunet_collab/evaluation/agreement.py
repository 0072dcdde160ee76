"""How far several segmentations of one image agree: the stability of a pseudo label.

A pseudo label is the segmentation by the ensemble. Its members are the folds, or earlier checkpoints of the same
training. The agreement of a case is the mean Dice between each member and the ensemble, as ST++ selects reliable images
by earlier checkpoints (Yang et al., CVPR 2022, section 3.3; there it is the mean IoU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.grid import grid_differences
from nnunet_collab.core.image_io import Volume, read_volume, whole_numbers

Labels = NDArray[np.int16]


class Predictions(NamedTuple):
    """Segmentations of the same cases.

    Attributes:
        ensemble: Folder of the segmentations that become pseudo labels.
        members: Folders of those that they are compared with, at least 1.
        ending: File ending in all folders.
        reader: nnU-Net's reader class for this ending.
        classes: Class or region -> its label values, without the background.
    """

    ensemble: Path
    members: tuple[Path, ...]
    ending: str
    reader: type[Any]
    classes: Mapping[str, tuple[int, ...]]


class Stability(NamedTuple):
    """Agreement on one case.

    Attributes:
        case: Name of the case.
        agreement: Mean Dice of members and ensemble, 0 to 1; NaN if none of them finds any class.
        uncertain: Share of uncertain voxels among those to which any segmentation gives a class; 0 if there are none.
        classes: Classes that the ensemble finds in certain voxels.
    """

    case: str
    agreement: float
    uncertain: float
    classes: tuple[str, ...]


def agreement(ensemble: Labels, members: Sequence[Labels], classes: Mapping[str, tuple[int, ...]]) -> float:
    """Mean over members of the mean over classes of the Dice between member and ensemble.

    Args:
        ensemble: Label values, `(*S)`.
        members: The same of each member.
        classes: Class or region -> its label values.

    Returns:
        A number from 0 to 1. A class that neither the member nor the ensemble has is left out; a member without any
        class is left out, too. NaN if nothing remains.
    """
    of_members = []
    for member in members:
        dice = [_dice(np.isin(ensemble, values), np.isin(member, values)) for values in classes.values()]
        of_members.append(_mean(dice))
    return _mean(of_members)


def uncertain_voxels(ensemble: Labels, members: Sequence[Labels]) -> NDArray[np.bool_]:
    """Mask `(*S)` of the voxels in which any member has another label than the ensemble."""
    mask = np.zeros(ensemble.shape, dtype=bool)
    for member in members:
        mask |= member != ensemble
    return mask


def measure_case(predictions: Predictions, case: str) -> Stability | CollabError:
    """Read the segmentations of a case and compare them.

    Returns:
        The result, or the problem if a file is missing, damaged, on another grid, or has unknown labels.
    """
    try:
        ensemble, members = read_case(predictions, case)
    except CollabError as error:
        return error
    uncertain = uncertain_voxels(ensemble, members)
    anything = np.logical_or.reduce([ensemble > 0, *(member > 0 for member in members)])
    share = int(np.count_nonzero(uncertain)) / max(1, int(np.count_nonzero(anything)))
    certain = set(np.unique(ensemble[~uncertain]).tolist())
    classes = tuple(name for name, values in predictions.classes.items() if certain & {*values})
    return Stability(case, agreement(ensemble, members, predictions.classes), share, classes)


def read_case(predictions: Predictions, case: str) -> tuple[Labels, list[Labels]]:
    """The ensemble's label values `(Z, Y, X)`, and those of each member.

    Raises:
        CollabError: If a file is missing, damaged, on another grid, or has unknown labels.
    """
    known = {0, *(value for values in predictions.classes.values() for value in values)}
    read: list[tuple[Path, Volume]] = []
    for folder in (predictions.ensemble, *predictions.members):
        path = folder / f"{case}{predictions.ending}"
        if not path.is_file():
            raise CollabError(f"{path}: every unlabeled image must be segmented; there is no such file. Predict it.")
        read.append((path, read_volume(path, predictions.reader, label=True)))
    first, wanted = read[0]
    for path, volume in read[1:]:
        for what, ours, theirs in grid_differences(wanted.grid, volume.grid):
            raise CollabError(f"{path}: the {what} must be that of {first}, {ours}; got {theirs}. Predict it again.")
    labels = []
    for path, volume in read:
        rounded, uneven = whole_numbers(volume.voxels[0])
        if strange := sorted({*map(float, uneven), *np.unique(rounded).tolist()} - known):
            raise CollabError(f"{path}: must hold the values {sorted(known)}; got {strange[:5]}. Predict it again.")
        labels.append(rounded.astype(np.int16))
    return labels[0], labels[1:]


def most_stable(found: Sequence[Stability], *, share: float | None, threshold: float | None) -> list[str]:
    """The cases to keep, most stable first; equal ones by name.

    A case in which no segmentation finds a class is never kept: an ensemble that has not learned a class agrees on
    nothing, too.

    Args:
        found: Agreement of all cases.
        share: Share of all cases to keep, in (0, 1]; rounded up. None: `threshold` decides.
        threshold: Smallest agreement to keep. None: `share` decides.
    """
    order = sorted((one for one in found if not math.isnan(one.agreement)), key=lambda one: (-one.agreement, one.case))
    if share is not None:
        order = order[: math.ceil(Fraction(str(share)) * len(found))]
    if threshold is not None:
        order = [one for one in order if one.agreement >= threshold]
    return [one.case for one in order]


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * int(np.count_nonzero(first & second)) / total if total else math.nan
