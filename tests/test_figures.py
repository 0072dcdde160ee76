"""The figures are written whole, in a readable size, and show what they were given."""

from __future__ import annotations

import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_collab.core.errors import CollabError
from nnunet_collab.demo.phantom import make_case
from nnunet_collab.figures.learning_curves import learning_curves_figure
from nnunet_collab.figures.overlays import OverlayRow, largest_slice, overlay_figure, scale_length


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def saved(monkeypatch):
    """The figures handed to the writer, newest last."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def row(seed=0, names=("CNN", "Transformer", "ensemble"), spacing_mm=(3.0, 3.0)):
    image, labels = make_case(np.random.default_rng(seed), shape=(4, 48, 48), spacing_mm=(12.0, 3.0, 3.0))
    z = largest_slice(labels)
    predictions = {name: np.roll(labels[z], i, axis=1) for i, name in enumerate(names)}
    return OverlayRow(f"case{seed}", image[z], labels[z], predictions, {n: 0.9123 for n in names}, spacing_mm, (2, 4))


def curves(n_epochs=5, *, agreement=True, factor=100.0):
    falling = np.linspace(1, 0.5, n_epochs)
    return {
        "epochs": list(range(n_epochs)),
        "pseudo_dice": {"CNN": list(1 - falling), "Transformer": list(0.9 - falling / 2)},
        "losses": {"CNN/full": list(falling), "Transformer/full": list(falling / factor), "total": list(falling)},
        "agreement": list(1 - falling / 10) if agreement else None,
    }


def texts(figure):
    axes = [t for a in figure.axes for t in (a.get_title(), a.get_xlabel(), a.get_ylabel())]
    return axes + [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def size_of(path):
    return imread(path).shape[:2]


@pytest.mark.parametrize(
    ("n_rows", "names"), [(1, ("CNN",)), (2, ("CNN", "Transformer")), (3, ("CNN", "Transformer", "ensemble"))]
)
def test_overlay_has_a_panel_per_row_and_prediction(n_rows, names, tmp_path, saved):
    out = tmp_path / "new" / "overlay.png"
    overlay_figure([row(i, names) for i in range(n_rows)], out)
    rows, columns = size_of(out)
    assert 1200 <= columns <= 2400
    assert 0.7 < (rows / n_rows) / (columns / (2 + len(names))) < 2, "panels are about square"
    assert len(saved[-1].axes) == n_rows * (2 + len(names))
    assert [a.get_title() for a in saved[-1].axes[: 2 + len(names)]] == ["image", "truth", *names]
    assert texts(saved[-1]).count("volume Dice 0.912,\nslice 2 of 4") == n_rows * len(names)
    assert {"case0", "right ventricle", "myocardium", "left ventricle"} <= set(texts(saved[-1]))
    assert [p.name for p in out.parent.iterdir()] == ["overlay.png"]
    assert (imread(out)[0, :, :3] > 0.99).all(), "a white margin"


def test_each_panel_shows_its_own_labels_in_its_class_color(tmp_path, saved):
    image, truth, empty = np.ones((40, 40)), np.zeros((40, 40), int), np.zeros((40, 40), int)
    truth[10:20, 10:20], truth[20:30, 10:20] = 1, 3
    overlay_figure([OverlayRow("x", image, truth, {"none": empty}, {"none": 0.0})], tmp_path / "a.png")
    tints = [[picture.get_array() for picture in axes.get_images()][1:] for axes in saved[-1].axes]
    assert [len(tint) for tint in tints] == [0, 1, 1], "no labels over the image"
    [shown], [nothing] = tints[1], tints[2]
    blue, vermillion = np.array([0x56, 0xB4, 0xE9]) / 255, np.array([0xD5, 0x5E, 0x00]) / 255
    assert np.isclose(shown[..., :3], blue).all(axis=-1).sum() == 100
    assert np.isclose(shown[..., :3], vermillion).all(axis=-1).sum() == 100
    assert (shown[..., 3] > 0).sum() == 200
    assert (nothing == 0).all()
    assert shown.shape == (30, 30, 4), "1.5 times the foreground's 20 pixels"
    assert (shown[5:25, 10:20, 3] > 0).all(), "and centered"


def test_spacing_sets_the_aspect_and_the_crop(tmp_path, saved):
    image, truth = np.ones((40, 80)), np.zeros((40, 80), int)
    truth[15:25, 30:50] = 1  # a square of 20 mm
    overlay_figure([OverlayRow("x", image, truth, {"p": truth}, {"p": 1.0}, (2.0, 1.0))], tmp_path / "a.png")
    for axes in saved[-1].axes:
        assert axes.get_aspect() == 2
        assert axes.get_images()[0].get_array().shape == (15, 30), "30 mm by 30 mm"


@pytest.mark.parametrize(
    ("width", "want"), [(100, 20), (12.4, 2), (12.5, 5), (50, 20), (2.6, 1), (0.3, 0.1), (1000, 200)]
)
def test_the_scale_bar_is_a_round_length_of_at_most_two_fifths(width, want):
    assert scale_length(width) == pytest.approx(want)


def test_the_scale_bar_is_as_long_as_it_says_and_2d_images_have_pixels(tmp_path, saved):
    image, truth = np.ones((40, 80)), np.zeros((40, 80), int)
    truth[15:25, 30:50] = 1
    one = OverlayRow(
        "x", image, truth, {"a method with a long name / CNN": truth}, {"a method with a long name / CNN": 1.0}
    )
    for spacing, unit, slice_of in (((2.0, 0.5), "mm", (3, 9)), ((1.0, 1.0), "pixels", None)):
        overlay_figure([replace(one, spacing_mm=spacing, unit=unit, slice_of=slice_of)], tmp_path / "a.png")
        first, _, last = saved[-1].axes
        (bar,) = [line for line in first.lines if line.get_gid() == "scale"]
        length, shown_in = first.texts[0].get_text().split()
        assert np.ptp(bar.get_xdata()) * spacing[1] == pytest.approx(float(length))
        assert shown_in == unit
        assert last.get_xlabel() == ("volume Dice 1.000,\nslice 3 of 9" if slice_of else "Dice 1.000")
        assert last.get_title() == "a method with a long\nname / CNN"


def test_the_legend_has_the_colors_of_the_picture(tmp_path, saved):
    overlay_figure([row()], tmp_path / "a.png")
    tint = saved[-1].axes[1].get_images()[1].get_array()
    shown = {tuple(np.round(color, 6)) for color in tint.reshape(-1, 4) if color[3] > 0}
    legend = {tuple(np.round(patch.get_facecolor(), 6)) for patch in saved[-1].legends[0].get_patches()}
    assert shown == legend


def test_undefined_dice_nameless_classes_and_no_foreground_at_all(tmp_path, saved):
    one = row()
    extra = {**one.predictions, "CNN": np.full_like(one.truth, 7)}
    overlay_figure([replace(one, predictions=extra, dice={**one.dice, "CNN": float("nan")})], tmp_path / "a.png")
    assert {"Dice not defined,\nslice 2 of 4", "class 7"} <= set(texts(saved[-1]))
    empty = {name: np.zeros_like(one.truth) for name in one.predictions}
    overlay_figure([replace(one, truth=empty["CNN"], predictions=empty)], tmp_path / "b.png", classes={})
    assert saved[-1].axes[0].get_images()[0].get_array().shape == one.image.shape, "not cropped"


def test_wrong_rows_are_named(tmp_path):
    good, out = row(), tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"needs at least 1 row; got 0"):
        overlay_figure([], out)
    with pytest.raises(ValueError, match=r"case1 has predictions \['CNN'\]"):
        overlay_figure([good, row(1, ("CNN",))], out)
    with pytest.raises(ValueError, match=r"case0 has predictions .* and Dice \['CNN'\]"):
        overlay_figure([replace(good, dice={"CNN": 1.0})], out)
    with pytest.raises(ValueError, match=r"one shape; case0 has .*'truth': \(48, 47\)"):
        overlay_figure([replace(good, truth=good.truth[:, 1:])], out)
    with pytest.raises(ValueError, match=r"one shape; case0 has .*'image': \(1, 48, 48\)"):
        overlay_figure([replace(good, image=good.image[None])], out)
    assert list(tmp_path.iterdir()) == []


def test_largest_slice():
    labels = np.zeros((4, 5, 5), int)
    assert largest_slice(labels) == 0
    labels[1, :2], labels[2, :3], labels[3, 0, 0] = 3, 1, 9
    assert largest_slice(labels) == 2


@pytest.mark.parametrize(("start", "marked"), [(2.5, True), (None, False), (0.0, False), (9.0, False)])
def test_the_moment_from_which_more_than_labels_counts_is_marked_in_every_panel(start, marked, tmp_path, saved):
    learning_curves_figure({**curves(5), "start": start}, tmp_path / "a.png")
    for axes in saved[-1].axes:
        lines = [line for line in axes.lines if line.get_gid() == "start"]
        assert [list(line.get_xdata()) for line in lines] == ([[start, start]] if marked else [])


@pytest.mark.parametrize(("n_epochs", "agreement"), [(1, True), (5, False), (120, True)])
def test_curves_have_a_panel_per_subject(n_epochs, agreement, tmp_path, saved):
    out = tmp_path / "curves.png"
    learning_curves_figure(curves(n_epochs, agreement=agreement), out)
    rows, columns = size_of(out)
    assert 1200 <= columns <= 2400
    assert 0.2 < rows / columns < 0.7
    titles = [axes.get_title() for axes in saved[-1].axes]
    assert titles == ["Pseudo Dice", "Loss terms", "Agreement between students"][: 3 if agreement else 2]
    for axes in saved[-1].axes:
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel()
        ticks = axes.get_xticks()
        assert (ticks == ticks.round()).all(), "whole epochs"
    legend = [t.get_text() for t in saved[-1].legends[0].get_texts()]
    assert legend[:4] == ["CNN", "Transformer", "full", "total"]
    assert len(legend) == (5 if n_epochs == 120 else 4)
    assert list(tmp_path.iterdir()) == [out]


def test_curves_show_the_values(tmp_path, saved):
    given = curves(5)
    given["pseudo_dice"]["CNN"][2] = float("nan")
    learning_curves_figure(given, tmp_path / "a.png")
    dice, losses, agreement = saved[-1].axes
    shown = ((dice, given["pseudo_dice"]), (losses, given["losses"]), (agreement, {"": given["agreement"]}))
    for axes, wanted in shown:
        assert len(axes.get_lines()) == len(wanted)
        for line, values in zip(axes.get_lines(), wanted.values(), strict=True):
            assert np.allclose(line.get_ydata(), values, equal_nan=True)
            assert list(line.get_xdata()) == given["epochs"]
    color = [line.get_color() for line in (*dice.get_lines(), *losses.get_lines())]
    assert color[:2] == color[2:4], "a student has one color in all panels"
    assert len(set(color)) == 3
    assert dice.get_ylim()[0] == 0


@pytest.mark.parametrize("n_epochs", [5, 120])
def test_variables_of_a_method_have_a_panel_per_group_and_pseudo_labels_a_color_per_source(n_epochs, tmp_path, saved):
    given = curves(n_epochs, agreement=False)
    values = [list(np.linspace(0, k, n_epochs)) for k in range(8)]
    given["pseudo_labels"] = {"CNN before/share used": values[0], "CNN after/share used": values[1]}
    given["variables"] = {"mu": values[2], "kkt/primal": values[3], "kkt/dual": values[4], "size/1": values[5]}
    learning_curves_figure(given, tmp_path / "a.png")
    axes = saved[-1].axes
    titles = ["Pseudo Dice", "Loss terms", "Pseudo labels", "mu (CRLN)", "kkt", "size"]
    assert axes[3].get_ylabel() == "1: predictions stay, 0: rectified most"
    assert [a.get_title() for a in axes] == titles
    per_curve = 1 if n_epochs == 5 else 2
    shown = [line.get_ydata() for a in axes[3:] for line in a.get_lines()][::per_curve]
    assert np.array_equal(shown, values[2:6])
    assert [t.get_text() for t in axes[4].get_legend().get_texts()] == ["primal", "dual"]
    assert [t.get_text() for t in axes[2].get_legend().get_texts()] == ["CNN before", "CNN after", "share used"]
    assert len({line.get_color() for line in axes[2].get_lines()}) == 2
    assert axes[3].get_legend() is None  # its title says it
    for panel in axes:
        if panel.get_legend() is not None:
            legend, curves_ = (thing.get_window_extent() for thing in (panel.get_legend(), panel))
            assert not legend.overlaps(curves_), "a legend covers no curve"


def test_long_curves_are_smoothed_around_each_epoch_and_gaps_stay_gaps(tmp_path, saved):
    given = curves(120)
    values = np.random.default_rng(0).random(120)
    values[[40, 41, 90]] = np.nan
    given["pseudo_dice"] = {"CNN": list(values)}
    learning_curves_figure(given, tmp_path / "a.png")
    raw, smooth = saved[-1].axes[0].get_lines()
    assert np.array_equal(raw.get_ydata(), values, equal_nan=True)
    wanted = [np.nan if np.isnan(v) else np.nanmean(values[max(0, i - 2) : i + 3]) for i, v in enumerate(values)]
    assert np.allclose(smooth.get_ydata(), wanted, equal_nan=True)
    assert "every epoch (thick: mean of 5)" in texts(saved[-1])


@pytest.mark.parametrize(
    ("change", "scale"),
    [({}, "log"), ({"CNN/dice": [-1.0] * 5}, "linear"), ({"CNN/warm": [0.0] * 4 + [1e-9]}, "log")],
)
def test_losses_of_many_sizes_are_on_a_log_scale_unless_some_are_negative(change, scale, tmp_path, saved):
    given = curves(5)
    given["losses"] |= change
    learning_curves_figure(given, tmp_path / "a.png")
    assert saved[-1].axes[1].get_yscale() == scale
    assert ("log" in saved[-1].axes[1].get_ylabel()) == (scale == "log")
    assert scale == "linear" or saved[-1].axes[1].get_ylim()[0] >= 1e-5
    learning_curves_figure(curves(5, factor=2.0), tmp_path / "a.png")
    assert saved[-1].axes[1].get_yscale() == "linear"


def test_wrong_curves_are_named(tmp_path):
    out = tmp_path / "a.png"
    with pytest.raises(
        ValueError, match=r"losses and at least 1 epoch are required; got \['agreement', 'epochs', 'losses'\]"
    ):
        learning_curves_figure({k: v for k, v in curves().items() if k != "pseudo_dice"}, out)
    with pytest.raises(ValueError, match="at least 1 epoch"):
        learning_curves_figure({"epochs": [], "pseudo_dice": {}, "losses": {}}, out)
    with pytest.raises(ValueError, match="one value per epoch, 5; agreement has 4"):
        learning_curves_figure({**curves(), "agreement": [1.0] * 4}, out)
    with pytest.raises(ValueError, match="one value per epoch, 5; CNN/x has 6"):
        learning_curves_figure({**curves(), "losses": {"CNN/x": [1.0] * 6}}, out)
    assert list(tmp_path.iterdir()) == []


def test_formats(tmp_path):
    for ending, first in (("pdf", b"%PDF-"), ("svg", b"<?xml"), ("PNG", b"\x89PNG\r")):
        learning_curves_figure(curves(), tmp_path / f"a.{ending}")
        assert (tmp_path / f"a.{ending}").read_bytes().startswith(first)
    with pytest.raises(CollabError, match=r"one of \.png, \.pdf, \.svg; got .*a\.gif\. Change the file's ending"):
        learning_curves_figure(curves(), tmp_path / "a.gif")


def test_an_interrupted_write_leaves_the_old_figure_and_nothing_else(tmp_path, monkeypatch):
    out = tmp_path / "a.png"
    out.write_bytes(b"old")

    def half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="no space left"):
        learning_curves_figure(curves(), out)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]

    monkeypatch.undo()
    (tmp_path / "link").hardlink_to(out)
    learning_curves_figure(curves(), out)
    assert (tmp_path / "link").read_bytes() == b"old", "a new file took the place; the old one was not written into"


def test_the_user_s_style_is_neither_used_nor_changed(tmp_path):
    overlay_figure([row()], tmp_path / "a.png")
    with matplotlib.rc_context({"figure.facecolor": "black", "text.color": "white", "font.size": 30.0}):
        overlay_figure([row()], tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert np.array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))
