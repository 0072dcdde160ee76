"""Multipliers ascend as the equations say, stay in their sets, and solve a problem whose solution is known."""

from __future__ import annotations

import pytest
import torch

from nnunet_collab.losses.duality import augmented_lagrangian
from nnunet_collab.methods.ldc.multipliers import Multipliers, RunningMean

CPU = torch.device("cpu")


def make(inequalities=("a", "b"), equalities=("h",), **changes):
    options = {"rate": 0.5, "largest": 2.0, "start": 0.0, "decay": 0.0, **changes}
    return Multipliers(inequalities, equalities, device=CPU, **options)


def close(found, *want):
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float32))


def test_a_running_mean_is_the_mean_and_then_an_average():
    mean = RunningMean(1, 0.75, CPU)
    values, want = [4.0, 2.0, 9.0, 1.0, 7.0, 3.0], None
    for number, value in enumerate(values, start=1):
        mean.update(torch.tensor([value]))
        decay = min(1 - 1 / number, 0.75)
        want = value if want is None else decay * want + (1 - decay) * value
        assert float(mean.value) == pytest.approx(want)
        if number <= 4:
            assert want == pytest.approx(sum(values[:number]) / number)


def test_invalid_values_are_not_taken_in():
    mean = RunningMean(2, 0.9, CPU)
    mean.update(torch.tensor([5.0, 5.0]), torch.tensor(False))
    assert mean.updates == 0
    mean.update(torch.tensor([1.0, 2.0]))
    mean.update(torch.tensor([float("nan"), 2.0]), torch.tensor(False))
    close(mean.value, 1, 2)


def test_inequalities_rise_while_violated_and_fall_to_zero_and_equalities_go_either_way():
    m = make()
    m.step(torch.tensor([0.4, -0.4, -0.6]))
    close(m.values, 0.2, 0, -0.3)
    m.step(torch.tensor([0.2, 0.8, 0.2]))
    close(m.values, 0.3, 0.4, -0.2)
    m.step(torch.tensor([-9.0, 9.0, -9.0]))
    close(m.values, 0, 2, -2)


def test_inequalities_follow_their_running_residual_and_equalities_the_last():
    m = make(decay=0.9, start=1.0)
    m.step(torch.tensor([0.4, 0.0, 0.4]))
    m.step(torch.tensor([-0.2, 0.0, -0.2]))
    close(m.residuals.value, 0.1, 0, -0.2)
    close(m.values, 1 + 0.5 * 0.4 + 0.5 * 0.1, 1, 1 + 0.5 * 0.4 - 0.5 * 0.2)
    m.reset()
    close(m.values, 1, 1, 1)


def test_kkt_names_the_worst_constraint():
    m = make(start=0.5)
    m.values[1] = -0.25
    m.residuals.value = torch.tensor([-0.2, 0.1, -0.7])
    assert m.kkt() == pytest.approx({"primal": 0.7, "dual": 0.25, "slackness": 0.1})
    assert m.as_plain() == {"a": 0.5, "b": -0.25, "h": 0.5}
    assert make((), ()).kkt() == {"primal": 0, "dual": 0, "slackness": 0}
    assert str(make().kkt()["dual"]) == "0.0"  # as it is printed


def test_the_state_goes_round():
    m, other = make(decay=0.9), make(decay=0.9)
    for step in range(3):
        m.step(torch.tensor([0.1, 0.3, -0.2]) * step)
    other.load_state_dict(m.state_dict())
    saved = m.state_dict()
    for one in (m, other):
        one.step(torch.tensor([0.2, -0.1, 0.7]))
    assert torch.equal(m.values, other.values)
    assert torch.equal(m.residuals.value, other.residuals.value)
    assert not torch.equal(saved["values"], m.values)  # a state is no view


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_a_known_optimum_and_its_multipliers_are_found(rho):
    """Min (x - 2)^2 + (y - 1)^2 with x <= 0.4, y <= 5, x + 2 y = 2: x = 0.4, y = 0.8, and y <= 5 is no matter."""
    point = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    m = make(rate=0.05, largest=50.0)
    optimizer = torch.optim.SGD([point], lr=0.05)
    for _ in range(1500):
        x, y = point
        residuals = torch.stack([x - 0.4, y - 5, x + 2 * y - 2])
        loss = (x - 2) ** 2 + (y - 1) ** 2 + augmented_lagrangian(residuals, m.values, m.equality, rho=rho)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        m.step(residuals)
    torch.testing.assert_close(point.detach(), torch.tensor([0.4, 0.8]).double(), atol=1e-4, rtol=0)
    # 2 (y - 1) + 2 nu = 0, 2 (x - 2) + lambda + nu = 0
    torch.testing.assert_close(m.values, torch.tensor([3.0, 0.0, 0.2]), atol=1e-3, rtol=0)
    assert max(m.kkt().values()) < 1e-3
