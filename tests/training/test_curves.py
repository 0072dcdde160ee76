"""Curves: in nnU-Net's logger, in words, and in one figure."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_collab.core.errors import CollabError
from nnunet_collab.training import curves as curves_module
from nnunet_collab.training.curves import Curves


def fill(curves, epoch, *, agreement=True):
    values = {
        "train_losses": 1.5 - epoch,
        "val_losses": 0.5,
        "mean_fg_dice": 0.7,
        "dice_per_class_or_region": [0.6, 0.81234],
        "lrs": 0.01,
        "epoch_start_timestamps": 100.0,
        "epoch_end_timestamps": 103.25,
        "pseudo_dice/CNN": 0.5 + epoch / 4,
        "pseudo_dice/Transformer": 0.5,
        "loss/CNN/supervised": 1.0,
        "loss/Transformer/rlcl": 0.25,
    }
    for key, value in {**values, **({"agreement": 0.9} if agreement else {})}.items():
        curves.log(key, value, epoch)


@pytest.fixture
def curves(tmp_path, monkeypatch):
    """Empty ones; nnU-Net's figure, which takes seconds, is not drawn."""
    curves = Curves(MetaLogger(str(tmp_path), False))
    monkeypatch.setattr(curves.logger, "plot_progress_png", lambda folder: Path(folder, "progress.png").touch())
    return curves


def test_keys_that_nnunet_does_not_know_are_logged_beside_its_own(curves):
    fill(curves, 0)
    fill(curves, 1)
    assert curves.values["pseudo_dice/CNN"] == [0.5, 0.75]
    assert curves.values["ema_fg_dice"] == pytest.approx([0.7, 0.7])  # nnU-Net's own, which follows mean_fg_dice
    assert {len(values) for values in curves.values.values()} == {2}  # nnU-Net plots as many epochs as the shortest has


def test_a_family_is_named_by_what_follows_its_prefix(curves):
    fill(curves, 0)
    assert curves.family("pseudo_dice") == {"CNN": [0.5], "Transformer": [0.5]}
    assert curves.family("loss") == {"CNN/supervised": [1.0], "Transformer/rlcl": [0.25]}
    assert curves.family("train") == {}


def test_the_summary_says_the_last_epoch_in_words(curves):
    fill(curves, 0)
    fill(curves, 1)
    assert curves.summary() == [
        "train loss 0.5000, validation loss 0.5000",
        "weighted terms: CNN/supervised 1.0000, Transformer/rlcl 0.2500",
        "pseudo Dice: CNN 0.7500, Transformer 0.5000, per class [0.6, 0.8123]",
        "agreement of the students: 0.9000",
        "epoch time: 3.25 s",
    ]


def test_a_student_by_itself_agrees_with_nobody(curves):
    fill(curves, 0, agreement=False)
    assert not [line for line in curves.summary() if "agreement" in line]


def test_a_resumed_run_goes_on_with_the_curves_of_its_checkpoint(curves, tmp_path):
    fill(curves, 0)
    resumed = Curves(MetaLogger(str(tmp_path), True))
    resumed.logger.load_checkpoint(curves.logger.get_checkpoint())
    fill(resumed, 1)
    assert resumed.values["loss/CNN/supervised"] == [1.0, 1.0]


@pytest.mark.parametrize("agreement", [True, False])
def test_numbers_and_figure_are_written_after_every_epoch(curves, tmp_path, agreement, monkeypatch):
    (tmp_path / "collab_progress.png").write_text("old")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12345)
    for epoch in range(2):
        fill(curves, epoch, agreement=agreement)
        curves.log_variables({"mu": 0.5, "kkt/dual": 0.0}, epoch)
        curves.write(tmp_path, print)
        assert json.loads((tmp_path / "curves.json").read_text()) == {
            "epochs": list(range(epoch + 1)),
            "start": None,
            "pseudo_dice": {"CNN": [0.5, 0.75][: epoch + 1], "Transformer": [0.5] * (epoch + 1)},
            "losses": {"CNN/supervised": [1.0] * (epoch + 1), "Transformer/rlcl": [0.25] * (epoch + 1)},
            "agreement": [0.9] * (epoch + 1) if agreement else None,
            "pseudo_labels": {},
            "variables": {"mu": [0.5] * (epoch + 1), "kkt/dual": [0.0] * (epoch + 1)},
            "seconds_per_epoch": [3.25] * (epoch + 1),
            "peak_memory_bytes": 12345,
            "processes": 1,
        }
        assert matplotlib.image.imread(tmp_path / "collab_progress.png").shape[1] >= 1200
    assert sorted(p.name for p in tmp_path.iterdir()) == ["collab_progress.png", "curves.json", "progress.png"]


def test_an_epoch_that_is_not_complete_is_left_out(curves):
    fill(curves, 0)
    for key in ("pseudo_dice/CNN", "loss/CNN/supervised", "agreement"):
        curves.log(key, 0.9, 1)
    curves.log("epoch_start_timestamps", 200.0, 1)
    plain = curves.as_plain()
    assert plain["epochs"] == [0]
    assert plain["seconds_per_epoch"] == [3.25]
    assert (plain["peak_memory_bytes"] is None) == (not torch.cuda.is_available())
    assert {
        len(values) for values in (*plain["pseudo_dice"].values(), *plain["losses"].values(), plain["agreement"])
    } == {1}


def test_a_full_disk_keeps_the_former_numbers(curves, tmp_path, monkeypatch):
    fill(curves, 0)
    curves.write(tmp_path, print)
    before = (tmp_path / "curves.json").read_text()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    fill(curves, 1)
    with pytest.raises(CollabError, match=r"curves\.json: could not be written .*No space left"):
        curves.write(tmp_path, print)
    assert (tmp_path / "curves.json").read_text() == before


def gaps(values):
    return [epoch for epoch, value in enumerate(values) if value != value]


@pytest.mark.parametrize(
    ("logged", "missing"),
    [((4,), [0, 1, 2, 3]), ((0, 1, 4), [2, 3]), ((0, 1), [2, 3, 4]), ((2, 3), [0, 1, 4]), ((1, 3), [0, 2, 4])],
    ids=["starts at the end", "pauses", "ends", "starts and ends", "every other"],
)
@pytest.mark.parametrize("key", ["pseudo_used/CNN", "loss/CNN/late", "variable/mu", "pseudo_dice/Late", "agreement"])
def test_a_curve_may_start_pause_and_end(curves, tmp_path, key, logged, missing, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves_module, "learning_curves_figure", lambda plain, _: drawn.append(plain))
    monkeypatch.setattr(curves.logger, "plot_progress_png", lambda _: None)
    warnings = []
    for epoch in range(5):
        fill(curves, epoch, agreement=False)
        if epoch in logged:
            curves.log(key, 0.25, epoch)
        told = any("0.2500" in line for line in curves.summary() if "rlcl" not in line)
        if key != "variable/mu" and key != "loss/CNN/late":
            assert told == (epoch in logged)
        curves.write(tmp_path, warnings.append)
    assert warnings == []
    assert gaps(curves.values[key]) == missing
    assert {len(values) for values in curves.values.values()} == {5}
    family, _, name = key.partition("/")
    plain = drawn[-1]
    where = {"pseudo_used": "pseudo_labels", "loss": "losses", "variable": "variables"}.get(family, family)
    found = plain[where][f"{name}/share used" if family == "pseudo_used" else name] if name else plain[where]
    assert gaps(found) == missing
    assert [value for value in found if value == value] == [0.25] * len(logged)


@pytest.mark.slow
def test_curves_with_gaps_are_drawn_by_nnunet_and_by_us(tmp_path):
    curves, warnings = Curves(MetaLogger(str(tmp_path), False)), []
    for epoch in range(3):
        fill(curves, epoch)
        if epoch == 1:
            for key in ("pseudo_used/CNN", "variable/mu", "loss/CNN/late", "pseudo_dice/Late"):
                curves.log(key, 0.5, epoch)
    curves.write(tmp_path, warnings.append)
    assert warnings == []
    assert {path.name for path in tmp_path.iterdir()} == {"collab_progress.png", "curves.json", "progress.png"}


def test_a_term_may_be_in_some_iterations_of_an_epoch(curves):
    first = {"loss": 1.0, "terms": {"CNN/a": 1.0}, "weights": {"CNN/a": 1.0}}
    second = {"loss": 3.0, "terms": {"CNN/a": 2.0, "CNN/b": 1.0}, "weights": {"CNN/a": 1.0, "CNN/b": 0.5}}
    third = {"loss": float("nan"), "terms": {"CNN/b": 9.0}, "weights": {"CNN/b": 1.5}}
    curves.log_training([first, second, third], 0)
    assert curves.family("loss") == {"CNN/a": [1.5], "CNN/b": [1.0]}
    assert curves.family("weight") == {"CNN/a": [1.0], "CNN/b": [1.0]}


@pytest.mark.parametrize(
    "error", [ValueError("wrong"), OSError(errno.ENOSPC, "No space left"), MemoryError(), KeyError(1)]
)
@pytest.mark.parametrize("ours", [True, False])
def test_a_figure_that_cannot_be_drawn_is_told_and_ends_nothing(curves, tmp_path, monkeypatch, ours, error):
    def fail(*_):
        plt.figure()
        raise error

    for place, name in ((curves_module, "learning_curves_figure"), (curves.logger, "plot_progress_png")):
        monkeypatch.setattr(place, name, fail if (name == "learning_curves_figure") == ours else lambda *_: None)
    fill(curves, 0)
    warnings = []
    curves.write(tmp_path, warnings.append)
    name = "collab_progress.png" if ours else "progress.png"
    assert [str(tmp_path / name) in line and type(error).__name__ in line for line in warnings] == [True]
    assert json.loads((tmp_path / "curves.json").read_text())["epochs"] == [0]
    assert plt.get_fignums() == []
