"""What every test starts from: one thread, no settings of the user's. Files dealt to processes. Ranks as threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

# Before torch is imported. Tiny networks are slower on several threads, and every core has a process that tests.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
SLOWER = {
    line for line in Path(__file__).with_name("slower_tests.txt").read_text().splitlines() if not line.startswith("#")
}
TOGETHER = {"test_e2e_semi_supervised.py": "semi-supervised"}  # end-to-end tests share workspaces: one process for each


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.nodeid.partition("[")[0] in SLOWER:
            item.add_marker("slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of pytest-xdist: a file's tests run in one process, which makes what they share once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWorkspace(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return TOGETHER.get(Path(file).name, "e2e") if "e2e" in Path(file).parts else file

    config.option.loadscopereorder = False  # by number of tests, which says nothing of how long they take
    return ByWorkspace(config, log)


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
    from nnunet_collab.core import distributed  # here, because the process that deals out the tests needs no torch

    ranks = 2
    barrier, here, slots = threading.Barrier(ranks, timeout=60), threading.local(), [None] * ranks

    def all_reduce(tensor):
        slots[here.rank] = tensor.clone()
        barrier.wait()
        total = sum(slots)
        barrier.wait()
        tensor.copy_(total)

    fake = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: ranks,
        get_rank=lambda: here.rank,
        all_reduce=all_reduce,
    )

    def run(function):
        def as_rank(rank):
            here.rank = rank
            return function(rank)

        with monkeypatch.context() as patch, ThreadPoolExecutor(ranks) as pool:
            patch.setattr(distributed, "dist", fake)
            return list(pool.map(as_rank, range(ranks)))

    return run
