"""Figures for people: predictions drawn over images, and the curves of a training.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with the common colour vision
deficiencies can tell apart. The ground is white whatever style the user has set. A figure appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
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
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nnunet_collab.core.errors import CollabError

CARDIAC_CLASSES: Mapping[int, str] = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

_CLASS_COLOURS = ("#56B4E9", "#F0E442", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2")
_STUDENT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (10, 2)), (0, (2, 3)))
_GREY = "#555555"
_FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class OverlayRow:
    """One held-out case.

    Attributes:
        case: Its name, written at the left.
        image: (rows, columns): one channel of one slice, such as that of `largest_slice`.
        truth: (rows, columns) of class numbers; 0 is background.
        predictions: Name, such as `CNN` -> (rows, columns) of class numbers; drawn in this order.
        dice: Name of the prediction -> Dice of the case in [0, 1]; NaN where it is not defined.
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
        rows: One or more cases, all with the same names of predictions in the same order.
        out: The file, .png (at least 1200 pixels wide), .pdf or .svg; its folder is made, an old file is replaced.
        classes: Number -> name in the legend. Numbers without a name are called `class <number>`.

    Raises:
        CollabError: If the format is unknown.
        ValueError: If there is no row, or shapes or names of predictions disagree.
    """
    _check_rows(rows)
    drawn = [labels for row in rows for labels in (row.truth, *row.predictions.values())]
    numbers = sorted({*classes, *(int(c) for labels in drawn for c in np.unique(labels))} - {0})
    colours = {c: _CLASS_COLOURS[i % len(_CLASS_COLOURS)] for i, c in enumerate(numbers)}
    titles = ["image", "truth", *rows[0].predictions]
    with matplotlib.rc_context(_style()):
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05, wspace=0.01, hspace=0.01)
        figure = Figure(figsize=(1.9 * len(titles) + 0.4, 2.15 * len(rows) + 0.8), layout=layout)
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for axes_of_row, row in zip(grid, rows, strict=True):
            window = _window(row)
            for axes in axes_of_row:
                _draw_image(axes, row, window)
            for axes, labels in zip(axes_of_row[1:], (row.truth, *row.predictions.values()), strict=True):
                _draw_labels(axes, labels[window], colours)
            axes_of_row[0].set_ylabel(row.case)
            for axes, name in zip(axes_of_row[2:], row.predictions, strict=True):
                axes.set_xlabel("Dice not defined" if np.isnan(row.dice[name]) else f"Dice {row.dice[name]:.3f}")
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, fontweight="bold")
        handles = [Patch(facecolor=to_rgba(colours[c], 0.55), edgecolor=colours[c], linewidth=1.5) for c in numbers]
        names = [classes.get(c, f"class {c}") for c in numbers]
        figure.legend(handles, names, loc="outside lower center", ncols=len(titles), frameon=False)
        _save(figure, out)


def learning_curves_figure(curves: Mapping[str, Any], out: Path) -> None:
    """Draw how a training went: pseudo Dice, loss terms, and what else was measured.

    Args:
        curves: `epochs`: their numbers, at least one. `pseudo_dice`: student -> values in [0, 1]. `losses`:
            `student/term` -> values. `agreement`, of the students: values in [0, 1], or None. `pseudo_labels`:
            `student/quantity` -> values in [0, 1], or none of them. Every list is as long as `epochs`; NaN leaves a
            gap. Losses are on a log scale if none is negative and they span more than a factor of 50.
        out: The file, .png (at least 1200 pixels wide), .pdf or .svg; its folder is made, an old file is replaced.

    Raises:
        CollabError: If the format is unknown.
        ValueError: If an entry is missing or a list has another length than `epochs`.
    """
    _check_curves(curves)
    epochs, agreement = curves["epochs"], curves.get("agreement")
    split = {name: name.rpartition("/")[::2] for name in curves["losses"]}  # student, term
    students = dict.fromkeys([*curves["pseudo_dice"], *(student for student, _ in split.values() if student)])
    colours = {name: _STUDENT_COLOURS[i % len(_STUDENT_COLOURS)] for i, name in enumerate(students)}
    dashes = _dashes(term for _, term in split.values())
    pseudo_labels = curves.get("pseudo_labels") or {}
    with matplotlib.rc_context(_style()):
        figure = Figure(figsize=(12.0, 4.3), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
        panels = figure.subplots(1, 2 + (agreement is not None) + bool(pseudo_labels))
        for name, values in curves["pseudo_dice"].items():
            _draw_curve(panels[0], epochs, values, colours[name], "-")
        panels[0].set(title="Pseudo Dice", ylabel="mean over classes, 0 to 1", ylim=(0, 1.02))
        for name, (student, term) in split.items():
            _draw_curve(panels[1], epochs, curves["losses"][name], colours.get(student, _GREY), dashes[term])
        panels[1].set(title="Loss terms", ylabel="loss, no unit")
        if (lowest := _lowest_on_log_scale(curves["losses"])) is not None:
            panels[1].set_yscale("log", nonpositive="mask")
            panels[1].set(ylabel="loss, no unit, log scale", ylim=(lowest, None))
        if agreement is not None:
            _draw_curve(panels[2], epochs, agreement, _GREY, "-")
            least = np.floor(10 * np.nanmin([*agreement, 0.9])) / 10
            panels[2].set(
                title="Agreement between students", ylabel="Dice of their predictions, 0 to 1", ylim=(least, 1.005)
            )
        if pseudo_labels:
            _draw_pseudo_labels(panels[-1], epochs, pseudo_labels, colours)
        for axes in panels:
            axes.set(xlabel="epoch", xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
            axes.grid(color="#E3E3E3", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        handles = [Line2D([], [], color=colour, linewidth=4) for colour in colours.values()]
        handles += [Line2D([], [], color=_GREY, linewidth=1.8, linestyle=dash) for dash in dashes.values()]
        names = [*colours, *dashes]
        if _smoothed_over(epochs) > 1:
            handles.append(Line2D([], [], color=_GREY, linewidth=0.7))
            names.append(f"every epoch (thick: mean of {_smoothed_over(epochs)})")
        figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, handlelength=3)
        _save(figure, out)


def _dashes(names: Iterable[str]) -> dict[str, Any]:
    return {name: _DASHES[i % len(_DASHES)] for i, name in enumerate(dict.fromkeys(names))}


def _draw_pseudo_labels(
    axes: Axes, epochs: Sequence[float], curves: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> None:
    """Share used, entropy and quality; a legend of its own, because its dashes mean other things than the losses'."""
    split = {name: name.rpartition("/")[::2] for name in curves}  # student, quantity
    dashes = _dashes(quantity for _, quantity in split.values())
    for name, (student, quantity) in split.items():
        _draw_curve(axes, epochs, curves[name], colours.get(student, _GREY), dashes[quantity])
    axes.set(title="Pseudo labels", ylabel="0 to 1", ylim=(-0.02, 1.02))
    handles = [Line2D([], [], color=_GREY, linewidth=1.8, linestyle=dash) for dash in dashes.values()]
    axes.legend(handles, list(dashes), frameon=False, fontsize=9)


def _style() -> dict[str, Any]:
    """Settings that do not depend on the user's."""
    ink = {name: "black" for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")}
    ground = {name: "white" for name in ("figure.facecolor", "axes.facecolor", "savefig.facecolor")}
    sizes = {"font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "legend.fontsize": 10}
    # nnU-Net draws its own figure in the same process with seaborn, which enlarges these for all that follow.
    sizes |= {"xtick.labelsize": 10, "ytick.labelsize": 10}
    return {**ink, **ground, **sizes, "font.family": "sans-serif"}


def _save(figure: Figure, out: Path) -> None:
    if out.suffix.lower() not in _FORMATS:
        raise CollabError(f"figure: the format is one of {', '.join(_FORMATS)}; got {out}. Change the file's ending.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    try:
        figure.savefig(partial, format=out.suffix[1:].lower(), dpi=max(150.0, 1200 / figure.get_figwidth()))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _check_rows(rows: Sequence[OverlayRow]) -> None:
    if not rows:
        raise ValueError("overlay_figure: at least one row is needed; got none")
    for row in rows:
        if list(row.predictions) != list(rows[0].predictions) or not set(row.predictions) <= set(row.dice):
            raise ValueError(
                f"overlay_figure: every row has predictions and Dice named {list(rows[0].predictions)}; "
                f"{row.case} has predictions {list(row.predictions)} and Dice {list(row.dice)}"
            )
        pictures = {"image": row.image, "truth": row.truth, **row.predictions}
        shapes = {name: picture.shape for name, picture in pictures.items()}
        if row.image.ndim != 2 or len(set(shapes.values())) > 1:
            raise ValueError(f"overlay_figure: all are (rows, columns) of one shape; {row.case} has {shapes}")


def _window(row: OverlayRow) -> tuple[slice, slice]:
    """A square in mm around all foreground, half as wide again as need be; the whole image without foreground."""
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


def _draw_labels(axes: Axes, labels: npt.NDArray[Any], colours: Mapping[int, str]) -> None:
    """Tint each class and draw its outline."""
    tint = np.zeros((*labels.shape, 4))
    for number, colour in colours.items():
        mask = labels == number
        tint[mask] = to_rgba(colour, 0.25)
        if mask.any():
            # Padded, so that an outline is closed where the class reaches the border.
            x, y = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
            axes.contour(x, y, np.pad(mask, 1).astype(float), levels=[0.5], colors=[colour], linewidths=1.6)
    axes.imshow(tint, interpolation="nearest", aspect=axes.get_aspect())


def _check_curves(curves: Mapping[str, Any]) -> None:
    if not {"epochs", "pseudo_dice", "losses"} <= set(curves) or len(curves["epochs"]) == 0:
        raise ValueError(f"learning_curves_figure: it takes pseudo_dice, losses and some epochs; got {sorted(curves)}")
    n_epochs = len(curves["epochs"])
    pseudo_labels = curves.get("pseudo_labels") or {}
    optional = {"agreement": curves.get("agreement"), **{f"pseudo label {k}": v for k, v in pseudo_labels.items()}}
    for name, values in {**optional, **curves["pseudo_dice"], **curves["losses"]}.items():
        if values is not None and len(values) != n_epochs:
            raise ValueError(f"learning_curves_figure: one value per epoch, {n_epochs}; {name} has {len(values)}")


def _smoothed_over(epochs: Sequence[float]) -> int:
    """How many epochs a point of the thick line is the mean of: odd, and 1 for a short training."""
    return 2 * (len(epochs) // 50) + 1


def _draw_curve(axes: Axes, epochs: Sequence[float], values: Sequence[float], colour: str, dash: Any) -> None:
    smooth, width = np.asarray(values, dtype=float), _smoothed_over(epochs)
    if width > 1:
        axes.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.35)
        known = np.isfinite(smooth)
        total, count = (np.convolve(v, np.ones(width), mode="same") for v in (np.where(known, smooth, 0), known))
        smooth = np.where(known, total / np.maximum(count, 1), np.nan)
    axes.plot(epochs, smooth, color=colour, linestyle=dash, linewidth=1.8, marker="o" if len(epochs) == 1 else "")


def _lowest_on_log_scale(losses: Mapping[str, Sequence[float]]) -> float | None:
    """Lower end of a log axis (at most five decades), or None: negative values, or all within a factor of 50."""
    finite = np.array([value for values in losses.values() for value in values if np.isfinite(value)])
    positive = finite[finite > 0]
    if (finite < 0).any() or len(positive) == 0 or positive.max() < 50 * positive.min():
        return None
    return float(max(0.7 * positive.min(), 1e-5 * positive.max()))
