"""Predictions drawn over images."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nnunet_collab.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION, YELLOW, save, style

CARDIAC_CLASSES: Mapping[int, str] = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

_TINT = 0.3  # opacity of a class, over the image and in the legend
_CLASS_COLORS = (SKY_BLUE, YELLOW, VERMILION, GREEN, PURPLE, ORANGE, BLUE)


@dataclass(frozen=True)
class OverlayRow:
    """One held-out case.

    Attributes:
        case: Name of the case, written on the left.
        image: (rows, columns): one channel of one slice, such as that of `largest_slice`.
        truth: (rows, columns) of class numbers; 0 is background.
        predictions: Name of the method, such as `CPS / CNN1` -> (rows, columns) of class numbers; drawn in this order.
        dice: Name of the prediction -> Dice of the case in [0, 1]; NaN if it is not defined.
        spacing_mm: Height and width of a pixel.
        slice_of: Number of the drawn slice, counted from 1, and number of slices; None for a 2D image.
        unit: Unit of the spacing: `mm`, or `pixels` if it is not known.
    """

    case: str
    image: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    predictions: Mapping[str, npt.NDArray[Any]]
    dice: Mapping[str, float]
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    slice_of: tuple[int, int] | None = None
    unit: str = "mm"


def largest_slice(labels: npt.NDArray[Any]) -> int:
    """Index along the first axis of the slice with most foreground (labels > 0); 0 if there is none."""
    return int((labels > 0).reshape(len(labels), -1).sum(axis=1).argmax())


def overlay_figure(rows: Sequence[OverlayRow], out: Path, *, classes: Mapping[int, str] = CARDIAC_CLASSES) -> None:
    """Draw cases below each other: image, truth, then every prediction with its Dice, cropped around the foreground.

    The image has a scale bar. The Dice is that of the whole volume, of which one slice is drawn.

    Args:
        rows: At least one case; all with the same names of predictions in the same order.
        out: The file, .png (at least 1200 pixels wide), .pdf or .svg; its folder is created, an old file is replaced.
        classes: Number -> name in the legend. Numbers without a name are called `class <number>`.

    Raises:
        CollabError: If the format is unknown.
        ValueError: If there is no row, or shapes or names of predictions disagree.
    """
    _check_rows(rows)
    drawn = [labels for row in rows for labels in (row.truth, *row.predictions.values())]
    numbers = sorted({*classes, *(int(c) for labels in drawn for c in np.unique(labels))} - {0})
    colors = {c: _CLASS_COLORS[i % len(_CLASS_COLORS)] for i, c in enumerate(numbers)}
    titles = ["image", "truth", *rows[0].predictions]
    with matplotlib.rc_context(style()):
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05, wspace=0.01, hspace=0.01)
        figure = Figure(figsize=(1.9 * len(titles) + 0.4, 2.4 * len(rows) + 0.9), layout=layout)
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for axes_of_row, row in zip(grid, rows, strict=True):
            window = _window(row)
            for axes in axes_of_row:
                _draw_image(axes, row, window)
            for axes, labels in zip(axes_of_row[1:], (row.truth, *row.predictions.values()), strict=True):
                _draw_labels(axes, labels[window], colors)
            axes_of_row[0].set_ylabel(row.case)
            _draw_scale(axes_of_row[0], row, window)
            for axes, name in zip(axes_of_row[2:], row.predictions, strict=True):
                axes.set_xlabel(_told(row, name), fontsize=9)
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(textwrap.fill(title, 20), fontweight="bold", fontsize=11 if len(title) < 14 else 9)
        handles = [Patch(facecolor=to_rgba(colors[c], _TINT), edgecolor=colors[c], linewidth=1.6) for c in numbers]
        names = [classes.get(c, f"class {c}") for c in numbers]
        figure.legend(handles, names, loc="outside lower center", ncols=len(titles), frameon=False)
        save(figure, out)


def _told(row: OverlayRow, name: str) -> str:
    """`volume Dice 0.740, slice 7 of 10`."""
    value = row.dice[name]
    dice = "Dice not defined" if np.isnan(value) else f"Dice {value:.3f}"
    if row.slice_of is None:
        return dice
    return "{},\nslice {} of {}".format(dice if np.isnan(value) else f"volume {dice}", *row.slice_of)


def scale_length(width: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50, ... that is at most 40 % of a width."""
    power = 10.0 ** np.floor(np.log10(0.4 * width))
    return float(max(step for step in (power, 2 * power, 5 * power) if step <= 0.4 * width))


def _draw_scale(axes: Axes, row: OverlayRow, window: tuple[slice, slice]) -> None:
    """A bar in the lower left, as long as its text says."""
    height, width = row.image[window].shape
    length = scale_length(width * row.spacing_mm[1])
    left, bottom = 0.05 * width - 0.5, 0.94 * height - 0.5
    edge = [patheffects.withStroke(linewidth=3.5, foreground="black")]
    bar = Line2D([left, left + length / row.spacing_mm[1]], [bottom, bottom], color="white", linewidth=2.5, gid="scale")
    bar.set(path_effects=edge, solid_capstyle="butt")
    axes.add_line(bar)
    thin = [patheffects.withStroke(linewidth=2, foreground="black")]
    label = f"{length:g} {row.unit}"
    axes.text(left, bottom - 0.03 * height, label, color="white", fontsize=9, va="bottom", path_effects=thin)


def _check_rows(rows: Sequence[OverlayRow]) -> None:
    if not rows:
        raise ValueError("overlay_figure: needs at least 1 row; got 0")
    for row in rows:
        if list(row.predictions) != list(rows[0].predictions) or not set(row.predictions) <= set(row.dice):
            raise ValueError(
                f"overlay_figure: every row must have predictions and Dice named {list(rows[0].predictions)}; "
                f"{row.case} has predictions {list(row.predictions)} and Dice {list(row.dice)}"
            )
        pictures = {"image": row.image, "truth": row.truth, **row.predictions}
        shapes = {name: picture.shape for name, picture in pictures.items()}
        if row.image.ndim != 2 or len(set(shapes.values())) > 1:
            raise ValueError(
                f"overlay_figure: all arrays must be (rows, columns) of one shape; {row.case} has {shapes}"
            )


def _window(row: OverlayRow) -> tuple[slice, slice]:
    """A square in mm around all foreground, 1.5 times as wide as necessary; the whole image without foreground."""
    drawn = np.any([labels > 0 for labels in (row.truth, *row.predictions.values())], axis=0)
    if not drawn.any():
        return slice(None), slice(None)
    first, last = np.argwhere(drawn).min(axis=0), np.argwhere(drawn).max(axis=0)
    side_mm = 1.5 * max((last - first + 1) * row.spacing_mm)
    n_pixels = np.minimum(np.ceil(side_mm / np.array(row.spacing_mm)).astype(int), drawn.shape)
    start = np.clip((first + last + 1 - n_pixels) // 2, 0, drawn.shape - n_pixels)
    return slice(start[0], start[0] + n_pixels[0]), slice(start[1], start[1] + n_pixels[1])


def _draw_image(axes: Axes, row: OverlayRow, window: tuple[slice, slice]) -> None:
    low, high = np.nanpercentile(row.image, (1, 99.5))
    axes.imshow(row.image[window], cmap="gray", vmin=low, vmax=high, interpolation="bicubic")
    axes.set(xticks=[], yticks=[], aspect=row.spacing_mm[0] / row.spacing_mm[1])
    axes.spines[:].set_visible(False)


def _draw_labels(axes: Axes, labels: npt.NDArray[Any], colors: Mapping[int, str]) -> None:
    """Tint each class and draw its outline."""
    tint = np.zeros((*labels.shape, 4))
    for number, color in colors.items():
        mask = labels == number
        tint[mask] = to_rgba(color, _TINT)
        if mask.any():
            # Padded, so that an outline is closed where the class reaches the border.
            x, y = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
            axes.contour(x, y, np.pad(mask, 1).astype(float), levels=[0.5], colors=[color], linewidths=1.6)
    axes.imshow(tint, interpolation="nearest", aspect=axes.get_aspect())
