"""nnU-Net's own finder must find every doorway and hand back the class we import."""

from __future__ import annotations

import importlib
import pickle
import subprocess
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


WITHOUT = """
import sys
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer  # which needs timm itself
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("timm", "transformers", "monai"):
            raise ImportError(f"{name} is imported although nothing of it is used")

for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "transformers", "monai")]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    __import__(name)
"""


def test_timm_is_imported_by_networks_that_are_of_it_alone():
    modules = sorted({line.split()[1] for name in NAMES for line in _imports(TRAINERS / f"{name}.py")})
    assert len(modules) >= 8
    ours = ["nnunet_collab.networks.semantic_fpn", "nnunet_collab.networks.pretrained", *modules]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *ours], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _imports(path):
    return [line for line in path.read_text().splitlines() if line.startswith("from nnunet_collab.methods")]
