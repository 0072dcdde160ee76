"""Box plots show whole boxes; overlays carry the names of the methods and keep their colors."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.figure import Figure
from reporting import report

import nnunet_collab.report.overlays as overlays
from nnunet_collab.report.figures import _draw_box


def test_a_box_whose_quartile_is_the_largest_value_is_drawn_whole():
    axes = Figure(figsize=(4, 1)).subplots()
    axes.set_xlim(-0.02, 1.0)  # without any margin
    _draw_box(axes, 0, np.array([0.5, 0.9, 1.0, 1.0, 1.0]), "black")
    (box,) = axes.patches
    assert box.get_x() + box.get_width() == 1
    assert not any(artist.get_clip_on() for artist in (box, *axes.lines))


def test_whiskers_never_point_into_the_box():
    axes = Figure().subplots()
    # The upper quartile is interpolated between 1 and 9, of which 9 is too far away for the whisker.
    values = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0])
    _draw_box(axes, 0, values, "black")
    low, _, high = np.percentile(values, (25, 50, 75))
    left, right, *_ = axes.lines
    assert max(left.get_xdata()) == low
    assert min(right.get_xdata()) == high


def test_overlays_name_the_methods_above_and_the_volume_below(world, monkeypatch):
    world.train("SupervisedTrainer")
    world.train("MeanTeacherTrainer", quality=0.95)
    drawn = []
    original = overlays.overlay_figure
    monkeypatch.setattr(overlays, "overlay_figure", lambda rows, *a, **k: drawn.append(rows) or original(rows, *a, **k))
    folder = report(world.results, "-o", world.root / "report")
    assert [list(rows[0].predictions) for rows in drawn] == [
        ["Supervised / CNN"],
        ["MeanTeacher / CNN", "Supervised / CNN"],
    ]
    for row in drawn[1]:
        number, count = row.slice_of
        assert (count, row.unit, row.spacing_mm) == (3, "mm", (1.0, 2.0))
        assert 1 <= number <= 3
    assert re.search(r"Selected by the mean Dice of a case in its volume", (folder / "report.html").read_text())
