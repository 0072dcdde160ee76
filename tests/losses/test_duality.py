"""LDC's losses against the formulas in plain float64, one voxel at a time; its constraints and their Lagrangian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_semi_supervised import at, logit_pair, on_two_ranks, sigmoid, softmax, voxels

from nnunet_collab.losses.duality import (
    activate,
    augmented_lagrangian,
    class_fractions,
    consistency_loss,
    logit_excess,
    mean_excess,
    paper_equation_2,
    size_band,
    teacher_target,
)
from nnunet_collab.methods.ldc.multipliers import Multipliers

SHAPES = [(2, 3, 4, 5), (2, 3, 3, 4, 2)]
ACTIVATIONS = ["softmax", "sigmoid"]
LIVER = 0.9989 * math.pi * 0.1


def probabilities(logits, voxel, activation):
    values = at(logits, voxel)
    return softmax(values) if activation == "softmax" else [sigmoid(float(z)) for z in values]


def make_case(shape, activation, seed=0):
    """Logits, soft target, kept voxels, and used voxels per problem."""
    student, teacher, keep = logit_pair(shape, seed)
    target = np.zeros(shape)
    for voxel in voxels(student):
        target[(voxel[0], slice(None), *voxel[1:])] = probabilities(teacher, voxel, activation)
    problems = 1 if activation == "softmax" else shape[1]
    used = np.random.default_rng(seed + 9).random((shape[0], problems, *shape[2:])) < 0.7
    return student, target, keep, used


def entries(student, target, keep, used, activation):
    """(sample, channel, z, p, y) of every channel of every used voxel, and the number of kept voxels."""
    found, kept = [], 0
    for voxel in voxels(student):
        if not keep[voxel]:
            continue
        kept += 1
        p = probabilities(student, voxel, activation)
        for c in range(student.shape[1]):
            problem = 0 if activation == "softmax" else c
            if used[(voxel[0], problem, *voxel[1:])]:
                found.append((voxel[0], c, float(at(student, voxel)[c]), p[c], float(at(target, voxel)[c])))
    return found, kept


def reference_dice(found, weights, channels, samples):
    """Of the given samples, together."""
    total, first = 0.0, channels - len(weights)
    for k, weight in enumerate(weights, start=first):
        of_class = [(p, y) for b, c, _, p, y in found if c == k and b in samples]
        both, either = sum(p * y for p, y in of_class), sum(p + y for p, y in of_class)
        total += weight * (1 - (2 * both + 1e-5) / (either + 1e-5))
    return total


def reference(case, activation, weights, parts, mse_on, per_sample):
    student = case[0]
    found, kept = entries(*case, activation)
    channels = student.shape[1]
    kept = max(kept, 1)
    if activation == "softmax":
        entropy = -sum(y * math.log(p) for *_, p, y in found) / kept
    else:
        entropy = -sum(y * math.log(p) + (1 - y) * math.log(1 - p) for *_, p, y in found) / (kept * channels)
    squares = sum(((p if mse_on == "prob" else z) - y) ** 2 for *_, z, p, y in found) / (kept * channels)
    groups = [{b} for b in range(len(student))] if per_sample else [set(range(len(student)))]
    dice = sum(reference_dice(found, weights, channels, group) for group in groups) / len(groups)
    alpha, omega, delta = parts
    return alpha * entropy + omega * dice + delta * squares


def tensors(case):
    return tuple(torch.from_numpy(x) for x in case)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("mse_on", ["prob", "logit"])
@pytest.mark.parametrize("weights", [(0.3, 0.9), (0.2, 0.3, 0.6)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_objective_is_its_formula(shape, activation, weights, mse_on, per_sample):
    case = make_case(shape, activation)
    student, target, keep, used = tensors(case)
    options = {"activation": activation, "class_weights": torch.tensor(weights, dtype=torch.float64)}
    found = consistency_loss(
        student, target, keep, used=used, cross_entropy=0.7, dice=0.4, squared_error=1.3, mse_on=mse_on,
        dice_per_sample=per_sample, **options,
    )  # fmt: skip
    assert found.dtype is torch.float64
    assert float(found) == pytest.approx(
        reference(case, activation, weights, (0.7, 0.4, 1.3), mse_on, per_sample), rel=1e-12
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equation_2_is_what_the_paper_prints(shape, activation):
    case = make_case(shape, activation)
    weights = (0.314, 0.685)
    found, kept = entries(*case, activation)
    total = sum(0.3 * y * math.log(p) for *_, p, y in found)
    total += sum(weights[c - 1] * y * p / (y + p) for _, c, _, p, y in found if c > 0)
    student, target, keep, used = tensors(case)
    value = paper_equation_2(
        student, target, keep, activation=activation, class_weights=torch.tensor(weights).double(), used=used
    )
    assert float(value) == pytest.approx(-total / kept, rel=1e-7)


def test_equation_2_is_finite_where_prediction_and_target_are_zero():
    logits = torch.tensor([[[[200.0]], [[-200.0]]]], requires_grad=True)
    target, keep = torch.tensor([[[[1.0]], [[0.0]]]]), torch.ones(1, 1, 1, dtype=torch.bool)
    value = paper_equation_2(logits, target, keep, activation="softmax", class_weights=torch.tensor([1.0]))
    value.backward()
    assert value == 0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (3, 3, 4, 3)])
def test_the_released_code_is_reproduced(shape):
    """The formulas of the release with torch's own losses: BCE, weighted Dice, multiplier, squared error of logits."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    y = torch.nn.functional.one_hot(torch.randint(0, 3, (shape[0], *shape[2:]), generator=generator), 3)
    y = y.movedim(-1, 1).double()
    p, multiplier, smooth = z.sigmoid(), -0.07, 1e-5

    def dice(k):
        a, b = p[:, k].flatten(1), y[:, k].flatten(1)
        return 1 - ((2 * (a * b).sum(1) + smooth) / (a.sum(1) + b.sum(1) + smooth)).mean()

    want = 0.3 * torch.nn.BCEWithLogitsLoss()(z, y) + 0.5 * (LIVER * dice(1) + (1 - LIVER) * dice(2))
    want = want + multiplier * (p.mean() - y.mean()) + 0.2 * torch.nn.MSELoss()(z, y)

    keep = torch.ones_like(z[:, 0], dtype=torch.bool)
    weights = torch.tensor([LIVER, 1 - LIVER], dtype=torch.float64)
    found = consistency_loss(
        z, y, keep, activation="sigmoid", class_weights=weights, mse_on="logit", dice_per_sample=True
    )
    residual = mean_excess(activate(z, "sigmoid"), y, keep).view(1)
    found = found + augmented_lagrangian(
        residual, torch.tensor([multiplier], dtype=torch.float64), torch.tensor([True]), rho=0
    )
    assert float(found) == pytest.approx(float(want), abs=1e-12)


@pytest.mark.parametrize("function", [consistency_loss, paper_equation_2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_right_and_the_target_gets_none(function, activation):
    student, target, keep, used = tensors(make_case((2, 3, 2, 3), activation))
    student.requires_grad_(), target.requires_grad_()
    options = {"activation": activation, "class_weights": torch.tensor([0.3, 0.7]).double(), "used": used}
    assert torch.autograd.gradcheck(lambda z: function(z, target, keep, **options), (student,))
    function(student, target, keep, **options).backward()
    assert target.grad is None
    assert not student.grad.movedim(1, -1)[~keep].any()
    assert student.grad.any()


@pytest.mark.parametrize("function", [consistency_loss, paper_equation_2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_used_may_be_poison_and_nothing_used_is_nothing_lost(function, activation):
    student, target, keep, _ = tensors(make_case((2, 3, 4, 5), activation))
    options = {"activation": activation, "class_weights": torch.tensor([0.3, 0.7]).double()}
    poison = torch.where(keep.unsqueeze(1), student, float("nan"))
    bad_target = torch.where(keep.unsqueeze(1), target, float("inf"))
    assert torch.equal(function(poison, bad_target, keep, **options), function(student, target, keep, **options))
    poison.requires_grad_()
    function(poison, bad_target, keep, **options).backward()
    assert poison.grad.isfinite().all()
    poison.grad = None
    value = function(poison, bad_target, torch.zeros_like(keep), **options)
    value.backward()
    assert value == 0
    assert not poison.grad.any()


@pytest.mark.parametrize("function", [consistency_loss, paper_equation_2])
def test_half_precision_is_computed_in_float32(function):
    student, target, keep, _ = tensors(make_case((2, 3, 4, 5), "softmax"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = function(
            student.half(), target.half(), keep, activation="softmax", class_weights=torch.tensor([0.5, 0.5])
        )
    assert value.dtype is torch.float32
    assert value.isfinite()


def test_wrong_shapes_are_refused():
    z, keep, weights = torch.zeros(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool), torch.ones(1)
    with pytest.raises(ValueError, match="consistency_loss: shapes must be equal"):
        consistency_loss(z, z[:, :1], keep, activation="softmax", class_weights=weights)
    with pytest.raises(ValueError, match=r"paper_equation_2: keep has one value per voxel, so \(1, 3, 3\); got"):
        paper_equation_2(z, z, keep[:, :2], activation="softmax", class_weights=weights)
    with pytest.raises(ValueError, match="size_band: shapes must be equal"):
        size_band(torch.zeros(2), torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="augmented_lagrangian: shapes must be equal"):
        augmented_lagrangian(torch.zeros(2), torch.zeros(1), torch.zeros(2, dtype=torch.bool), rho=1)


def test_targets_are_soft_or_hard_and_used_from_the_threshold_on():
    logits = torch.tensor([[2.0, 0.1], [0.0, 0.0]]).log_softmax(0).view(1, 2, 1, 2).requires_grad_()
    soft, used = teacher_target(logits, activation="softmax", hard=False, threshold=0.6)
    torch.testing.assert_close(soft, logits.softmax(1))
    assert not soft.requires_grad
    assert used.tolist() == [[[[True, False]]]]
    hard, used = teacher_target(logits, activation="softmax", hard=True)
    assert hard[0, :, 0].tolist() == [[1, 1], [0, 0]]
    assert used.all()
    hard, used = teacher_target(torch.tensor([[3.0, -0.1]]).view(1, 2, 1, 1), activation="sigmoid", hard=True,
                                threshold=0.9)  # fmt: skip
    assert hard.flatten().tolist() == [1, 0]
    assert used.flatten().tolist() == [True, False]


# ---------------------------------------------------------------- constraints


def test_fractions_are_means_over_the_batch():
    p = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(class_fractions(p), torch.stack([p[:, k].mean() for k in range(3)]))


def test_bands_are_violated_outside_and_open_for_classes_without_a_size():
    fractions = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([0.4, 0.4, 0.0], dtype=torch.float64)
    residuals = size_band(fractions, sizes, 0.1 * sizes)
    torch.testing.assert_close(residuals, torch.tensor([0.06, -0.24, 0, -0.14, 0.16, 0]).double(), atol=1e-8, rtol=0)
    residuals[[0, 2, 4]].sum().backward()  # an upper, an open and a lower bound
    assert fractions.grad.tolist() == [1, -1, 0]


def test_a_softmax_satisfies_the_equality_of_the_released_code_whatever_it_predicts():
    z = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    y = torch.nn.functional.one_hot(torch.randint(0, 4, (2, 3, 3)), 4).movedim(-1, 1).double()
    keep = torch.rand(2, 3, 3) < 0.7
    assert float(mean_excess(z.softmax(1), y, keep)) == pytest.approx(0, abs=1e-15)
    mask = keep.unsqueeze(1).expand_as(z)
    want = z.sigmoid()[mask].mean() - y[mask].mean()
    assert float(mean_excess(z.sigmoid(), y, keep)) == pytest.approx(float(want), abs=1e-14)
    assert mean_excess(z.sigmoid(), y, torch.zeros_like(keep)) == 0


def test_logits_are_free_up_to_their_limit():
    z = torch.tensor([3.0, -5.0, 1.0, 0.0]).view(1, 2, 1, 2)
    assert float(logit_excess(z, 2.0)) == pytest.approx((1 + 3) / 4)
    assert float(logit_excess(z, 5.0)) == 0


@pytest.mark.parametrize(("residual", "value", "slope"), [(-0.5, -0.0225, 0), (-0.1, -0.02, 0.1), (0.2, 0.1, 0.7)])
def test_the_hand_case_of_an_inequality(residual, value, slope):
    g = torch.tensor([residual], dtype=torch.float64, requires_grad=True)
    multiplier = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    found = augmented_lagrangian(g, multiplier, torch.tensor([False]), rho=2)
    found.backward()
    assert float(found.detach()) == pytest.approx(value, abs=1e-12)
    assert float(g.grad) == pytest.approx(slope, abs=1e-12)
    assert multiplier.grad is None


def test_equalities_and_the_plain_lagrangian():
    r, m = torch.tensor([0.2, -0.4]).double(), torch.tensor([0.5, -1.0]).double()
    both = torch.tensor([False, True])
    assert float(augmented_lagrangian(r, m, both, rho=0)) == pytest.approx(0.1 + 0.4)
    inequality = ((0.5 + 3 * 0.2) ** 2 - 0.25) / 6
    assert float(augmented_lagrangian(r, m, both, rho=3)) == pytest.approx(inequality + 0.4 + 1.5 * 0.16)
    assert float(augmented_lagrangian(r[:0], m[:0], both[:0], rho=3)) == 0


# ---------------------------------------------------------------- two ranks


def everything(z, y, keep, per_sample=False):
    """All that a step adds up, with different weights, so that no part can stand in for another."""
    options = {"activation": "softmax", "class_weights": torch.tensor([0.3, 0.6]).double()}
    fractions = class_fractions(z.softmax(1))[1:]
    wanted = torch.tensor([0.1, 0.5]).double()
    band = size_band(fractions, wanted, 0.1 * wanted)
    residuals = torch.cat([band, mean_excess(z.sigmoid(), y, keep).view(1), logit_excess(z, 0.5).view(1)])
    equality = torch.tensor([False] * 4 + [True, False])
    return (
        consistency_loss(z, y, keep, dice_per_sample=per_sample, **options)
        + 2 * paper_equation_2(z, y, keep, **options)
        + 3 * augmented_lagrangian(residuals, torch.full((6,), 0.2).double(), equality, rho=5)
    )


@pytest.mark.parametrize("per_sample", [False, True])
def test_two_ranks_have_the_loss_and_the_gradient_of_one(monkeypatch, per_sample):
    student, target, keep, _ = tensors(make_case((4, 3, 4, 5), "softmax"))
    whole = student.clone().requires_grad_()
    value = everything(whole, target, keep, per_sample)
    value.backward()

    def on_rank(rank):
        rows = slice(0, 1) if rank == 0 else slice(1, 4)  # unevenly divided
        own = student[rows].clone().requires_grad_()
        loss = everything(own, target[rows], keep[rows], per_sample)
        loss.backward()
        return loss.item(), own.grad

    (a, grad_a), (b, grad_b) = on_two_ranks(monkeypatch, on_rank)
    assert (a + b) / 2 == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat([grad_a, grad_b]) / 2, whole.grad)


def test_multipliers_of_ranks_with_different_residuals_ascend_alike(monkeypatch):
    def on_rank(rank):
        options = {"rate": 0.5, "largest": 2.0, "start": 0.0, "decay": 0.0, "device": torch.device("cpu")}
        multipliers = Multipliers(("a", "b"), ("h",), **options)
        multipliers.step(torch.tensor([0.4, -0.4, -0.6]) if rank == 0 else torch.tensor([0.8, 0.8, 0.0]))
        return multipliers.values

    first, second = on_two_ranks(monkeypatch, on_rank)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.tensor([0.3, 0.1, -0.15]))
