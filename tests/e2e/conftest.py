"""What the end-to-end tests share: one workspace, and trainings that run once however many tests look at them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from e2e_nnunet import TINY, Training, make_workspace, remove


class Trainings:
    """Trainings of CTRCLTrainer by kind of labels and configuration; two run at a time."""

    def __init__(self, workspace):
        self.workspace = workspace
        self.pool = ThreadPoolExecutor(2)
        self.futures = {}

    def start(self, kind, configuration):
        if (kind, configuration) not in self.futures:
            self.futures[kind, configuration] = self.pool.submit(self._train, kind, configuration)
        return self.futures[kind, configuration]

    def __getitem__(self, key):
        return self.start(*key).result()

    def _train(self, kind, configuration):
        # The first one is as users have it, with helper processes that are spawned, and keeps its probabilities.
        first = (kind, configuration) == ("plain", "2d")
        flags, options = (["--npz"], {"E2E_FORK": 0, "new": True}) if first else ([], {"workers": 1})
        done = self.workspace.train(kind, configuration, *flags, **options)
        return Training(self.workspace, kind, configuration, done)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("nnunet")
    yield make_workspace(root)
    remove(root)


@pytest.fixture(scope="session")
def trainings(request, workspace):
    trainings = Trainings(workspace)
    trainings.start("plain", "2d")  # most tests need it
    for item in request.session.items:
        if "trainings" in item.fixturenames and hasattr(item, "callspec") and "training" in item.callspec.params:
            trainings.start(*item.callspec.params["training"])
    yield trainings
    trainings.pool.shutdown(cancel_futures=True)


@pytest.fixture
def training(request, trainings):
    """A finished training; parametrize it with (kind, configuration)."""
    return trainings[request.param]


@pytest.fixture
def in_process(workspace, monkeypatch):
    """Makes trainers in this process, by kind of labels and configuration."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(
        trainer, kind, configuration, settings=TINY, group="in_process", *, fold=0, plans="nnUNetPlans", where=workspace
    ):
        from nnunetv2.run.run_training import get_trainer_from_args

        for name, value in where.variables(group, settings).items():
            monkeypatch.setenv(name, value)
        cpu = torch.device("cpu")
        return get_trainer_from_args(where.dataset(kind), configuration, fold, trainer, plans, device=cpu)

    for name in [name for name in os.environ if name.startswith("nnUNet_")]:
        monkeypatch.delenv(name)
    yield make
    torch.set_num_threads(threads)
