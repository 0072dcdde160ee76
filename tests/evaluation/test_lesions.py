"""Lesions against a loop over their voxels, and by hand: what matches, what counts as 0, what is not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_collab.evaluation.lesions import components, lesion_metrics

NAN = pytest.approx(math.nan, nan_ok=True)


def flooded(mask):
    """Components as lists of voxels: flood fill over all neighbors that share a corner."""
    left, found = {tuple(v) for v in np.argwhere(mask)}, []
    while left:
        front = [min(left)]
        left.remove(front[0])
        lesion = []
        while front:
            voxel = front.pop()
            lesion.append(voxel)
            near = [v for v in left if all(abs(a - b) <= 1 for a, b in zip(v, voxel, strict=True))]
            left.difference_update(near)
            front += near
        found.append(frozenset(lesion))
    return found


def reference(prediction, truth, least):
    ours, theirs = flooded(prediction), flooded(truth)
    pairs = sorted(
        ((len(p & t) / len(p | t), p, t) for p in ours for t in theirs if p & t),
        key=lambda pair: (-pair[0], min(pair[1]), min(pair[2])),
    )
    used, dice = set(), []
    for iou, p, t in pairs:
        if iou >= least and (0, p) not in used and (1, t) not in used:
            used |= {(0, p), (1, t)}
            dice.append(2 * len(p & t) / (len(p) + len(t)))
    tp, fp, fn = len(dice), len(ours) - len(dice), len(theirs) - len(dice)
    return {
        "lesion_f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
        "lesion_sensitivity": tp / (tp + fn) if tp + fn else math.nan,
        "lesion_precision": tp / (tp + fp) if tp + fp else math.nan,
        "lesion_dice": sum(dice) / (tp + fp + fn) if tp + fp + fn else math.nan,
        "lesions_true": len(theirs),
        "lesions_predicted": len(ours),
        "lesions_matched": tp,
    }


@pytest.mark.parametrize("shape", [(15, 17), (5, 9, 8), (1, 12, 12), (6, 1, 7), (1, 1, 30), (1, 1, 1)])
@pytest.mark.parametrize("least", [0.05, 0.1, 0.34, 0.5])
def test_scores_are_those_of_the_loop(shape, least):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth = rng.random(shape) < 0.15
        prediction = np.where(rng.random(shape) < 0.6, truth, rng.random(shape) < 0.1)
        want = reference(prediction, truth, least)
        assert lesion_metrics(prediction, truth, least) == pytest.approx(want, rel=1e-12, nan_ok=True)


def test_components_are_those_of_the_flood_also_across_corners():
    for seed, shape in enumerate([(15, 17), (6, 7, 8), (1, 20, 20)] * 3):
        mask = np.random.default_rng(seed).random(shape) < 0.2
        got, want = components(mask), flooded(mask)
        assert got.max() == len(want)
        assert np.array_equal(got > 0, mask)
        for number, lesion in enumerate(sorted(want, key=min), start=1):
            assert {got[voxel] for voxel in lesion} == {number}


def row(*pieces):
    """A line of voxels with the pieces, each `(start, stop)`, set."""
    mask = np.zeros((1, 1, 40), dtype=bool)
    for start, stop in pieces:
        mask[..., start:stop] = True
    return mask


def test_a_lesion_is_found_once_and_one_without_a_partner_counts_as_zero():
    truth = row((0, 4), (10, 14), (20, 24))
    prediction = row((0, 4), (9, 15), (30, 31), (33, 34))  # one exact, one too large, two invented, one missed
    got = lesion_metrics(prediction, truth)
    dice = (1 + 2 * 4 / (4 + 6) + 0 + 0 + 0) / 5
    assert got == pytest.approx(
        {
            "lesion_f1": 4 / 7,
            "lesion_sensitivity": 2 / 3,
            "lesion_precision": 2 / 4,
            "lesion_dice": dice,
            "lesions_true": 3,
            "lesions_predicted": 4,
            "lesions_matched": 2,
        }
    )
    joined = lesion_metrics(row((0, 14)), row((0, 4), (10, 14)))
    assert (joined["lesions_matched"], joined["lesion_precision"], joined["lesion_sensitivity"]) == (1, 1, 0.5)


def test_the_least_iou_is_enough_and_less_is_not():
    truth, prediction = row((0, 4)), row((3, 9))  # 1 of 9 voxels
    assert lesion_metrics(prediction, truth, 1 / 9)["lesions_matched"] == 1
    assert lesion_metrics(prediction, truth, 0.1112)["lesions_matched"] == 0
    assert lesion_metrics(prediction, truth, 0.1112)["lesion_dice"] == 0
    for wrong in (0.0, -0.1, 1.01, math.nan):
        with pytest.raises(ValueError, match="the IoU must be above 0 and at most 1; got"):
            lesion_metrics(prediction, truth, wrong)


def test_empty_masks():
    some, none = row((3, 5)), row()
    names = ("lesion_f1", "lesion_sensitivity", "lesion_precision", "lesion_dice")
    for pair, want in (((none, none), (NAN,) * 4), ((none, some), (0, 0, NAN, 0)), ((some, none), (0, NAN, 0, 0))):
        got = lesion_metrics(*pair)
        assert tuple(got[name] for name in names) == want
