"""What the report shows of each metric: its column, title, decimals, direction, and definition in a few words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from nnunet_collab.evaluation.metrics import SHARES

if TYPE_CHECKING:
    from nnunet_collab.report.collect import Comparison

WIDEST = 6  # metrics beside each other on a page


class Measure(NamedTuple):
    """How one metric is shown.

    Attributes:
        title: Head of its column; distances have their unit in it.
        decimals: Number of decimals.
        definition: The end of the sentence "<title> is ...".
    """

    title: str
    decimals: int
    definition: str


_HD95 = "the larger of the two directed 95th percentiles of the distances between surfaces"
_ASD = "the mean distance between both surfaces"
MEASURES = {
    "dice": Measure("Dice", 3, "2 |P ∩ T| / (|P| + |T|) of the prediction P and the truth T"),
    "jaccard": Measure("Jaccard", 3, "|P ∩ T| / |P ∪ T|"),
    "nsd": Measure("NSD", 3, "the share of both surfaces within {tolerance} of the other one"),
    "rve": Measure("RVE", 3, "(|P| - |T|) / |T|, below 0 if the prediction is too small"),
    "hd95_mm": Measure("HD95 mm", 2, _HD95),
    "hd95_voxel": Measure("HD95 voxels", 2, _HD95),
    "asd_mm": Measure("ASD mm", 2, _ASD),
    "asd_voxel": Measure("ASD voxels", 2, _ASD),
    "mae": Measure("MAE", 4, "the share of wrong pixels"),
    "lesion_f1": Measure("lesion F1", 3, "2 TP / (2 TP + FP + FN) of the lesions"),
    "lesion_sensitivity": Measure("lesion sensitivity", 3, "the share of true lesions with a partner"),
    "lesion_precision": Measure("lesion precision", 3, "the share of predicted lesions with a partner"),
    "lesion_dice": Measure("lesion Dice", 3, "the mean Dice of lesions, 0 for each without a partner"),
}
_GROUPS = (  # tables of their own where all metrics together are too wide
    ("dice", "jaccard", "nsd", "rve", "mae"),
    ("hd95_mm", "hd95_voxel", "asd_mm", "asd_voxel"),
    ("lesion_f1", "lesion_sensitivity", "lesion_precision", "lesion_dice"),
)


def metrics_of(comparison: Comparison) -> list[str]:
    """Columns of the metrics on the page, in order; MAE is for 2D images. Metrics without values are left out."""
    columns = {column for method in comparison.methods for result in method.results for column in result.frame}
    left_out = {"mae"} if comparison.distance_unit == "mm" else {"hd95_mm", "asd_mm"}
    return [metric for metric in MEASURES if metric in columns - left_out]


def in_groups(metrics: list[str]) -> list[list[str]]:
    """The metrics of each table: all in one, or by what they measure if that is too wide."""
    if len(metrics) <= WIDEST:
        return [metrics]
    groups = [[metric for metric in metrics if metric in group] for group in _GROUPS]
    return [group for group in groups if group]


def main_metrics(comparison: Comparison) -> list[str]:
    """The few metrics that are shown where there is no room for all: overlap, surface, distance, detection."""
    wanted = ("dice", "nsd", distance_of(comparison), "lesion_f1")
    return [metric for metric in wanted if metric in metrics_of(comparison)]


def distance_of(comparison: Comparison) -> str:
    """The HD95 that represents the distances: in mm, or in pixels if there is no spacing."""
    return "hd95_mm" if comparison.distance_unit == "mm" else "hd95_voxel"


def higher_is_better(metric: str) -> bool:
    """Whether a larger value is better; of the volume error and of distances, a smaller one (in size) is."""
    return metric in SHARES


def possible(metric: str) -> tuple[float, float]:
    """The smallest and the largest value that a metric can have; an interval ends there."""
    if metric in SHARES or metric == "mae":
        return 0.0, 1.0
    return (-1.0, math.inf) if metric == "rve" else (0.0, math.inf)


def title_of(metric: str, comparison: Comparison) -> str:
    """Name of a metric with its unit."""
    title = MEASURES[metric].title
    return title.replace("voxels", "pixels") if comparison.distance_unit == "pixel" else title


def definitions(metrics: list[str], comparison: Comparison) -> str:
    """One sentence that defines the metrics."""
    found: dict[str, list[str]] = {}
    for metric in metrics:
        text = MEASURES[metric].definition.format(tolerance=_tolerance(comparison))
        found.setdefault(text, []).append(title_of(metric, comparison).split(" mm")[0])
    parts = []
    for text, titles in found.items():
        name = titles[0].removesuffix(" voxels").removesuffix(" pixels")
        parts.append(f"{name} is {text}")
    return "; ".join(parts) + "."


def _tolerance(comparison: Comparison) -> str:
    tolerances = comparison.nsd_tolerances
    values = set(tolerances.values())
    if len(values) == 1:
        return f"{values.pop():g} {comparison.distance_unit}"
    each = ", ".join(f"{name} {value:g}" for name, value in tolerances.items())
    return f"a tolerance ({each} {comparison.distance_unit})"
