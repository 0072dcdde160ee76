"""Pseudo Dice beside nnU-Net's own counting, and the agreement of two students."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from tiny import LABELS

from nnunet_collab.training.metrics import agreement_counts, dice, overlap_counts, predicted_masks, true_masks
from nnunet_collab.training.supervision import read_truth

IGNORE = 3


def make_case(kind, size=(5, 6)):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4 if "ignore" in kind else 3, (2, 1, *size), generator=generator)
    regions = torch.cat([(labels > 0) & (labels < 3), labels == 2, labels == 3], dim=1)
    target = regions[:, : 3 if "ignore" in kind else 2] if "regions" in kind else labels
    logits = torch.randn((2, 2 if "regions" in kind else 3, *size), generator=generator)
    truth = read_truth(target, has_regions="regions" in kind, ignore_label=IGNORE if "ignore" in kind else None)
    return logits, target, truth


def stock_counts(logits, target, kind):
    """True and false positives and negatives as nnU-Net's validation step counts them."""
    axes = [0, *range(2, logits.ndim)]
    mask = None
    if "regions" in kind:
        predicted = (logits.sigmoid() > 0.5).long()
        if "ignore" in kind:
            mask, target = ~target[:, -1:], target[:, :-1]
    else:
        predicted = torch.zeros(logits.shape).scatter_(1, logits.argmax(1, keepdim=True), 1)
        if "ignore" in kind:
            mask, target = (target != IGNORE).float(), target.masked_fill(target == IGNORE, 0)
    counts = [c.numpy() for c in get_tp_fp_fn_tn(predicted, target, axes=axes, mask=mask)[:3]]
    return counts if "regions" in kind else [c[1:] for c in counts]


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize("kind", LABELS)
def test_counts_and_dice_are_nnunets(kind, size):
    logits, target, truth = make_case(kind, size)
    counts = overlap_counts(predicted_masks(logits, truth), true_masks(truth, logits.shape[1]))
    tp, fp, fn = stock_counts(logits, target, kind)
    assert counts.shape == (2, 2)
    assert counts[0].tolist() == tp.tolist()
    assert counts[1].tolist() == (2 * tp + fp + fn).tolist()
    assert dice(counts) == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_ignored_voxels_are_in_no_mask():
    for kind in ("ignore", "regions_ignore"):
        logits, _, truth = make_case(kind)
        ignored = ~truth.keep.unsqueeze(1)
        assert not (predicted_masks(logits, truth) & ignored).any()
        assert not (true_masks(truth, logits.shape[1]) & ignored).any()


def test_a_class_that_nobody_sees_has_no_dice_and_one_that_is_missed_has_zero():
    counts = np.array([[0.0, 0.0, 3.0], [0.0, 4.0, 6.0]])
    values = dice(counts)
    assert np.isnan(values[0])
    assert values[1:].tolist() == [0.0, 1.0]


def test_counts_add_up_over_batches():
    logits, _, truth = make_case("plain")
    predicted, true = predicted_masks(logits, truth), true_masks(truth, 3)
    parts = sum(overlap_counts(predicted[i : i + 1], true[i : i + 1]) for i in range(2))
    assert (parts == overlap_counts(predicted, true)).all()


def test_agreement_is_the_dice_between_the_first_two_students():
    logits, _, truth = make_case("plain")
    own = predicted_masks(logits, truth)
    assert dice(agreement_counts({"a": own, "b": own, "c": ~own})).tolist() == [1.0, 1.0]
    assert dice(agreement_counts({"a": own, "b": ~own})).tolist() == [0.0, 0.0]
