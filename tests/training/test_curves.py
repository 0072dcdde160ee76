"""Curves: in nnU-Net's logger, in words, and in one figure."""

from __future__ import annotations

import errno

import matplotlib.image
import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_collab.core.errors import CollabError
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
        "pseudo_dice/CNN": 0.7 + epoch / 10,
        "pseudo_dice/Transformer": 0.5,
        "loss/CNN/supervised": 1.0,
        "loss/Transformer/rlcl": 0.25,
    }
    for key, value in {**values, **({"agreement": 0.9} if agreement else {})}.items():
        curves.log(key, value, epoch)


@pytest.fixture
def curves(tmp_path):
    return Curves(MetaLogger(str(tmp_path), False))


def test_keys_that_nnunet_does_not_know_are_logged_beside_its_own(curves):
    fill(curves, 0)
    fill(curves, 1)
    assert curves.values["pseudo_dice/CNN"] == [0.7, 0.8]
    assert curves.values["ema_fg_dice"] == pytest.approx([0.7, 0.7])  # nnU-Net's own, which follows mean_fg_dice
    assert {len(values) for values in curves.values.values()} == {2}  # nnU-Net plots as many epochs as the shortest has


def test_a_family_is_named_by_what_follows_its_prefix(curves):
    fill(curves, 0)
    assert curves.family("pseudo_dice") == {"CNN": [0.7], "Transformer": [0.5]}
    assert curves.family("loss") == {"CNN/supervised": [1.0], "Transformer/rlcl": [0.25]}
    assert curves.family("train") == {}


def test_the_summary_says_the_last_epoch_in_words(curves):
    fill(curves, 0)
    fill(curves, 1)
    assert curves.summary() == [
        "train loss 0.5000, validation loss 0.5000",
        "weighted terms: CNN/supervised 1.0000, Transformer/rlcl 0.2500",
        "pseudo Dice: CNN 0.8000, Transformer 0.5000, per class [0.6, 0.8123]",
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
def test_the_figure_is_a_picture_and_replaces_the_former_one(curves, tmp_path, agreement):
    path = tmp_path / "collab_progress.png"
    path.write_text("old")
    fill(curves, 0, agreement=agreement)
    curves.plot(path)
    assert matplotlib.image.imread(path).shape == (1440, 1200, 4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_nnunets_huge_fonts_do_not_reach_it(curves, tmp_path):
    fill(curves, 0)
    curves.plot(tmp_path / "before.png")
    curves.logger.plot_progress_png(str(tmp_path))  # it sets its style for the whole process
    curves.plot(tmp_path / "after.png")
    assert (tmp_path / "after.png").read_bytes() == (tmp_path / "before.png").read_bytes()


def test_a_full_disk_keeps_the_former_figure(curves, tmp_path, monkeypatch):
    path = tmp_path / "collab_progress.png"
    path.write_text("old")
    fill(curves, 0)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(CollabError, match=r"collab_progress\.png: could not be written .*No space left"):
        curves.plot(path)
    assert path.read_text() == "old"
    assert matplotlib.pyplot.get_fignums() == []  # figures of every epoch would pile up
