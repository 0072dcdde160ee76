"""Pseudo labels and every criterion that learns from them, beside the equations in float64."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import reference_semi_supervised as reference
import torch
from reference_semi_supervised import logit_pair, on_two_ranks
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_collab.losses.pseudo_labels import Criterion, pseudo_label_loss, pseudo_labels

CRITERIA = get_args(Criterion)
DICES = [criterion for criterion in CRITERIA if criterion.startswith("dice") and criterion != "dice_ce"]
SHAPES = [(2, 4, 3, 4), (2, 3, 2, 3, 3)]
POISONS = (math.inf, -math.inf, math.nan)
each_criterion = pytest.mark.parametrize("criterion", CRITERIA)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
each_kind = pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])


def make(shape=SHAPES[0], seed=0, dtype=torch.float64):
    student, teacher, keep = (torch.from_numpy(a) for a in logit_pair(shape, seed))
    return student.to(dtype).requires_grad_(), teacher.to(dtype), keep


def value_and_grad(student, *rest, **settings):
    leaf = student.detach().clone().requires_grad_()
    value = pseudo_label_loss(leaf, *rest, **settings)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def same(a, b, rtol=1e-11):
    for first, second in zip(a, b, strict=True):
        torch.testing.assert_close(first, second, rtol=rtol, atol=1e-13)


def used_voxels(teacher, keep, regions, tau):
    """`(B, P, *S)`, by the reference."""
    _, confidence = reference.labels_and_confidence(teacher.numpy(), regions)
    return keep.unsqueeze(1) & torch.from_numpy(confidence >= tau)


# --- labels -----------------------------------------------------------------------------------------------------------


@each_kind
@each_shape
def test_labels_and_confidence_equal_the_definition(shape, regions):
    logits = make(shape)[0]
    labels, confidence = pseudo_labels(logits, regions=regions)
    want_labels, want_confidence = reference.labels_and_confidence(logits.detach().numpy(), regions)
    assert labels.dtype is torch.int64
    assert np.array_equal(labels.numpy(), want_labels)
    assert confidence.dtype is torch.float64
    np.testing.assert_allclose(confidence.numpy(), want_confidence, rtol=1e-12)
    assert not confidence.requires_grad


def test_a_hand_sized_case():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    labels, confidence = pseudo_labels(p.log().view(1, 3, 1, 1), regions=False)
    assert (labels.item(), confidence.item()) == (0, pytest.approx(0.6))
    labels, confidence = pseudo_labels(torch.logit(p).view(1, 3, 1, 1), regions=True)
    assert labels.flatten().tolist() == [1, 0, 0]
    assert confidence.flatten().tolist() == pytest.approx([0.6, 0.7, 0.9])


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_confidence_is_computed_in_float32(dtype, regions):
    logits = make(dtype=dtype)[1]
    _, confidence = pseudo_labels(logits, regions=regions)
    _, want = reference.labels_and_confidence(logits.double().numpy(), regions)
    assert confidence.dtype is torch.float32
    np.testing.assert_allclose(confidence.numpy(), want, rtol=1e-6)


# --- value and gradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, 0.7, 0.9])
@each_kind
@each_shape
@each_criterion
def test_value_equals_the_equation(criterion, shape, regions, tau):
    student, teacher, keep = make(shape)
    used = used_voxels(teacher, keep, regions, tau)
    assert used.any()
    assert tau == 0 or (~used & keep.unsqueeze(1)).any()
    before = [t.detach().clone() for t in (student, teacher, keep)]
    settings = {"regions": regions, "criterion": criterion, "threshold": tau, "temperature": 1.7, "smooth": 0.3}
    value = pseudo_label_loss(student, teacher, keep, **settings)
    want = reference.pseudo_label_loss(student.detach().numpy(), teacher.numpy(), keep.numpy(), **settings)
    assert want > 0.01
    assert (value.shape, value.dtype) == ((), torch.float64)
    assert value.item() == pytest.approx(want, rel=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(before, (student, teacher, keep), strict=True))


def test_every_criterion_and_both_kinds_of_labels_are_different_losses():
    student, teacher, keep = make()
    values = [
        pseudo_label_loss(student, teacher, keep, regions=r, criterion=c, threshold=t).item()
        for r in (False, True)
        for c in CRITERIA
        for t in (0.0, 0.9)
    ]
    values.sort()
    assert min(b - a for a, b in itertools.pairwise(values)) > 1e-5


def test_defaults_are_all_voxels_no_temperature_and_the_published_smoothing():
    student, teacher, keep = make()
    for criterion in CRITERIA:
        plain = pseudo_label_loss(student, teacher, keep, regions=False, criterion=criterion)
        said = {"threshold": 0.0, "temperature": 1.0, "smooth": 1e-5}
        assert plain.item() == pseudo_label_loss(student, teacher, keep, regions=False, criterion=criterion, **said)


@pytest.mark.parametrize("tau", [0.0, 0.7])
@each_kind
@each_criterion
def test_gradient_is_right_and_reaches_only_the_student_where_labels_are_used(criterion, regions, tau):
    student, teacher, keep = make((2, 3, 2, 3))
    teacher.requires_grad_()
    settings = {"regions": regions, "criterion": criterion, "threshold": tau}
    assert torch.autograd.gradcheck(lambda z: pseudo_label_loss(z, teacher, keep, **settings), (student,))
    pseudo_label_loss(student, teacher, keep, **settings).backward()
    assert teacher.grad is None
    used = used_voxels(teacher.detach(), keep, regions, tau).expand_as(student)
    assert not student.grad[~used].any()
    assert student.grad[used].any()
    if not regions:  # a constant added to all logits of a voxel changes nothing
        torch.testing.assert_close(student.grad.sum(1), torch.zeros_like(student[:, 0]), rtol=0, atol=1e-14)


def test_a_student_that_teaches_itself_has_no_divergence_and_no_gradient_from_it():
    student, _, keep = make()
    value, gradient = value_and_grad(student, student, keep, regions=False, criterion="kl", temperature=2.0)
    assert abs(value.item()) < 1e-15
    assert gradient.abs().max() < 1e-15


@each_kind
def test_kl_at_a_high_threshold_is_a_share_of_that_without(regions):
    student, teacher, keep = make()
    used = used_voxels(teacher, keep, regions, 0.8)
    whole = pseudo_label_loss(student, teacher, keep, regions=regions, criterion="kl").item()
    above = pseudo_label_loss(student, teacher, keep, regions=regions, criterion="kl", threshold=0.8).item()
    assert 0 < above < whole
    if not regions:  # the denominator is that of all kept voxels, so the two parts add up
        rest = pseudo_label_loss(student, teacher, keep & ~used[:, 0], regions=False, criterion="kl").item()
        assert whole == pytest.approx(above + rest * (keep & ~used[:, 0]).sum().item() / keep.sum().item())


@each_criterion
def test_a_region_is_a_problem_of_two_classes(criterion):
    student, teacher, keep = make((2, 1, 4, 5))
    settings = {"criterion": criterion, "threshold": 0.8, "temperature": 1.5}
    value, gradient = value_and_grad(student, teacher, keep, regions=True, **settings)
    two = [torch.cat([torch.zeros_like(z), z], 1) for z in (student, teacher)]
    want, slope = value_and_grad(*two, keep, regions=False, **settings)
    same([value, gradient], [want, slope[:, 1:]])


@each_criterion
def test_regions_count_alike(criterion):
    student, teacher, keep = make()
    settings = {"regions": True, "criterion": criterion, "threshold": 0.6}
    each = [value_and_grad(student[:, [r]], teacher[:, [r]], keep, **settings) for r in range(student.shape[1])]
    value, gradient = value_and_grad(student, teacher, keep, **settings)
    same([value], [torch.stack([v for v, _ in each]).mean()])
    same([gradient * len(each)], [torch.cat([g for _, g in each], 1)])


# --- thresholds -------------------------------------------------------------------------------------------------------


@each_kind
@each_criterion
def test_a_confidence_at_the_threshold_is_used_and_one_just_below_is_not(criterion, regions):
    student, teacher, keep = make((1, 2, 1, 1))
    keep.fill_(True)
    if regions:
        student, teacher = student[:, :1].detach(), teacher[:, :1]
    tau = pseudo_labels(teacher, regions=regions).confidence.item()
    settings = {"regions": regions, "criterion": criterion}
    at_edge = pseudo_label_loss(student, teacher, keep, threshold=tau, **settings)
    assert at_edge.item() == pseudo_label_loss(student, teacher, keep, threshold=0.0, **settings).item() != 0
    assert pseudo_label_loss(student, teacher, keep, threshold=math.nextafter(tau, 1), **settings).item() == 0


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("level", [0.0, 0.7, -7.3, 99.9, 1e4])
def test_of_equally_likely_classes_the_confidence_is_their_share_at_any_size_of_the_logits(level, classes):
    logits = torch.full((1, classes, 1, 1), level)
    assert pseudo_labels(logits, regions=False).confidence.item() == 1 / classes  # so 1/K is a threshold for none
    assert pseudo_labels(torch.zeros(1, 1, 1, 1), regions=True).confidence.item() == 0.5


def test_large_logits_do_not_blur_the_confidence():
    gap = torch.tensor([0.0, -2.0]).view(1, 2, 1, 1)
    want = pseudo_labels(gap, regions=False).confidence.item()
    assert pseudo_labels(gap + 4096, regions=False).confidence.item() == want


@each_kind
@each_criterion
@pytest.mark.parametrize("empty", ["nothing kept", "all below", "no samples"])
def test_with_nothing_to_learn_loss_and_gradient_are_zero(empty, criterion, regions):
    student, teacher, keep = make()
    tau = 0.5
    if empty == "nothing kept":
        keep = torch.zeros_like(keep)
    elif empty == "all below":
        tau = 0.9999999
    else:
        student, teacher, keep = student[:0], teacher[:0], keep[:0]
    value, gradient = value_and_grad(student, teacher, keep, regions=regions, criterion=criterion, threshold=tau)
    assert value.item() == 0
    assert gradient.isfinite().all()
    assert not gradient.any()


@each_kind
@each_criterion
def test_a_full_mask_uses_all_voxels(criterion, regions):
    student, teacher, keep = make()
    settings = {"regions": regions, "criterion": criterion}
    full = torch.ones_like(keep)
    want = reference.pseudo_label_loss(student.detach().numpy(), teacher.numpy(), full.numpy(), **settings)
    assert pseudo_label_loss(student, teacher, full, **settings).item() == pytest.approx(want, rel=1e-9)


# --- Dice -------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("criterion", DICES)
def test_dice_is_of_the_batch_not_of_its_samples(criterion, regions):
    student, teacher, keep = make((3, 3, 3, 4))
    settings = {"regions": regions, "criterion": criterion, "threshold": 0.6}
    whole = pseudo_label_loss(student, teacher, keep, **settings).item()
    parts = [pseudo_label_loss(*(t[[b]] for t in (student, teacher, keep)), **settings).item() for b in range(3)]
    assert abs(whole - sum(parts) / 3) > 1e-4
    moved = [t.transpose(0, -1) for t in (student, teacher, keep)]  # voxels of one sample in another: the same sums
    assert pseudo_label_loss(*moved, **settings).item() == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("named", [0, 2])
def test_a_patch_of_a_single_class(named, criterion):
    student, teacher, keep = make()
    teacher = torch.zeros_like(teacher)
    teacher[:, named] = 30.0
    value, gradient = value_and_grad(student, teacher, keep, regions=False, criterion=criterion, threshold=0.99)
    want = reference.pseudo_label_loss(
        student.detach().numpy(), teacher.numpy(), keep.numpy(), regions=False, criterion=criterion, threshold=0.99
    )
    assert value.item() == pytest.approx(want, rel=1e-9)
    assert gradient.isfinite().all()
    # A student that says the same with certainty has nothing to learn: absent classes count as found.
    assert abs(pseudo_label_loss(teacher, teacher, keep, regions=False, criterion=criterion).item()) < 1e-6


def test_dice_of_the_code_has_squares_in_the_denominator_and_that_of_nnunet_has_not():
    p = torch.tensor([0.8, 0.6], dtype=torch.float64)  # two voxels, both labeled 1
    student = torch.stack([torch.zeros(2).double(), torch.logit(p)]).view(1, 2, 1, 2)
    teacher = torch.tensor([[-9.0, -9.0], [9.0, 9.0]], dtype=torch.float64).view(1, 2, 1, 2)
    keep = torch.ones(1, 1, 2, dtype=torch.bool)
    found = {
        c: pseudo_label_loss(student, teacher, keep, regions=False, criterion=c, smooth=1e-12).item()
        for c in ("dice", "dice_foreground", "dice_nnunet")
    }
    foreground = 1 - 2 * 1.4 / (0.64 + 0.36 + 2)
    assert found["dice_foreground"] == pytest.approx(foreground)
    assert found["dice_nnunet"] == pytest.approx(1 - 2 * 1.4 / (1.4 + 2))
    assert found["dice"] == pytest.approx((foreground + 1) / 2)  # of the absent background nothing is right


# --- invariances ------------------------------------------------------------------------------------------------------


@each_kind
@each_criterion
def test_the_order_of_the_samples_and_of_the_voxels_does_not_matter(criterion, regions):
    student, teacher, keep = make((3, 3, 4, 2))
    settings = {"regions": regions, "criterion": criterion, "threshold": 0.7}
    value, gradient = value_and_grad(student, teacher, keep, **settings)
    order = torch.tensor([2, 0, 1])
    turned = [t[order].flip(-2) for t in (student, teacher, keep)]
    same(value_and_grad(*turned, **settings), [value, gradient[order].flip(-2)])


@each_kind
@each_criterion
def test_the_numbers_of_the_classes_do_not_matter(criterion, regions):
    student, teacher, keep = make()
    settings = {"regions": regions, "criterion": criterion, "threshold": 0.7}
    free = regions or criterion in ("dice", "ce", "dice_ce", "kl")
    order = torch.tensor([2, 3, 1, 0] if free else [0, 3, 1, 2])  # without background its number does
    value, gradient = value_and_grad(student, teacher, keep, **settings)
    same(value_and_grad(student[:, order], teacher[:, order], keep, **settings), [value, gradient[:, order]])


# --- what must not come through ---------------------------------------------------------------------------------------


@each_kind
@each_criterion
def test_voxels_that_are_left_out_may_hold_anything(criterion, regions):
    student, teacher, keep = make()
    settings = {"regions": regions, "criterion": criterion, "threshold": 0.8}
    want = value_and_grad(student, teacher, keep, **settings)
    skip = (~keep).unsqueeze(1).expand_as(student).clone()
    skip[:, 0] = False  # one sound channel: some operations see only the others
    for poison in POISONS:
        poisoned = [t.detach().masked_fill(skip, poison) for t in (student, teacher)]
        same(value_and_grad(*poisoned, keep, **settings), want)


@each_kind
@each_criterion
def test_a_student_may_say_anything_where_its_teacher_is_unsure(criterion, regions):
    student, teacher, keep = make()
    settings = {"regions": regions, "criterion": criterion, "threshold": 0.8}
    want = value_and_grad(student, teacher, keep, **settings)
    unsure = ~used_voxels(teacher, keep, regions, 0.8).expand_as(student)
    for poison in POISONS:
        same(value_and_grad(student.detach().masked_fill(unsure, poison), teacher, keep, **settings), want)


@each_kind
@each_criterion
def test_a_teacher_that_is_not_a_number_teaches_nothing_there(criterion, regions):
    student, teacher, keep = make()
    settings = {"regions": regions, "criterion": criterion}
    hole = torch.zeros_like(keep)
    hole[0, 1] = True
    value, gradient = value_and_grad(student, teacher.masked_fill(hole.unsqueeze(1), math.nan), keep, **settings)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert not gradient.transpose(0, 1)[:, hole].any()


@each_kind
@each_criterion
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_logits_in_half_precision_stay_finite_under_autocast(dtype, criterion, regions):
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([1e4, 1.0, 0.0, -1e4])
    student, teacher = (levels[torch.rand(2, 4, 5, 6, generator=generator).argsort(1)].to(dtype) for _ in range(2))
    keep = torch.ones(2, 5, 6, dtype=torch.bool)
    settings = {"regions": regions, "criterion": criterion, "threshold": 0.5}
    with torch.autocast("cpu", dtype=dtype):
        value, gradient = value_and_grad(student, teacher, keep, **settings)
    assert value.dtype is torch.float32
    assert gradient.dtype is dtype
    assert value.isfinite()
    assert gradient.isfinite().all()
    want, _ = value_and_grad(student.double(), teacher.double(), keep, **settings)
    assert value.item() == pytest.approx(want.item(), rel=1e-5)


@each_kind
@each_criterion
def test_half_precision_logits_are_summed_in_float32(criterion, regions):
    student, teacher, keep = make((1, 2, 300, 300), dtype=torch.float16)  # 90 000 voxels overflow a sum in float16
    settings = {"regions": regions, "criterion": criterion, "threshold": 0.6}
    with torch.autocast("cpu", dtype=torch.float16):
        value = pseudo_label_loss(student, teacher, keep, **settings)
    want = pseudo_label_loss(student.double(), teacher.double(), keep, **settings)
    assert value.item() == pytest.approx(want.item(), rel=1e-4)


@each_kind
@each_criterion
def test_no_value_is_read_on_the_way(criterion, regions):
    with FakeTensorMode():  # tensors without content: reading one raises
        student, teacher, keep = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.rand(2, 4, 4) > 0.5
        assert pseudo_label_loss(student, teacher, keep, regions=regions, criterion=criterion, threshold=0.9).ndim == 0


# --- several ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.0, 0.7])
@each_kind
@each_criterion
def test_two_ranks_learn_what_one_learns_from_the_whole_batch(criterion, regions, tau, monkeypatch):
    student, teacher, keep = make((3, 3, 3, 4))
    settings = {"regions": regions, "criterion": criterion, "threshold": tau}
    value, gradient = value_and_grad(student, teacher, keep, **settings)
    shares = [slice(0, 1), slice(1, 3)]
    found = on_two_ranks(
        monkeypatch, lambda rank: value_and_grad(*(t[shares[rank]] for t in (student, teacher, keep)), **settings)
    )
    # DistributedDataParallel averages the gradients of the ranks.
    same([sum(v for v, _ in found) / 2, torch.cat([g for _, g in found]) / 2], [value, gradient])


@each_kind
@each_criterion
def test_a_rank_with_nothing_to_learn_changes_nothing(criterion, regions, monkeypatch):
    student, teacher, keep = make()
    keep[1] = False
    settings = {"regions": regions, "criterion": criterion}
    value, gradient = value_and_grad(student[:1], teacher[:1], keep[:1], **settings)
    found = on_two_ranks(
        monkeypatch, lambda rank: value_and_grad(*(t[[rank]] for t in (student, teacher, keep)), **settings)
    )
    same([sum(v for v, _ in found) / 2, found[0][1] / 2], [value, gradient])
    assert not found[1][1].any()


# --- messages ---------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    student, teacher, keep = make()

    def call(student=student, teacher=teacher, keep=keep, criterion="ce"):
        return pseudo_label_loss(student, teacher, keep, regions=False, criterion=criterion)

    with pytest.raises(ValueError, match=r"^pseudo_label_loss: shapes must be equal; got student \(2, 4, 3, 4\), tea"):
        call(teacher=teacher[:, :3])
    with pytest.raises(ValueError, match=r"keep has one value per voxel, so \(2, 3, 4\); got \(2, 1, 3, 4\)\.$"):
        call(keep=keep.unsqueeze(1))
    with pytest.raises(TypeError, match=r"keep must be torch\.bool \(True = use the voxel\); got torch\.int64\.$"):
        call(keep=keep.long())
    with pytest.raises(ValueError, match=r"must be one of dice, dice_foreground, .*, kl; got 'focal'\.$"):
        call(criterion="focal")
