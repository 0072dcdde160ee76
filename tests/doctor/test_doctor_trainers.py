"""`nnunet_collab doctor`: nnU-Net finds our trainers, and no other of their names."""

from __future__ import annotations

import os
import shutil
import sys
from types import SimpleNamespace

import pytest

from nnunet_collab.core.shipped import doorway_folder, doorways, extended
from nnunet_collab.doctor import facts, trainers
from nnunet_collab.doctor.probe import Outcome

# nnU-Net's search takes half a second for each.
FEW = {name: doorways()[name] for name in ("CTRCLTrainer", "SupervisedTrainer")}


def test_the_variable_must_contain_the_doorways(tmp_path):
    ours = doorway_folder()
    assert [f.status for f in trainers.check_variable(f"{tmp_path}{os.pathsep}{ours}{os.sep}")] == ["ok"]
    (unset,) = trainers.check_variable("")
    assert unset.text == f"nnUNet_extTrainer is not set, so it does not contain {ours}"
    assert unset.fix.startswith('eval "$(nnunet_collab env)"')
    (other,) = trainers.check_variable(str(tmp_path))
    assert (other.status, other.text) == ("FAIL", f"nnUNet_extTrainer does not contain {ours}")


def test_a_folder_of_the_variable_that_is_not_there_is_named(tmp_path):
    _, finding = trainers.check_variable(f"{doorway_folder()}{os.pathsep}{tmp_path / 'gone'}")
    assert (finding.status, finding.text) == ("warn", f"nnUNet_extTrainer: there is no folder {tmp_path / 'gone'}")


def search(*others, expected=FEW):
    """The findings when nnU-Net's real finder searches other folders before ours."""
    value = extended(os.pathsep.join(map(str, others)), doorway_folder())
    return list(trainers.check_trainers(Outcome(facts.trainer_facts(expected, value)), expected))


@pytest.fixture
def other(tmp_path, monkeypatch):
    """An empty folder to search first, and a variable that is as it was after the test."""
    monkeypatch.setenv("nnUNet_extTrainer", "")
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


@pytest.mark.slow
def test_nnunet_finds_our_trainers(other):
    (finding,) = search(other, expected=doorways())
    assert finding.status == "ok"
    assert finding.text.startswith(f"nnU-Net finds {len(doorways())} of {len(doorways())} trainers")


def test_a_copy_of_our_doorways_elsewhere_is_no_fault(other):
    shutil.copy(doorway_folder() / "CTRCLTrainer.py", other)
    assert [finding.status for finding in search(other)] == ["ok"]


def test_a_trainer_of_the_same_name_in_another_folder_is_named(other):
    (other / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class CTRCLTrainer(nnUNetTrainer):\n    pass\n"
    )
    finding = search(other)[-1]
    assert finding.status == "FAIL"
    assert finding.text == f"CTRCLTrainer is shadowed by another trainer of that name in {other}"
    assert finding.fix == f"Remove that folder from nnUNet_extTrainer, or put {doorway_folder()} before it."


def test_a_file_that_breaks_the_search_is_named(other):
    (other / "a.py").write_text("import no_such_package\n")
    finding = search(other)[-1]
    assert finding.status == "FAIL"
    assert "not found by nnU-Net: ModuleNotFoundError: No module named 'no_such_package'" in finding.text
    assert finding.fix == f"Remove {other} from nnUNet_extTrainer, or put it last."


def test_a_stock_trainer_of_the_same_name_is_named(other, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunet_collab.methods.made_up", SimpleNamespace(nnUNetTrainer=object()))
    (finding,) = search(other, expected={"nnUNetTrainer": "nnunet_collab.methods.made_up"})
    assert finding.status == "FAIL"
    assert finding.text.startswith("nnUNetTrainer is shadowed by a trainer in nnunetv2 itself (nnunetv2.training.")


def test_a_trainer_that_is_nowhere_is_a_failure(other):
    (finding,) = search(other, expected={"NoSuchTrainer": "nnunet_collab.methods.ctrcl"})
    assert finding.status == "FAIL"
    assert finding.text.startswith(
        "NoSuchTrainer is not found by nnU-Net: RuntimeError: Could not find requested nnunet"
    )


def test_a_search_that_dies_is_a_failure():
    (finding,) = trainers.check_trainers(Outcome(error="crashed with signal 11"), {"CTRCLTrainer": "m"})
    assert (finding.status, finding.text) == ("FAIL", "nnU-Net's search for trainers: crashed with signal 11")
