"""Small pictures of the report: box plots over the cases, and curves over the epochs; one panel each, as SVG.

They are small, so that a phone shows them one below the other and a desktop side by side. Colors are those of Okabe
and Ito. A method has the same color in every picture; with more than seven methods the dashes differ, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_collab.evaluation.metrics import ALL_CLASSES
from nnunet_collab.evaluation.statistics import nanmean
from nnunet_collab.figures.style import LINE_COLORS
from nnunet_collab.report.collect import Comparison
from nnunet_collab.report.grouping import Method
from nnunet_collab.report.measures import distance_of, metrics_of, title_of
from nnunet_collab.report.scores import classes_and_mean, mean_over_seeds
from nnunet_collab.report.tables import MANY

_COLORS = (*LINE_COLORS, "#666666")
_DASHES = ("", "5 2", "1 2", "5 2 1 2")
_WIDTH = 4.4  # inches
_FONTS = "'DejaVu Sans', Arial, Helvetica, sans-serif"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "text.color": "black",
}
# Families of curves.json -> title and label of the axis. Families with a curve per student show that of the student.
_PANELS = {
    "pseudo_dice": ("Pseudo Dice on validation patches", "0 to 1"),
    "supervised": ("Supervised loss, weighted", "no unit"),
    "agreement": ("Agreement between the students", "Dice of their predictions"),
}
_PSEUDO_LABELS = {
    "share used": ("Pseudo labels: share used", "0 to 1"),
    "entropy": ("Pseudo labels: entropy", "share of the largest"),
    "Dice of those used": ("Pseudo labels: quality", "Dice of those used, 0 to 1"),
}


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Attributes:
        name: Name of its file, without the ending.
        kind: Format: `svg`, `webp` or `png`.
        content: Image data in the page.
        alt: Alternative text for readers who cannot see the picture.
        caption: Text below it; may be empty.
        full: A PNG in print quality for the folder of figures; empty if `content` is as good.
    """

    name: str
    kind: str
    content: bytes
    alt: str
    caption: str = ""
    full: bytes = b""


def color_of(index: int) -> str:
    """Color of the method of that number."""
    return _COLORS[index % len(_COLORS)]


def dash_of(index: int) -> str:
    """Dashes of the method, in SVG's notation; empty for a solid line."""
    return _DASHES[index // len(_COLORS) % len(_DASHES)]


def box_plots(comparison: Comparison) -> list[Picture]:
    """Dice, and HD95, of every class and of their mean: one box per method, over the cases.

    With many classes only of their mean.
    """
    pictures = []
    for metric in [m for m in metrics_of(comparison) if m in ("dice", distance_of(comparison))]:
        shown = classes_and_mean(comparison)
        for columns, name in shown[:1] if len(comparison.classes) > MANY else shown:
            values = [_per_case(comparison, method, metric, columns) for method in comparison.methods]
            if any(np.isfinite(v).any() for v in values):
                pictures.append(_box_plot(comparison, metric, name, values))
    return pictures


def _per_case(comparison: Comparison, method: Method, metric: str, columns: list[int]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = nanmean(mean_over_seeds(comparison, method, metric)[:, columns], axis=1)
    return values


def _box_plot(comparison: Comparison, metric: str, name: str, values: Sequence[NDArray[np.float64]]) -> Picture:
    title = f"{title_of(metric, comparison)}: {name}"
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.5 * len(values)), layout="constrained")
        axes = figure.subplots()
        for row, (method, of_cases) in enumerate(zip(comparison.methods, values, strict=True)):
            _draw_box(axes, row, of_cases[np.isfinite(of_cases)], color_of(row))
            axes.text(0.005, row - 0.3, method.label, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.set(ylim=(len(values) - 0.5, -0.5), yticks=[], title=title)
        if metric == "dice":
            axes.set_xlim(-0.02, 1.02)
        else:
            axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # a box may end at 0
        axes.grid(axis="x", color="#E3E3E3", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        alt = f"Box plot of {title} over {len(comparison.cases)} cases, one box per method"
        return Picture(f"box_{metric}_{_file_name(name)}", "svg", _svg(figure), alt)


def _draw_box(axes: Axes, row: int, values: NDArray[np.float64], color: str) -> None:
    """Quartiles, whiskers to the farthest case within 1.5 box lengths, and every case as a dot."""
    if len(values) == 0:
        return
    y = row + 0.13
    low, median, high = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (high - low)
    ends = values[(values >= low - reach) & (values <= high + reach)]
    whole: Any = {"clip_on": False}  # where a quartile is the largest value there can be, half its line is beyond
    axes.plot([min(ends.min(), low), low], [y, y], color=color, linewidth=1.4, **whole)
    axes.plot([high, max(ends.max(), high)], [y, y], color=color, linewidth=1.4, **whole)
    axes.barh(y, high - low, left=low, height=0.36, facecolor="white", edgecolor=color, linewidth=1.4, **whole)
    axes.plot([median, median], [y - 0.18, y + 0.18], color=color, linewidth=2.5, **whole)
    # At fixed offsets, not random ones, so that neighbors do not cover each other.
    shifts = np.resize([0.0, 0.08, -0.08, 0.04, -0.04], len(values))
    axes.plot(np.sort(values), y + shifts, "o", color=color, markersize=2.5, alpha=0.6, zorder=3, **whole)


def learning_curves(comparison: Comparison) -> list[Picture]:
    """Pseudo Dice, supervised loss and agreement over the epochs, of the first seed and fold of every method."""
    curves = [_curves_of(method) for method in comparison.methods]
    return _pictures("curve", {key: [c.get(key) for c in curves] for key in _PANELS}, _PANELS)


def pseudo_label_curves(comparison: Comparison) -> list[Picture]:
    """Share of the pseudo labels that were used, their entropy and their quality."""
    curves = [_curves_of(method) for method in comparison.methods]
    return _pictures("pseudo", {key: [c.get(key) for c in curves] for key in _PSEUDO_LABELS}, _PSEUDO_LABELS)


def _curves_of(method: Method) -> dict[str, list[float]]:
    """Curves of the method's student by panel; of an ensemble, the mean of its students'.

    If pseudo labels are rectified ("before" and "after"), the curve after the rectification.
    """
    result = method.results[0]
    curves: Mapping[str, Any] = next((fold.curves for fold in result.folds if fold.curves), {})
    student = result.source.record.get("student")

    def mean_of(family: Mapping[str, Sequence[float]], quantity: str) -> list[float] | None:
        wanted = [v for k, v in family.items() if re.fullmatch(f"{student or '[^/ ]+'}(?: after)?{quantity}", k)]
        return nanmean(np.array(wanted, dtype=float), axis=0).tolist() if wanted else None

    found: dict[str, list[float] | None] = {
        "pseudo_dice": mean_of(curves.get("pseudo_dice", {}), ""),
        "supervised": mean_of(curves.get("losses", {}), "/supervised"),
        "agreement": curves.get("agreement"),
        **{quantity: mean_of(curves.get("pseudo_labels") or {}, f"/{quantity}") for quantity in _PSEUDO_LABELS},
    }
    return {key: values for key, values in found.items() if values}


def _pictures(
    prefix: str, families: Mapping[str, Sequence[Sequence[float] | None]], panels: Mapping[str, tuple[str, str]]
) -> list[Picture]:
    return [
        _panel(f"{prefix}_{_file_name(key)}", *panels[key], curves)
        for key, curves in families.items()
        if any(values for values in curves)
    ]


def _panel(name: str, title: str, label: str, curves: Sequence[Sequence[float] | None]) -> Picture:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.7), layout="constrained")
        axes = figure.subplots()
        for index, values in enumerate(curves):
            if values:
                dash = [float(n) for n in dash_of(index).split()]
                style: Any = (0, tuple(dash)) if dash else "-"
                marker = "o" if len(values) == 1 else ""
                # Later lines are thinner, so that equal lines are all visible.
                width = 1.4 + 2 * (1 - index / len(curves))
                axes.plot(values, color=color_of(index), linestyle=style, linewidth=width, marker=marker)
        axes.set(title=title, ylabel=label, xlabel="epoch")
        if label.startswith(("0 to 1", "Dice", "share")):
            axes.set_ylim(-0.02, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        axes.grid(color="#E3E3E3", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        return Picture(name, "svg", _svg(figure), f"{title} over the epochs, one line per method")


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue().decode("utf-8")
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<!DOCTYPE.*?>|<\?xml.*?\?>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]*; ", "", text).replace("</style>", f"text{{font-family: {_FONTS}}}</style>", 1)
    text = re.sub(r' id="(?![pm][0-9a-f]{10})[^"]*"', "", text)  # the names of groups are not used
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)  # a precision of 0.01 points is enough
    return re.sub(r"\s*\n\s*", "\n", text).strip().encode("utf-8")


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", "mean" if text == ALL_CLASSES else text).strip("_").lower()
