"""OMP_NUM_THREADS is honored on the CPU, where nnU-Net overrides it."""

from __future__ import annotations

import pytest
import torch
from tiny import make_trainer

from nnunet_collab.methods.supervised import SupervisedTrainer
from nnunet_collab.training.threads import honor_omp_threads


@pytest.fixture(autouse=True)
def _threads_of_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("value", "device", "want"),
    [("1", "cpu", 1), ("3", "cpu", 3), ("", "cpu", 2), ("0", "cpu", 2), ("many", "cpu", 2), ("1", "cuda", 2)],
)
def test_the_variable_decides_on_the_cpu_alone(monkeypatch, value, device, want):
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    honor_omp_threads(torch.device(device))
    assert torch.get_num_threads() == want


def test_every_trainer_honors_it_after_nnunet_has_set_its_own(monkeypatch, tmp_path):
    torch.set_num_threads(2)  # as nnU-Net's run_training does before it builds the trainer
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_trainer(SupervisedTrainer, tmp_path, monkeypatch, changes={"students": {}})
    assert torch.get_num_threads() == 1
