"""The best, median and worst case of each method, with the truth and the baseline's prediction."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from nnunet_collab.core.image_io import read_volume, whole_numbers
from nnunet_collab.evaluation.pairing import Plan, plan_evaluation
from nnunet_collab.evaluation.statistics import nanmean
from nnunet_collab.figures.overlays import OverlayRow, largest_slice, overlay_figure
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.figures import Picture
from nnunet_collab.report.grouping import Method, Result

_PIXELS = 600  # width of a picture on the page
_RANKS = ("best", "median", "worst")


def overlays(comparison: Comparison) -> tuple[list[Picture], list[str]]:
    """One picture per method (first seed), and a sentence for each method that cannot be drawn."""
    pictures, missing = [], []
    for number, method in enumerate(comparison.methods, start=1):
        reason = _what_is_missing(method.results[0])
        if reason:
            missing.append(f"{method.label}: not drawn, because {reason}.")
        else:
            pictures.append(_picture(comparison, method, number))
    return pictures, missing


def _what_is_missing(result: Result) -> str:
    source = result.source
    if not source.predictions or not source.facts:
        return "its folder of predictions, with dataset.json, was not given or found"
    if source.labels is None:
        return "its labels were not found (name them with --labels)"
    if source.images is None:
        return "its images were not found (name them with --images)"
    try:
        _ = {case: _image_file(result, case) for case in result.frame["case"].unique()}
    except FileNotFoundError as error:
        return f"there is no {error}"
    return ""


def _image_file(result: Result, case: str) -> Path:
    """The first channel of a case's image; FileNotFoundError with its path."""
    path = (result.source.images or Path()) / f"{case}_0000{result.source.facts.get('file_ending', '')}"
    if not path.is_file():
        raise FileNotFoundError(path)
    return path


def _picture(comparison: Comparison, method: Method, number: int) -> Picture:
    result = method.results[0]
    chosen = ranked_cases(comparison, result)
    shown = {method.label: result}
    baseline = comparison.baseline
    if baseline is not None and baseline is not method and not _what_is_missing(baseline.results[0]):
        shown[baseline.label] = baseline.results[0]
    rows = [_row(comparison, f"{rank}\n{case}", case, shown) for rank, case in chosen.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "overlay.png")
        overlay_figure(rows, path, classes=_class_names(result.source.facts))
        full, (kind, content) = path.read_bytes(), _small(path)
    seed = f", seed {result.seed}" if result.seed is not None and len(method.results) > 1 else ""
    beside = ", with the baseline" if len(shown) > 1 else ""
    alt = f"Best, median and worst case of {method.label}: image, truth and prediction{beside}"
    return Picture(f"overlay_{number}", kind, content, alt, f"{method.label}{seed}{beside}", full)


def ranked_cases(comparison: Comparison, result: Result) -> dict[str, str]:
    """Rank -> case, by mean Dice over classes. For an even number, the lower median. Fewer ranks with few cases."""
    dice = nanmean(comparison.values(result, "dice"), axis=1)
    order = [comparison.cases[i] for i in np.argsort(-dice, kind="stable") if np.isfinite(dice[i])]
    if len(order) < len(_RANKS):
        return dict(zip((_RANKS[0], _RANKS[-1]), order, strict=False))
    return dict(zip(_RANKS, (order[0], order[len(order) // 2], order[-1]), strict=True))


def _row(comparison: Comparison, title: str, case: str, shown: Mapping[str, Result]) -> OverlayRow:
    first = next(iter(shown.values()))
    truth, spacing = _read(first, case, "labels")
    z = largest_slice(truth)
    means = {
        name: float(nanmean(comparison.values(result, "dice"), axis=1)[comparison.cases.index(case)])
        for name, result in shown.items()
    }
    return OverlayRow(
        case=title,
        image=_read_image(first, case)[z],
        truth=truth[z],
        predictions={name: _read(result, case, "predictions")[0][z] for name, result in shown.items()},
        dice=means,
        spacing_mm=(float(spacing[1]), float(spacing[2])),
        slice_of=(z + 1, len(truth)) if len(truth) > 1 else None,
        unit="mm" if comparison.distance_unit == "mm" else "pixels",
    )


def _plan(result: Result, case: str) -> Plan:
    """Evaluation plan of the folder that holds the prediction of this case."""
    source = result.source
    ending = str(source.facts["file_ending"])
    folder = next(f for f in source.predictions if (f / f"{case}{ending}").is_file())
    beside = [f / "dataset.json" for f in (folder, *folder.parents[:2])]
    dataset_json = next((path for path in beside if path.is_file()), None)
    return plan_evaluation(folder, source.labels or folder, dataset_json=dataset_json)


def _read(result: Result, case: str, which: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """`(Z, Y, X)` labels, the ignore label as background, and the spacing in mm."""
    plan = _plan(result, case)
    folder = plan.labels if which == "labels" else plan.predictions
    volume = read_volume(folder / f"{case}{plan.ending}", plan.reader, label=True)
    labels = whole_numbers(volume.voxels[0])[0].astype(np.int64)
    return np.where(labels == plan.ignore, 0, labels), volume.spacing


def _read_image(result: Result, case: str) -> NDArray[Any]:
    """`(Z, Y, X)` gray values of the first channel; of a color image, the mean of the colors."""
    volume = read_volume(_image_file(result, case), _plan(result, case).reader, label=False)
    gray: NDArray[Any] = volume.voxels.mean(axis=0)
    return gray


def _class_names(facts: Mapping[str, Any]) -> dict[int, str]:
    """Names of the single foreground labels. Regions overlap, so their labels have no names."""
    labels = {name: value for name, value in facts.get("labels", {}).items() if name != "ignore"}
    return {int(value): name for name, value in labels.items() if not isinstance(value, list) and int(value) > 0}


def _small(path: Path) -> tuple[str, bytes]:
    """Format and content of a small version for the page: WebP (1/3 of the size of PNG) if Pillow supports it."""
    with Image.open(path) as image:
        height = round(image.height * _PIXELS / image.width)
        small = image.convert("RGB").resize((_PIXELS, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if features.check("webp"):
        small.save(buffer, "WEBP", quality=75, method=6)
        return "webp", buffer.getvalue()
    small.save(buffer, "PNG", optimize=True)  # not quantized, which would change the colors of classes
    return "png", buffer.getvalue()
