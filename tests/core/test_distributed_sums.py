"""Sums over ranks: two ranks with unequal shares of a batch against one with all of it.

The ranks are threads (`on_every_rank`), which is fast; real processes with gloo train in the end-to-end tests.
"""

from __future__ import annotations

import pytest
import torch

from nnunet_collab.core.distributed import all_reduce_sum, global_mean, world_size

# Seven elements, unequally shared: (values, which of them count), by rank.
SHARES = (
    (torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])),
    (torch.tensor([32.0, 64.0]), torch.tensor([0.0, 1.0])),
)


def share_of_mean(rank):
    """A rank's share of the mean of sin(0.3 * value) over all counted elements, and its derivative to the 0.3."""
    values, counted = SHARES[rank]
    parameter = torch.tensor(0.3, requires_grad=True)
    mean = global_mean((torch.sin(parameter * values) * counted).sum(), counted.sum())
    mean.backward()
    return mean.item(), parameter.grad.item()


def test_shares_average_to_the_mean_of_the_whole_batch_and_so_do_their_gradients(on_every_rank):
    parameter = torch.tensor(0.3, requires_grad=True, dtype=torch.float64)
    values, counted = (torch.cat(parts).double() for parts in zip(*SHARES, strict=True))
    mean = torch.sin(parameter * values)[counted > 0].mean()
    mean.backward()
    means, gradients = zip(*on_every_rank(share_of_mean), strict=True)
    assert sum(means) / 2 == pytest.approx(mean.item(), rel=1e-6)
    assert sum(gradients) / 2 == pytest.approx(parameter.grad.item(), rel=1e-6)


def test_a_sum_is_the_same_on_every_rank_and_its_gradient_that_of_all_losses(on_every_rank):
    def product_of_sums(rank):  # as prototypes are: every rank's loss depends on every rank's summand
        own = torch.tensor([2.0 + rank, 3.0], requires_grad=True)
        total = all_reduce_sum(own)
        (total[0] * total[1] * (1 + rank)).backward()
        return total.tolist(), own.tolist(), own.grad.tolist()

    for rank, (total, own, gradient) in enumerate(on_every_rank(product_of_sums)):
        assert total == [5.0, 6.0]
        assert own == [2.0 + rank, 3.0]  # the summand itself is not written to
        assert gradient == [6.0 * 3, 5.0 * 3]  # of (1 + 2) * total[0] * total[1]


def test_a_mean_of_nothing_is_zero_on_every_rank(on_every_rank):
    def nothing(_):
        local_sum = torch.zeros((), requires_grad=True)
        mean = global_mean(local_sum, torch.tensor(0))
        mean.backward()
        return mean.item(), local_sum.grad.isfinite().item()

    assert on_every_rank(nothing) == [(0.0, True)] * 2


def test_the_world_is_counted(on_every_rank):
    assert on_every_rank(lambda _: world_size()) == [2, 2]


def test_in_a_single_process_it_is_the_plain_mean():
    assert world_size() == 1
    assert global_mean(torch.zeros(()), torch.tensor(0)).item() == 0.0
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert all_reduce_sum(tensor) is tensor
    values, counted = SHARES[0]
    mean, gradient = share_of_mean(0)
    assert mean == pytest.approx(torch.sin(0.3 * values)[counted > 0].mean().item(), rel=1e-6)
    assert gradient == pytest.approx((values * torch.cos(0.3 * values))[counted > 0].mean().item(), rel=1e-6)
