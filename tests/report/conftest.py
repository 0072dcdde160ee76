"""A toy dataset to report on, and one finished report."""

from __future__ import annotations

import pytest
from reporting import World, report


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path)
    made.environment(monkeypatch)
    return made


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A report on a baseline, a method with two students and two seeds, and a run without validation."""
    world = World(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        world.environment(monkeypatch)
        world.train("SupervisedTrainer", quality=0.8)
        for seed in (0, 1):
            world.train("CrossTeachingTrainer", f"s{seed}", seed, ("CNN", "Transformer"), quality=0.95, beta=2.0)
        world.train("MeanTeacherTrainer", cases=())
        folder = report(world.results, "-o", world.root / "report")
    return folder
