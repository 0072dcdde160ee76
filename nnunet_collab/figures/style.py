"""Common style of all figures.

Colors are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with common color vision
deficiencies can distinguish. The background is white for every style of the user. Files are written completely or not
at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnunet_collab.core.errors import CollabError

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY_BLUE, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
LINE_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE)  # yellow is too pale on white
FORMATS = (".png", ".pdf", ".svg")


def style() -> dict[str, Any]:
    """Settings that do not depend on those of the user."""
    ink = {name: "black" for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")}
    ground = {name: "white" for name in ("figure.facecolor", "axes.facecolor", "savefig.facecolor")}
    sizes = {"font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "legend.fontsize": 10}
    # nnU-Net draws its own figure in the same process with seaborn, which enlarges these for all later figures.
    sizes |= {"xtick.labelsize": 10, "ytick.labelsize": 10}
    return {**ink, **ground, **sizes, "font.family": "sans-serif"}


def save(figure: Figure, out: Path) -> None:
    """Write a figure, at least 1200 pixels wide.

    Raises:
        CollabError: If the format of the ending is unknown.
    """
    if out.suffix.lower() not in FORMATS:
        raise CollabError(
            f"figure: the format must be one of {', '.join(FORMATS)}; got {out}. Change the file's ending."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    try:
        figure.savefig(partial, format=out.suffix[1:].lower(), dpi=max(150.0, 1200 / figure.get_figwidth()))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
