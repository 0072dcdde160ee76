"""What every test starts from: no settings of the user's, the modules of this folder importable. Ranks as threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_collab.core import distributed


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in ("nnUNet_collab_settings", "nnUNet_collab_require_pretrained"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """nnU-Net's variables name folders that do not exist yet; this is that of the raw datasets."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def on_every_rank(monkeypatch):
    """Runs a function of the rank on two ranks at a time and returns both results; else there is one process."""
    ranks = 2
    barrier, here, slots = threading.Barrier(ranks, timeout=60), threading.local(), [None] * ranks

    def all_reduce(tensor):
        slots[here.rank] = tensor.clone()
        barrier.wait()
        total = sum(slots)
        barrier.wait()
        tensor.copy_(total)

    fake = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: ranks, all_reduce=all_reduce
    )

    def run(function):
        def as_rank(rank):
            here.rank = rank
            return function(rank)

        with monkeypatch.context() as patch, ThreadPoolExecutor(ranks) as pool:
            patch.setattr(distributed, "dist", fake)
            return list(pool.map(as_rank, range(ranks)))

    return run
