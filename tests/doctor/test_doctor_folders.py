"""`nnunet_collab doctor`: nnU-Net's three folders."""

from __future__ import annotations

import shutil
import tempfile
from types import SimpleNamespace

import pytest

from nnunet_collab.doctor import folders
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.folders import PREPROCESSED, RAW, RESULTS

VARIABLES = (RAW, PREPROCESSED, RESULTS)


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Enough of it, whatever this computer's disks have."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50e9))


def test_folders_that_are_there_are_ok_and_missing_results_too(tmp_path):
    for name in VARIABLES:
        finding = folders.check_folder(name, str(tmp_path))
        assert finding.status == "ok", finding
        assert finding.text.startswith(f"{name}: {tmp_path}, writable, ")
    finding = folders.check_folder("nnUNet_results", str(tmp_path / "a" / "b"))
    assert finding.status == "ok"
    assert "(will be created)" in finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_is_not_set(name, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    (finding,) = [found for found in folders.check_folders() if found.text.startswith(name)]
    assert finding == Finding("FAIL", f"{name} is not set", f"export {name}=/path/to/{name}")


@pytest.mark.parametrize("name", VARIABLES[:2])
def test_a_folder_that_is_missing(name, tmp_path):
    gone = tmp_path / "gone"
    assert folders.check_folder(name, str(gone)) == Finding(
        "FAIL", f"{name}: there is no folder {gone}", f'mkdir -p "{gone}"'
    )


@pytest.mark.parametrize("name", VARIABLES)
def test_a_file_is_no_folder(name, tmp_path):
    (tmp_path / "file").touch()
    assert folders.check_folder(name, str(tmp_path / "file")).text == f"{name}: {tmp_path / 'file'} is a file"


@pytest.mark.parametrize(("name", "status"), [(VARIABLES[0], "warn"), (VARIABLES[1], "FAIL"), (VARIABLES[2], "FAIL")])
def test_a_folder_that_is_read_only(name, status, tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    finding = folders.check_folder(name, str(tmp_path))
    assert (finding.status, finding.text) == (status, f"{name}: {tmp_path} is not writable")


@pytest.mark.parametrize(("free_gb", "status"), [(0.5, "FAIL"), (5, "warn"), (50, "ok")])
def test_a_disk_that_is_full(free_gb, status, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_gb * 1e9))
    assert folders.check_folder("nnUNet_results", str(tmp_path)).status == status
    assert folders.check_folder("nnUNet_raw", str(tmp_path)).status == "ok"  # nothing is written there
