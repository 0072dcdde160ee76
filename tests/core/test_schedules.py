"""The learning-rate schedule, step by step beside nnU-Net's own schedulers."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset

from nnunet_collab.core.schedules import poly_with_warmup

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
    found = [LR * poly_with_warmup(i, total, warmup_iterations=warmup) for i in range(total)]
    assert found == pytest.approx(rise + fall, rel=1e-14)
    assert max(found) == found[warmup - 1] == found[warmup] == LR  # the top is reached, and left after one step


def test_a_run_that_is_all_warmup_only_rises():
    assert [poly_with_warmup(i, 4, warmup_iterations=4) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
