"""Predictions drawn over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from nnunet_collab.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION, YELLOW, save, style

CARDIAC_CLASSES: Mapping[int, str] = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

_CLASS_COLORS = (SKY_BLUE, YELLOW, VERMILION, GREEN, PURPLE, ORANGE, BLUE)


@dataclass(frozen=True)
class OverlayRow:
    """One held-out case.

    Attributes:
        case: Name of the case, written on the left.
        image: (rows, columns): one channel of one slice, such as that of `largest_slice`.
        truth: (rows, columns) of class numbers; 0 is background.
        predictions: Name, such as `CNN` -> (rows, columns) of class numbers; drawn in this order.
        dice: Name of the prediction -> Dice of the case in [0, 1]; NaN if it is not defined.
        spacing_mm: Height and width of a pixel.
    """

    case: str
    image: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    predictions: Mapping[str, npt.NDArray[Any]]
    dice: Mapping[str, float]
    spacing_mm: tuple[float, float] = (1.0, 1.0)


def largest_slice(labels: npt.NDArray[Any]) -> int:
    """Index along the first axis of the slice with most foreground (labels > 0); 0 if there is none."""
    return int((labels > 0).reshape(len(labels), -1).sum(axis=1).argmax())


def overlay_figure(rows: Sequence[OverlayRow], out: Path, *, classes: Mapping[int, str] = CARDIAC_CLASSES) -> None:
    """Draw cases below each other: image, truth, then every prediction with its Dice, cropped around the foreground.

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
        figure = Figure(figsize=(1.9 * len(titles) + 0.4, 2.15 * len(rows) + 0.8), layout=layout)
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for axes_of_row, row in zip(grid, rows, strict=True):
            window = _window(row)
            for axes in axes_of_row:
                _draw_image(axes, row, window)
            for axes, labels in zip(axes_of_row[1:], (row.truth, *row.predictions.values()), strict=True):
                _draw_labels(axes, labels[window], colors)
            axes_of_row[0].set_ylabel(row.case)
            for axes, name in zip(axes_of_row[2:], row.predictions, strict=True):
                axes.set_xlabel("Dice not defined" if np.isnan(row.dice[name]) else f"Dice {row.dice[name]:.3f}")
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, fontweight="bold")
        handles = [Patch(facecolor=to_rgba(colors[c], 0.55), edgecolor=colors[c], linewidth=1.5) for c in numbers]
        names = [classes.get(c, f"class {c}") for c in numbers]
        figure.legend(handles, names, loc="outside lower center", ncols=len(titles), frameon=False)
        save(figure, out)


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
        tint[mask] = to_rgba(color, 0.25)
        if mask.any():
            # Padded, so that an outline is closed where the class reaches the border.
            x, y = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
            axes.contour(x, y, np.pad(mask, 1).astype(float), levels=[0.5], colors=[color], linewidths=1.6)
    axes.imshow(tint, interpolation="nearest", aspect=axes.get_aspect())
