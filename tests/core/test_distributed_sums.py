"""Sums over ranks: two processes with half a batch each against one with all of it."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from nnunet_collab.core.distributed import global_mean, sum_over_ranks, world_size

# Seven elements, unequally shared: (values, which of them count), by rank.
SHARES = (
    (torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])),
    (torch.tensor([32.0, 64.0]), torch.tensor([0.0, 1.0])),
)


def share_of_mean(parameter, values, counted):
    """A rank's share of the mean of `sin(parameter * value)` over the counted elements of all ranks."""
    return global_mean((torch.sin(parameter * values) * counted).sum(), counted.sum())


def in_a_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(SHARES))
    values, counted = SHARES[rank]
    parameter = torch.tensor(0.3, requires_grad=True)
    mean = share_of_mean(parameter, values, counted)
    mean.backward()

    # A product of sums, as prototypes are: every rank's loss depends on every rank's element.
    own = torch.tensor([2.0 + rank, 3.0], requires_grad=True)
    total = sum_over_ranks(own)
    (total[0] * total[1] * (1 + rank)).backward()

    empty = global_mean(torch.zeros(()), torch.zeros((), dtype=torch.int64))
    result = {"world": world_size(), "mean": mean.detach(), "grad": parameter.grad, "total": total.detach()}
    torch.save({**result, "own_grad": own.grad, "own": own.detach(), "empty": empty}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = torch.multiprocessing.spawn(in_a_rank, (str(folder),), nprocs=len(SHARES), join=False)
    deadline = time.monotonic() + 300
    while not processes.join(timeout=5):  # True when both have ended
        assert time.monotonic() < deadline, "the processes wait for each other"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SHARES))]


def test_shares_average_to_the_mean_of_the_whole_batch_and_so_do_their_gradients(results):
    parameter = torch.tensor(0.3, requires_grad=True, dtype=torch.float64)
    values, counted = (torch.cat(parts).double() for parts in zip(*SHARES, strict=True))
    mean = torch.sin(parameter * values)[counted > 0].mean()
    mean.backward()
    assert [r["world"] for r in results] == [2, 2]
    assert float(sum(r["mean"] for r in results) / 2) == pytest.approx(float(mean), rel=1e-6)
    assert float(sum(r["grad"] for r in results) / 2) == pytest.approx(float(parameter.grad), rel=1e-6)


def test_a_sum_is_the_same_on_every_rank_and_its_gradient_that_of_all_losses(results):
    for result in results:
        assert result["total"].tolist() == [5.0, 6.0]  # 2 + 3, 3 + 3
        assert result["own"].tolist()[1] == 3.0  # the summand itself is not written to
        assert result["own_grad"].tolist() == [6.0 * 3, 5.0 * 3]  # of (1 + 2) * total_0 * total_1


def test_an_empty_mean_is_zero(results):
    assert [float(r["empty"]) for r in results] == [0.0, 0.0]
    assert float(global_mean(torch.zeros(()), torch.tensor(0))) == 0.0


def test_in_a_single_process_it_is_the_plain_mean():
    assert world_size() == 1
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert sum_over_ranks(tensor) is tensor
    values, counted = SHARES[0]
    parameter = torch.tensor(0.3, requires_grad=True)
    share_of_mean(parameter, values, counted).backward()
    want = (values * torch.cos(0.3 * values))[counted > 0].mean()
    assert float(parameter.grad) == pytest.approx(float(want), rel=1e-6)
