r"""Detection and Dice of single lesions: connected components of the prediction against those of the truth.

**Lesions** are connected components; voxels that share a corner belong together (26 neighbors in 3D, 8 in 2D).

**Matching.** Pairs of a predicted and a true lesion whose IoU is at least a threshold are matched from the largest IoU
down, each lesion at most once; of equal pairs, the one first in the order of the lesions. This is greedy assignment by
localization with the criterion "mask IoU" in L. Maier-Hein et al., Metrics reloaded, Nature Methods 21, 2024. A
prediction that joins two lesions therefore finds one of them.

With :math:`TP` matched pairs, :math:`FN` true lesions without a partner and :math:`FP` predicted ones without,

.. math::
    \mathrm{sensitivity} = \frac{TP}{TP + FN}, \quad \mathrm{precision} = \frac{TP}{TP + FP}, \quad
    F_1 = \frac{2 TP}{2 TP + FP + FN}, \quad
    \mathrm{lesion\ Dice} = \frac{\sum_{\mathrm{pairs}} \mathrm{Dice}}{TP + FN + FP}

so every lesion without a partner counts as 0 in the lesion Dice, as in the challenge BraTS 2023. (That challenge also
joins true lesions that are close and leaves out small ones; we do neither.)

**Empty masks.** No lesion in either mask: all four are NaN. Lesions in the truth alone: no precision, the others are 0.
Lesions in the prediction alone: no sensitivity, the others are 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_collab.evaluation.choices import LESION_IOU

LESION_SCORES = ("lesion_f1", "lesion_sensitivity", "lesion_precision", "lesion_dice")
LESION_COUNTS = ("lesions_true", "lesions_predicted", "lesions_matched")


def lesion_metrics(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], least_iou: float = LESION_IOU
) -> dict[str, float]:
    """The four scores and three counts of one class in one case.

    Args:
        prediction: `(*S)` bool, 2 or 3 axes.
        truth: `(*S)` bool.
        least_iou: Smallest IoU of a matched pair, in (0, 1].

    Returns:
        `lesion_f1`, `lesion_sensitivity`, `lesion_precision` and `lesion_dice` in `[0, 1]` or NaN; `lesions_true`,
        `lesions_predicted` and `lesions_matched`.

    Raises:
        ValueError: If `least_iou` is out of range.
    """
    if not 0 < least_iou <= 1:
        raise ValueError(f"lesion_metrics: the IoU must be above 0 and at most 1; got {least_iou}")
    ours, theirs = components(prediction), components(truth)
    predicted, true = int(ours.max(initial=0)), int(theirs.max(initial=0))
    dice = _matched_dice(ours, theirs, least_iou)
    matched = len(dice)
    every = predicted + true - matched
    return {
        "lesion_f1": 2 * matched / (predicted + true) if every else np.nan,
        "lesion_sensitivity": matched / true if true else np.nan,
        "lesion_precision": matched / predicted if predicted else np.nan,
        "lesion_dice": sum(dice) / every if every else np.nan,
        "lesions_true": true,
        "lesions_predicted": predicted,
        "lesions_matched": matched,
    }


def components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`(*S)`: 0 outside the mask, and 1, 2, ... in its connected components, in the order of their first voxels.

    By scipy: cc3d 4.1.1, which comes with nnU-Net, marks a pixel outside of the mask in some 2D images.
    """
    labels, _ = ndimage.label(mask, np.ones([3] * mask.ndim))
    return np.asarray(labels, dtype=np.int64)


def _matched_dice(ours: NDArray[np.int64], theirs: NDArray[np.int64], least_iou: float) -> list[float]:
    """Dice of each matched pair of lesions, best pair first."""
    both = (ours > 0) & (theirs > 0)
    pairs, shared = np.unique(np.stack([ours[both], theirs[both]], axis=1), axis=0, return_counts=True)
    sizes = np.bincount(ours.ravel())[pairs[:, 0]] + np.bincount(theirs.ravel())[pairs[:, 1]]
    iou = shared / (sizes - shared)
    taken_ours: set[int] = set()
    taken_theirs: set[int] = set()
    found: list[float] = []
    for index in np.argsort(-iou, kind="stable"):
        one, other = (int(number) for number in pairs[index])
        if iou[index] >= least_iou and one not in taken_ours and other not in taken_theirs:
            taken_ours.add(one)
            taken_theirs.add(other)
            found.append(float(2 * shared[index] / sizes[index]))
    return found
