"""nnU-Net's whole loss on hard labels: against the equation one voxel at a time, and against nnU-Net's own loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from reference_hard_labels import reference

from nnunet_collab.core.types import Truth
from nnunet_collab.losses.hard_labels import HardLabelForm, hard_label_loss

SHAPES = [(2, 3, 5, 4), (3, 4, 2, 3, 4)]
FORMS = [HardLabelForm(), HardLabelForm(batch_dice=False), HardLabelForm(dice=False)]


def case(shape, seed=0, regions=False):
    """Logits in float64, labels or regions, and a mask that leaves a third out."""
    generator = np.random.default_rng(seed)
    space = (shape[0], *shape[2:])
    logits = torch.tensor(generator.normal(0, 2, shape), requires_grad=True)
    labels = torch.tensor(generator.integers(0, shape[1], space))
    keep = torch.tensor(generator.random(space) < 2 / 3)
    return logits, Truth(labels, keep, torch.tensor(generator.random(shape) < 0.4) if regions else None)


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
@pytest.mark.parametrize("form", [*FORMS, HardLabelForm(sum_regions=True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_equation(shape, form, regions):
    logits, truth = case(shape, regions=regions)
    if form.sum_regions and not regions:
        form = form._replace(sum_regions=False)
    found = float(hard_label_loss(logits.detach(), truth, form))
    assert found == pytest.approx(reference(logits, truth, form), rel=1e-12)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("ignore", [True, False], ids=["ignored voxels", "all voxels"])
@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_nnunets_own_loss_but_for_a_constant(shape, regions, ignore, batch_dice):
    logits, truth = case(shape, regions=regions)
    truth = truth if ignore else truth._replace(keep=torch.ones_like(truth.keep))
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": regions, "ddp": False}
    if regions:
        stock = DC_and_BCE_loss({}, dice, use_ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
        target = torch.cat([truth.regions, ~truth.keep[:, None]], 1) if ignore else truth.regions
    else:
        ignored = shape[1]
        stock = DC_and_CE_loss(
            dice, {}, ignore_label=ignored if ignore else None, dice_class=MemoryEfficientSoftDiceLoss
        )
        target = truth.labels.masked_fill(~truth.keep, ignored)[:, None]
    want = stock(logits, target)
    found = hard_label_loss(logits, truth, HardLabelForm(batch_dice, sum_regions=regions and ignore))
    torch.testing.assert_close(found - 1, want.double(), rtol=1e-5, atol=1e-6)  # nnU-Net sums in float32
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (found, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_gradient(regions):
    logits, truth = case((2, 3, 3, 2), regions=regions)
    for form in FORMS:
        assert torch.autograd.gradcheck(lambda z, form=form: hard_label_loss(z, truth, form), (logits,))


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
@pytest.mark.parametrize("regions", [False, True])
def test_voxels_that_do_not_count_have_no_say(regions, poison):
    logits, truth = case((2, 3, 5, 4), regions=regions)
    want = hard_label_loss(logits, truth)
    ignored = (~truth.keep).unsqueeze(1)
    poisoned = logits.detach().masked_fill(ignored, poison).requires_grad_()
    other = None if truth.regions is None else truth.regions ^ ignored
    labels = torch.where(truth.keep, truth.labels, (truth.labels + 1) % 3)
    found = hard_label_loss(poisoned, Truth(labels, truth.keep, other))
    assert torch.equal(found, want)
    (gradient,) = torch.autograd.grad(found, poisoned)
    assert gradient.isfinite().all()
    assert not gradient.masked_select(ignored.expand_as(gradient)).any()


def test_a_perfect_prediction_costs_nothing():
    _, truth = case((2, 3, 5, 4))
    logits = 1e3 * torch.nn.functional.one_hot(truth.labels, 3).movedim(-1, 1).double()
    assert float(hard_label_loss(logits, truth)) == pytest.approx(0, abs=1e-9)
