"""The curves of one training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nnunet_collab.figures.style import LINE_COLORS, save, style

_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (10, 2)), (0, (2, 3)))
_GREY = "#555555"
_IN_A_ROW = 4
# Below its panel, where no curve can be behind it.
_LEGEND: Mapping[str, Any] = {
    "fontsize": 9, "frameon": False, "loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 1,
    "handlelength": 2.6,
}  # fmt: skip
# Group of variables that a method learns -> title of its panel, and what its values mean.
_MEANINGS = {
    "mu": ("mu (CRLN)", "1: predictions stay, 0: rectified most"),
    "multipliers": ("Lagrange multipliers (LDC)", "weight of each constraint, no unit"),
    "distance from KKT": ("Distance from the optimum (LDC)", "largest violation of each KKT condition, 0: none"),
    "sizes asked for": ("Sizes asked for (LDC)", "size of each class in the constraints"),
}


def learning_curves_figure(curves: Mapping[str, Any], out: Path) -> None:
    """Draw the curves of a training: pseudo Dice, loss terms, and other measured values.

    Args:
        curves: `epochs`: numbers of the epochs, at least one. `pseudo_dice`: student -> values in [0, 1]. `losses`:
            `student/term` -> values. `agreement`, of the students: values in [0, 1], or None. `pseudo_labels`:
            `student/quantity` -> values in [0, 1], or none of them. `variables` that a method learns beside the
            networks: `name` or `group/name` -> values, or none of them. Every list is as long as `epochs`; NaN leaves a
            gap. `start`: the epoch from which more than the labels counts, marked in every panel, or None. Losses are
            on a log scale if none is negative and they span more than a factor of 50.
        out: The file, .png (at least 1200 pixels wide), .pdf or .svg; its folder is made, an old file is replaced.

    Raises:
        CollabError: If the format is unknown.
        ValueError: If an entry is missing or a list has another length than `epochs`.
    """
    _check_curves(curves)
    epochs, agreement = curves["epochs"], curves.get("agreement")
    split = {name: name.rpartition("/")[::2] for name in curves["losses"]}  # student, term
    students = dict.fromkeys([*curves["pseudo_dice"], *(student for student, _ in split.values() if student)])
    colors = {name: LINE_COLORS[i % len(LINE_COLORS)] for i, name in enumerate(students)}
    dashes = _dashes(term for _, term in split.values())
    pseudo_labels, groups = curves.get("pseudo_labels") or {}, _grouped(curves.get("variables") or {})
    count = 2 + (agreement is not None) + bool(pseudo_labels) + len(groups)
    rows = -(-count // _IN_A_ROW)
    with matplotlib.rc_context(style()):
        height = 4.3 + (0.9 if pseudo_labels or groups else 0)  # room for the legends below the panels
        figure = Figure(figsize=(12.0, height * rows), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
        grid = figure.subplots(rows, min(count, _IN_A_ROW), squeeze=False).ravel()
        panels = grid[:count]
        for axes in grid[count:]:
            axes.remove()
        for name, values in curves["pseudo_dice"].items():
            _draw_curve(panels[0], epochs, values, colors[name], "-")
        panels[0].set(title="Pseudo Dice", ylabel="mean over classes, 0 to 1", ylim=(0, 1.02))
        _draw_losses(panels[1], epochs, curves["losses"], colors)
        if agreement is not None:
            _draw_agreement(panels[2], epochs, agreement)
        if pseudo_labels:
            _draw_pseudo_labels(panels[count - len(groups) - 1], epochs, pseudo_labels, colors)
        for axes, (group, variables) in zip(panels[count - len(groups) :], groups.items(), strict=True):
            _draw_variables(axes, epochs, group, variables)
        _mark_start(list(panels), curves.get("start"), max(epochs))
        for axes in panels:
            axes.set(xlabel="epoch", xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
            axes.grid(color="#E3E3E3", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        handles = [Line2D([], [], color=color, linewidth=4) for color in colors.values()]
        handles += [Line2D([], [], color=_GREY, linewidth=1.8, linestyle=dash) for dash in dashes.values()]
        names = [*colors, *dashes]
        if _smoothed_over(epochs) > 1:
            handles.append(Line2D([], [], color=_GREY, linewidth=0.7))
            names.append(f"every epoch (thick: mean of {_smoothed_over(epochs)})")
        figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, handlelength=3)
        save(figure, out)


def _dashes(names: Iterable[str]) -> dict[str, Any]:
    return {name: _DASHES[i % len(_DASHES)] for i, name in enumerate(dict.fromkeys(names))}


def _draw_pseudo_labels(
    axes: Axes, epochs: Sequence[float], curves: Mapping[str, Sequence[float]], colors: Mapping[str, str]
) -> None:
    """Share used, entropy and quality, with a separate legend: its dashes have another meaning than in the losses."""
    split = {name: name.rpartition("/")[::2] for name in curves}  # student, quantity
    dashes = _dashes(quantity for _, quantity in split.values())
    # Curves without a student, such as those of a teacher before and after rectification.
    others = [whose for whose in dict.fromkeys(whose for whose, _ in split.values()) if whose not in colors]
    further = {whose: LINE_COLORS[-1 - i % len(LINE_COLORS)] for i, whose in enumerate(others)}
    for name, (whose, quantity) in split.items():
        _draw_curve(axes, epochs, curves[name], {**colors, **further}[whose], dashes[quantity])
    axes.set(title="Pseudo labels", ylabel="0 to 1", ylim=(-0.02, 1.02))
    handles = [Line2D([], [], color=color, linewidth=4) for color in further.values()]
    handles += [Line2D([], [], color=_GREY, linewidth=1.8, linestyle=dash) for dash in dashes.values()]
    axes.legend(handles, [*further, *dashes], **_LEGEND)


def _grouped(variables: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Sequence[float]]]:
    """`group/name` by group, then by name; a variable without a group is its own group."""
    groups: dict[str, dict[str, Sequence[float]]] = {}
    for key, values in variables.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = values
    return groups


def _draw_variables(axes: Axes, epochs: Sequence[float], group: str, curves: Mapping[str, Sequence[float]]) -> None:
    """Variables that a method learns besides the networks, with a separate legend."""
    for i, values in enumerate(curves.values()):
        dash = _DASHES[i // len(LINE_COLORS) % len(_DASHES)]
        _draw_curve(axes, epochs, values, LINE_COLORS[i % len(LINE_COLORS)], dash)
    title, meaning = _MEANINGS.get(group, (group, "value, no unit"))
    axes.set(title=title, ylabel=meaning)
    if any(curves):
        lines = axes.get_lines()[:: 2 if _smoothed_over(epochs) > 1 else 1]
        axes.legend(lines, [name.replace("_", " ") for name in curves], **_LEGEND)


def _check_curves(curves: Mapping[str, Any]) -> None:
    if not {"epochs", "pseudo_dice", "losses"} <= set(curves) or len(curves["epochs"]) == 0:
        raise ValueError(
            f"learning_curves_figure: pseudo_dice, losses and at least 1 epoch are required; got {sorted(curves)}"
        )
    n_epochs = len(curves["epochs"])
    optional = {"agreement": curves.get("agreement")}
    for family in ("pseudo_labels", "variables"):
        optional |= {f"{family} {name}": values for name, values in (curves.get(family) or {}).items()}
    for name, values in {**optional, **curves["pseudo_dice"], **curves["losses"]}.items():
        if values is not None and len(values) != n_epochs:
            raise ValueError(
                f"learning_curves_figure: every curve must have one value per epoch, {n_epochs}; {name} has "
                f"{len(values)}"
            )


def _smoothed_over(epochs: Sequence[float]) -> int:
    """Number of epochs in the moving average of the thick line: odd, and 1 for a short training."""
    return 2 * (len(epochs) // 50) + 1


def _draw_curve(axes: Axes, epochs: Sequence[float], values: Sequence[float], color: str, dash: Any) -> None:
    smooth, width = np.asarray(values, dtype=float), _smoothed_over(epochs)
    if width > 1:
        axes.plot(epochs, values, color=color, linewidth=0.7, alpha=0.35)
        known = np.isfinite(smooth)
        total, count = (np.convolve(v, np.ones(width), mode="same") for v in (np.where(known, smooth, 0), known))
        smooth = np.where(known, total / np.maximum(count, 1), np.nan)
    axes.plot(epochs, smooth, color=color, linestyle=dash, linewidth=1.8, marker="o" if len(epochs) == 1 else "")


def _draw_losses(
    axes: Axes, epochs: Sequence[int], losses: Mapping[str, Sequence[float]], colors: Mapping[str, str]
) -> None:
    split = {name: name.rpartition("/")[::2] for name in losses}  # student, term
    dashes = _dashes(term for _, term in split.values())
    for name, (student, term) in split.items():
        _draw_curve(axes, epochs, losses[name], colors.get(student, _GREY), dashes[term])
    axes.set(title="Loss terms", ylabel="loss, no unit")
    if (lowest := _lowest_on_log_scale(losses)) is not None:
        axes.set_yscale("log", nonpositive="mask")
        axes.set(ylabel="loss, no unit, log scale", ylim=(lowest, None))


def _draw_agreement(axes: Axes, epochs: Sequence[int], agreement: Sequence[float]) -> None:
    _draw_curve(axes, epochs, agreement, _GREY, "-")
    least = np.floor(10 * np.nanmin([*agreement, 0.9])) / 10
    axes.set(title="Agreement between students", ylabel="Dice of their predictions, 0 to 1", ylim=(least, 1.005))


def _mark_start(panels: Sequence[Axes], start: float | None, last: int) -> None:
    """A line in every panel where more than the labels begins to count; none if that is the beginning or the end."""
    if start is None or not 0 < start <= last:
        return
    for axes in panels:
        axes.axvline(start, color=_GREY, linewidth=1.0, linestyle=(0, (1, 2)), gid="start")
    panels[0].annotate("start", (start, 0.02), xytext=(3, 0), textcoords="offset points", fontsize=8, color=_GREY)


def _lowest_on_log_scale(losses: Mapping[str, Sequence[float]]) -> float | None:
    """Lower end of a log axis (at most five decades), or None: negative values, or all within a factor of 50."""
    finite = np.array([value for values in losses.values() for value in values if np.isfinite(value)])
    positive = finite[finite > 0]
    if (finite < 0).any() or len(positive) == 0 or positive.max() < 50 * positive.min():
        return None
    return float(max(0.7 * positive.min(), 1e-5 * positive.max()))
