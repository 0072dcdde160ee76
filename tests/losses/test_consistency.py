"""Consistency of probabilities and the uncertainty of a teacher, beside the equations in float64."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import reference_semi_supervised as reference
import torch
from reference_semi_supervised import logit_pair, on_two_ranks
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_collab.losses.consistency import MeanProbability, squared_difference

SHAPES = [(2, 4, 3, 4), (2, 3, 2, 3, 3)]
POISONS = (math.inf, -math.inf, math.nan)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
each_kind = pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
each_choice = pytest.mark.parametrize("chosen", [False, True], ids=["all kept", "certain"])


def make(shape=SHAPES[0], *, regions=False, chosen=False, seed=0, dtype=torch.float64):
    """Logits of student and teacher, the kept voxels, and the certain ones of every problem (or None)."""
    student, teacher, keep = (torch.from_numpy(a) for a in logit_pair(shape, seed))
    generator = torch.Generator().manual_seed(seed)
    used = torch.rand((shape[0], shape[1] if regions else 1, *shape[2:]), generator=generator) < 0.6
    return student.to(dtype).requires_grad_(), teacher.to(dtype), keep, used if chosen else None


def value_and_grad(student, teacher, keep, used, regions):
    leaf = student.detach().clone().requires_grad_()
    value = squared_difference(leaf, teacher, keep, regions=regions, used=used)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def same(a, b, rtol=1e-11):
    for first, second in zip(a, b, strict=True):
        torch.testing.assert_close(first, second, rtol=rtol, atol=1e-13)


def active(keep, used, like):
    """Where there is something to learn, as wide as the logits."""
    mask = keep.unsqueeze(1) if used is None else keep.unsqueeze(1) & used
    return mask.expand_as(like)


# --- squared difference -----------------------------------------------------------------------------------------------


@each_choice
@each_kind
@each_shape
def test_value_equals_the_equation(shape, regions, chosen):
    student, teacher, keep, used = make(shape, regions=regions, chosen=chosen)
    value = squared_difference(student, teacher, keep, regions=regions, used=used)
    arrays = [None if t is None else t.detach().numpy() for t in (student, teacher, keep, used)]
    want = reference.squared_difference(*arrays[:3], regions=regions, used=arrays[3])
    assert want > 0.01
    assert (value.shape, value.dtype) == ((), torch.float64)
    assert value.item() == pytest.approx(want, rel=1e-9)


def test_a_hand_sized_case():
    p, q = (torch.tensor(v, dtype=torch.float64).log().view(1, 3, 1, 1) for v in ([0.6, 0.3, 0.1], [0.2, 0.5, 0.3]))
    keep = torch.ones(1, 1, 1, dtype=torch.bool)
    assert squared_difference(p, q, keep, regions=False).item() == pytest.approx((0.16 + 0.04 + 0.04) / 3)


@each_choice
@each_kind
def test_gradient_is_right_and_reaches_only_the_student_where_it_is_used(regions, chosen):
    student, teacher, keep, used = make((2, 3, 2, 3), regions=regions, chosen=chosen)
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: squared_difference(z, teacher, keep, regions=regions, used=used), (student,)
    )
    squared_difference(student, teacher, keep, regions=regions, used=used).backward()
    assert teacher.grad is None
    mask = active(keep, used, student)
    assert student.grad[mask].all()
    assert not student.grad[~mask].any()


@each_choice
def test_a_region_is_a_problem_of_two_classes(chosen):
    student, teacher, keep, used = make((2, 1, 4, 5), chosen=chosen)
    value, gradient = value_and_grad(student, teacher, keep, used, regions=True)
    two = [torch.cat([torch.zeros_like(z), z], 1) for z in (student, teacher)]
    want, slope = value_and_grad(*two, keep, used, regions=False)
    same([value, gradient], [want, slope[:, 1:]])


@each_choice
@each_kind
def test_the_order_of_samples_and_the_numbers_of_classes_do_not_matter(regions, chosen):
    student, teacher, keep, used = make((3, 4, 3, 4), regions=regions, chosen=chosen)
    value, gradient = value_and_grad(student, teacher, keep, used, regions)
    rows, columns = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    turned = None if used is None else used[rows][:, columns] if regions else used[rows]
    found = value_and_grad(student[rows][:, columns], teacher[rows][:, columns], keep[rows], turned, regions)
    same(found, [value, gradient[rows][:, columns]])


def test_equal_logits_and_logits_that_differ_by_a_constant_are_consistent():
    student, _, keep, _ = make()
    value, gradient = value_and_grad(student, student.detach() + 3.0, keep, None, regions=False)
    assert value.item() < 1e-30
    assert gradient.abs().max() < 1e-16


@each_kind
@pytest.mark.parametrize("empty", ["nothing kept", "nothing certain", "no samples"])
def test_with_nothing_to_learn_loss_and_gradient_are_zero(empty, regions):
    student, teacher, keep, used = make(regions=regions, chosen=True)
    if empty == "nothing kept":
        keep = torch.zeros_like(keep)
    elif empty == "nothing certain":
        used = torch.zeros_like(used)
    else:
        student, teacher, keep, used = student[:0], teacher[:0], keep[:0], used[:0]
    value, gradient = value_and_grad(student, teacher, keep, used, regions)
    assert value.item() == 0
    assert not gradient.any()


@each_choice
@each_kind
def test_voxels_that_are_left_out_may_hold_anything(regions, chosen):
    student, teacher, keep, used = make(regions=regions, chosen=chosen)
    want = value_and_grad(student, teacher, keep, used, regions)
    skip = ~active(keep, used, student)
    for poison in POISONS:
        poisoned = [t.detach().masked_fill(skip, poison) for t in (student, teacher)]
        same(value_and_grad(*poisoned, keep, used, regions), want)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_logits_in_half_precision_stay_finite_under_autocast(dtype, regions):
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([1e4, 1.0, 0.0, -1e4])
    student, teacher = (levels[torch.rand(2, 4, 5, 6, generator=generator).argsort(1)].to(dtype) for _ in range(2))
    keep = torch.ones(2, 5, 6, dtype=torch.bool)
    with torch.autocast("cpu", dtype=dtype):
        value, gradient = value_and_grad(student, teacher, keep, None, regions)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    assert gradient.isfinite().all()
    want, _ = value_and_grad(student.double(), teacher.double(), keep, None, regions)
    assert value.item() == pytest.approx(want.item(), rel=1e-6)


@each_choice
@each_kind
def test_two_ranks_learn_what_one_learns_from_the_whole_batch(regions, chosen, monkeypatch):
    case = make((3, 3, 3, 4), regions=regions, chosen=chosen)
    value, gradient = value_and_grad(*case, regions)
    shares = [slice(0, 1), slice(1, 3)]
    found = on_two_ranks(
        monkeypatch,
        lambda rank: value_and_grad(*(None if t is None else t[shares[rank]] for t in case), regions),
    )
    # DistributedDataParallel averages the gradients of the ranks.
    same([sum(v for v, _ in found) / 2, torch.cat([g for _, g in found]) / 2], [value, gradient])


def test_wrong_shapes_are_refused():
    student, teacher, keep, used = make(chosen=True)
    with pytest.raises(ValueError, match=r"^squared_difference: shapes must be equal; got student \(2, 4, 3, 4\), tea"):
        squared_difference(student, teacher[:, :3], keep, regions=False)
    with pytest.raises(ValueError, match=r"keep has one value per voxel, so \(2, 3, 4\); got \(2, 1, 3, 4\)\.$"):
        squared_difference(student, teacher, keep.unsqueeze(1), regions=False)
    # Without its axis of problems it would be taken for one mask per channel of every sample.
    with pytest.raises(ValueError, match=r"used has one value per voxel, so \(2, 1, 3, 4\); got \(2, 3, 4\)\.$"):
        squared_difference(student, teacher, keep, regions=False, used=used[:, 0])
    with pytest.raises(ValueError, match=r"used has one value per voxel, so \(2, 4, 3, 4\); got \(2, 1, 3, 4\)\.$"):
        squared_difference(student, teacher, keep, regions=True, used=used)


def entropy_of(passes, *, regions):
    mean = MeanProbability(regions=regions)
    for logits in passes:
        mean.add(logits)
    return mean.entropy()


# --- entropy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@each_kind
@each_shape
def test_entropy_of_the_mean_equals_the_definition(shape, regions, count):
    passes = [make(shape, seed=seed)[0] for seed in range(count)]
    entropy = entropy_of(passes, regions=regions)
    want = reference.predictive_entropy([z.detach().numpy() for z in passes], regions=regions)
    assert entropy.dtype is torch.float64
    assert not entropy.requires_grad
    np.testing.assert_allclose(entropy.numpy(), want, rtol=1e-9)


def test_the_entropy_of_no_pass_is_refused():
    with pytest.raises(ValueError, match=r"^MeanProbability\.entropy: needs at least 1 pass; got 0\.$"):
        MeanProbability(regions=False).entropy()


@each_kind
def test_a_pass_is_neither_changed_nor_kept(regions):
    mean, passes = MeanProbability(regions=regions), [make(seed=seed)[0].detach() for seed in range(3)]
    before = [logits.clone() for logits in passes]
    for logits in passes:
        mean.add(logits)
    assert all(map(torch.equal, passes, before))
    refs = [weakref.ref(logits) for logits in passes]
    del passes, logits
    assert not any(ref() is not None for ref in refs)


@each_kind
def test_entropy_reaches_from_zero_to_that_of_equal_classes(regions):
    sure = torch.tensor([1e4, -1e4, -1e4]).view(1, 3, 1, 1)
    classes = 2 if regions else 3
    assert not entropy_of([sure.half()], regions=regions).any()
    unsure = entropy_of([torch.zeros(1, 3, 1, 1)], regions=regions)
    torch.testing.assert_close(unsure, torch.full_like(unsure, math.log(classes)))


@each_kind
def test_sure_passes_that_contradict_each_other_are_unsure_together(regions):
    passes = [torch.tensor([z, -z]).view(1, 2, 1, 1) for z in (50.0, -50.0)]
    entropy = entropy_of(passes, regions=regions)
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(2)))  # the mean of the entropies is 0


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_entropy_is_computed_in_float32(dtype, regions):
    passes = [make(seed=seed, dtype=dtype)[0] for seed in range(2)]
    with torch.autocast("cpu", dtype=dtype):
        entropy = entropy_of(passes, regions=regions)
    assert entropy.dtype is torch.float32
    want = reference.predictive_entropy([z.detach().double().numpy() for z in passes], regions=regions)
    np.testing.assert_allclose(entropy.numpy(), want, rtol=1e-5)


@each_kind
def test_no_value_is_read_on_the_way(regions):
    with FakeTensorMode():  # tensors without content: reading one raises
        student, teacher, keep = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.rand(2, 4, 4) > 0.5
        used = entropy_of([teacher, student], regions=regions) < 0.5
        assert squared_difference(student, teacher, keep, regions=regions, used=used).ndim == 0
