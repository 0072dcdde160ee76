r"""Overlap, surface distance and error of one mask against another, and their means over cases.

For a prediction :math:`P` and a truth :math:`T`, both sets of voxels of an image :math:`\Omega`,

.. math::
    \mathrm{Dice} = \frac{2 |P \cap T|}{|P| + |T|}, \qquad
    \mathrm{Jaccard} = \frac{|P \cap T|}{|P \cup T|}, \qquad
    \mathrm{MAE} = \frac{|P \mathbin{\triangle} T|}{|\Omega|}.

MAE is the mean absolute error between the two binary images, which is the share of wrong pixels (not in percent). It is
meant for 2D images such as Kvasir-SEG; for a volume it mostly depends on the share of background. HD, HD95 and ASD are
defined in `surface.py`; they are Euclidean, in mm and, in separate columns, in voxels. The latter are for comparison
with papers that ignore the spacing: a step along a thick axis counts as much as a step in the plane. The normalized
surface Dice (NSD) at a stated tolerance is defined there, too; lesion-wise metrics are in `lesions.py`. The relative
volume error has a sign, below 0 if the prediction is too small:

.. math:: \mathrm{RVE} = \frac{|P| - |T|}{|T|}

**Empty masks.** Published codes use different conventions, which change the means. Ours is:

- Neither mask has the class: Dice, Jaccard, NSD, RVE and the distances are NaN and left out of the means. Counted in
  `both_empty`.
- Only the truth has it: Dice and Jaccard are 0, the distances NaN. Counted in `missed`.
- Only the prediction has it: the same, counted in `false_positive`.
- MAE is defined in all of these cases.

So a mean distance is over the cases in which both masks have the class. Read it together with its number of cases: a
method that misses the hard cases has no penalty for them in the distance.

**Ignored voxels** are left out: background in both masks, and not in :math:`\Omega`. An object cut by an ignored area
therefore has a surface at the cut, the same one in both masks. If every voxel is ignored, MAE is NaN too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunet_collab.evaluation.lesions import LESION_COUNTS, LESION_SCORES, lesion_metrics
from nnunet_collab.evaluation.surface import Mask, check_masks, directed_distances, summary_of, surface_dice

if TYPE_CHECKING:
    import pandas as pd

OVERLAPS = ("dice", "jaccard")
SHARES = (*OVERLAPS, "nsd", *LESION_SCORES)  # 0 to 1, higher is better
DISTANCES = ("hd_mm", "hd95_mm", "asd_mm")
FLAGS = ("missed", "false_positive", "both_empty")
ALL_CLASSES = "mean of classes"


def in_voxels(column: str) -> str:
    """The name of the column of the same distance in voxels: `hd95_mm` -> `hd95_voxel`."""
    return column.removesuffix("_mm") + "_voxel" if column in DISTANCES else column


def case_metrics(
    prediction: Mask,
    truth: Mask,
    spacing_mm: Sequence[float] | None,
    *,
    keep: Mask | None = None,
    image_size: int | None = None,
    nsd_tolerance: float | None = None,
    lesion_iou: float | None = None,
) -> dict[str, float]:
    """All metrics of one class in one case. The module's docstring has the rules for empty masks.

    Args:
        prediction: `(*S)` bool.
        truth: `(*S)` bool.
        spacing_mm: Distance of neighboring voxel centers along each axis, in mm, > 0; None if it is not known.
        keep: `(*S)` bool, False for ignored voxels; None: all voxels count.
        image_size: For MAE, if the masks are a box cut from an image and both are empty outside of it: number of voxels
            of the image that are not ignored. The box must be thicker than one voxel along each axis along which the
            image is thicker. None: the masks are the image.
        nsd_tolerance: Tolerance of the normalized surface Dice in mm, in voxels if the spacing is not known; None: it
        is
            not measured.
        lesion_iou: Smallest IoU of matching lesions, see `lesions.py`; None: lesions are not measured.

    Returns:
        `dice`, `jaccard` and `mae` in `[0, 1]`; `rve` of at least -1; `nsd` in `[0, 1]` and its `nsd_tolerance`, and
        the columns of `lesion_metrics`, if asked for; `hd_mm`, `hd95_mm`, `asd_mm` if the spacing is known; `hd_voxel`,
        `hd95_voxel`, `asd_voxel`; and `missed`, `false_positive`, `both_empty`, each 0 or 1.

    Raises:
        TypeError: If a mask is not boolean.
        ValueError: If shapes differ, `spacing_mm` does not fit them, or a tolerance or an IoU is out of range.
    """
    if keep is None:
        check_masks("case_metrics", prediction=prediction, truth=truth)
        size = prediction.size
    else:
        check_masks("case_metrics", prediction=prediction, truth=truth, keep=keep)
        prediction, truth, size = prediction & keep, truth & keep, int(np.count_nonzero(keep))
    size = size if image_size is None else image_size

    predicted, true = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    both = int(np.count_nonzero(prediction & truth))
    either = predicted + true - both
    spacings: list[Sequence[float]] = [[1.0] * prediction.ndim, *([] if spacing_mm is None else [spacing_mm])]
    directed = directed_distances(prediction, truth, spacings)
    voxels, *mm = map(summary_of, directed)
    nsd: dict[str, float] = {}
    if nsd_tolerance is not None:
        value = surface_dice(directed[-1], nsd_tolerance)
        nsd = {"nsd": 0.0 if either and directed[-1] is None else value, "nsd_tolerance": nsd_tolerance}
    return {
        "dice": 2 * both / (predicted + true) if either else np.nan,
        "jaccard": both / either if either else np.nan,
        **nsd,
        **({} if lesion_iou is None else lesion_metrics(prediction, truth, lesion_iou)),
        "rve": (predicted - true) / true if true else np.nan,
        **(mm[0]._asdict() if mm else {}),
        **{in_voxels(name): value for name, value in voxels._asdict().items()},
        "mae": (either - both) / size if size else np.nan,
        "missed": int(true > 0 and predicted == 0),
        "false_positive": int(true == 0 and predicted > 0),
        "both_empty": int(either == 0),
    }


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number of cases per class, and over the classes.

    The last class, `mean of classes`, holds the mean of the class means (nnU-Net's foreground mean; a class without any
    value is left out), the standard deviation over cases of the case's mean over its classes, and the number of cases
    with a value in any class.

    Args:
        frame: One row per case and class, as from `evaluate_folders`: `case`, `class`, metrics and flags. NaN is left
            out.

    Returns:
        Three rows per class, which differ in `statistic`: `mean`; `std` (n - 1 in the denominator, NaN for one case);
        and `count`, in which each metric's column holds the number of cases its mean was taken over, and each flag's
        column the number of cases with that flag. Columns: `class`, `statistic`, metrics, flags.
    """
    import pandas as pd

    names = (*SHARES, *LESION_COUNTS, "rve", *DISTANCES, *map(in_voxels, DISTANCES), "mae")
    metrics = [name for name in names if name in frame.columns]
    parts = []
    for name, rows in frame.groupby("class", sort=False):
        parts.append(_statistics(str(name), rows[metrics].mean(), rows[metrics], rows))
    class_means = frame.groupby("class", sort=False)[metrics].mean().mean()
    case_means = frame.groupby("case", sort=False)[metrics].mean()
    parts.append(_statistics(ALL_CLASSES, class_means, case_means, frame))
    return pd.concat(parts, ignore_index=True).astype(dict.fromkeys(FLAGS, "Int64"))


def _statistics(name: str, mean: pd.Series, values: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The three rows of one class: its mean, spread and number of `values`, and the number of `rows` with each flag."""
    import pandas as pd

    table = pd.DataFrame([mean, values.std(ddof=1), values.count().astype(float)]).reset_index(drop=True)
    table.insert(0, "class", name)
    table.insert(1, "statistic", ["mean", "std", "count"])
    for flag in FLAGS:
        table[flag] = [pd.NA, pd.NA, int(rows[flag].sum())]
    return table
