"""Learning rates step by step beside nnU-Net's own schedulers; ramps beside the published programs."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset

from nnunet_collab.core.schedules import poly_with_warmup, sigmoid_ramp
from nnunet_collab.methods.crossmatch import CrossMatchSettings, CrossMatchTrainer

LR = 0.03


def rates(make_scheduler, steps):
    """Learning rates that a scheduler of nnU-Net sets at the given steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], LR)
    scheduler = make_scheduler(optimizer)
    found = []
    for step in steps:
        scheduler.step(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("total", [1, 2, 1000])
@pytest.mark.parametrize("power", [0.9, 2.0])
def test_without_warmup_it_is_nnunets_polynomial(total, power):
    want = rates(lambda optimizer: PolyLRScheduler(optimizer, LR, total, power), range(total))
    assert [LR * poly_with_warmup(i, total, power=power) for i in range(total)] == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize(("total", "warmup"), [(1000, 50), (10, 1), (10, 9)])
def test_with_warmup_it_is_nnunets_linear_rise_and_then_the_shifted_polynomial(total, warmup):
    rise = rates(lambda optimizer: Lin_incr_LRScheduler(optimizer, LR, warmup), range(warmup))
    fall = rates(lambda optimizer: PolyLRScheduler_offset(optimizer, LR, total, warmup), range(warmup, total))
    found = [LR * poly_with_warmup(i, total, warmup=warmup) for i in range(total)]
    assert found == pytest.approx(rise + fall, rel=1e-14)
    assert max(found) == found[warmup - 1] == found[warmup] == LR  # the top is reached, and left after one step


def test_a_run_that_is_all_warmup_only_rises():
    assert [poly_with_warmup(i, 4, warmup=4) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_a_ramp_rises_from_exp_of_minus_five_to_one_and_stays_there():
    values = [sigmoid_ramp(i, 100) for i in range(150)]
    assert values[0] == math.exp(-5)
    assert values[50] == pytest.approx(math.exp(-5 / 4), rel=1e-15)
    assert all(a < b for a, b in itertools.pairwise(values[:101]))
    assert values[100:] == [1.0] * 50


@pytest.mark.parametrize("length", [0, -1])
def test_a_ramp_without_length_is_over(length):
    assert sigmoid_ramp(0, length) == sigmoid_ramp(0, length, steps=200) == 1.0


@pytest.mark.parametrize(
    ("iteration", "weight"),
    [(0, 6.7379e-4), (3000, 0.0017422), (7500, 0.0060052), (15000, 0.0286505), (22500, 0.0731616), (30000, 0.1)],
)
def test_the_weight_of_cross_teaching(iteration, weight):
    assert 0.1 * sigmoid_ramp(iteration, 30000, steps=200) == pytest.approx(weight, rel=1e-4)


@pytest.mark.parametrize("length", [200, 1000, 30000])
def test_a_stepwise_ramp_is_that_of_the_published_program_at_every_iteration(length):
    stride = length // 200

    def published(t):  # SSL4MIS: the ramp of t // 150 over 200
        phase = 1.0 - min(t // stride, 200) / 200
        return math.exp(-5.0 * phase * phase)

    for t in range(0, length + 1000, 1 if length <= 1000 else 75):  # the first iterations of all steps among them
        assert sigmoid_ramp(t, length, steps=200) == pytest.approx(published(t), rel=1e-13)


@pytest.mark.parametrize("length", [1, 7, 250, 999])
def test_steps_need_not_divide_the_length(length):
    values = [sigmoid_ramp(t, length, steps=200) for t in range(length + 1)]
    exact = [sigmoid_ramp(t, length) for t in range(length + 1)]
    assert all(value <= smooth for value, smooth in zip(values, exact, strict=True))  # a step lags behind
    assert len(set(values)) == min(length, 200) + 1
    assert values == sorted(values)
    assert values[-1] == 1.0


@pytest.mark.parametrize(
    ("tau", "iteration", "want"),
    [
        (0.85, 0, 0.58988),
        (0.85, 4500, 0.59614),
        (0.85, 9000, 0.62353),
        (0.75, 0, 0.52103),
        (0.75, 14000, 0.66816),
        (0.85, 17000, math.log(2)),
    ],
)
def test_the_threshold_of_crossmatch_for_la(tau, iteration, want):
    settings = CrossMatchSettings(tau=tau, tau_schedule="la_code")
    trainer = SimpleNamespace(settings=settings, iteration=iteration)
    assert CrossMatchTrainer.threshold(trainer) == pytest.approx(want, abs=5e-6)


def test_the_threshold_of_crossmatch_is_constant_unless_told_otherwise():
    for iteration in (0, 9000):
        trainer = SimpleNamespace(settings=CrossMatchSettings(tau=0.95), iteration=iteration)
        assert CrossMatchTrainer.threshold(trainer) == 0.95
