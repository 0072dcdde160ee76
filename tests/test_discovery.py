"""nnU-Net's own finder must find every doorway and hand back the class we import."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_collab.core.shipped import doorway_folder, doorways

TRAINERS = Path(__file__).parents[1] / "trainers"
NAMES = sorted(path.stem for path in TRAINERS.glob("*.py"))


def test_there_are_doorways_and_we_name_all_of_them():
    assert NAMES
    assert sorted(doorways()) == NAMES
    assert doorway_folder() == TRAINERS.resolve()


@pytest.fixture(autouse=True)
def _no_module_is_loaded_while_nnunet_looks_at_all_of_them():
    """Other tests leave modules that load further ones when nnU-Net asks them where they are, which ends its loop."""
    count = 0
    while count != len(sys.modules):
        count = len(sys.modules)
        for module in list(sys.modules.values()):
            getattr(module, "__file__", None), getattr(module, "__path__", None)


@pytest.mark.parametrize("name", NAMES)
def test_found_by_nnunet_as_the_same_class_every_time(name, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))
    found = recursive_find_trainer_class_by_name(name)
    home = importlib.import_module(found.__module__)
    assert found.__module__.startswith("nnunet_collab.methods.")
    assert found.__module__ == doorways()[name]
    assert found is getattr(home, name) is recursive_find_trainer_class_by_name(name)
    assert pickle.loads(pickle.dumps(found)) is found
