"""`nnunet_collab doctor`: which versions are supported, and which packages are missing."""

from __future__ import annotations

import pytest

from nnunet_collab.doctor import installation
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.probe import Outcome


@pytest.mark.parametrize(
    ("version", "parts"),
    [("2.8.1", (2, 8, 1)), ("2.15.0+cu132", (2, 15, 0)), ("3.0rc1", (3, 0)), ("", ()), ("dev", ())],
)
def test_numbers_of_a_version(version, parts):
    assert installation.numbers(version) == parts


@pytest.mark.parametrize(
    ("python", "status"), [((3, 9, 9), "FAIL"), ((3, 10, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "FAIL")]
)
def test_python_versions(python, status):
    finding = installation.check_python(python)
    assert finding.status == status
    assert finding.text == f"Python {'.'.join(map(str, python))} (supported 3.10 to 3.13)"
    assert ("venv" in finding.fix) == (status == "FAIL")


def packages(monkeypatch, **versions):
    monkeypatch.setattr(installation, "installed", lambda name: versions.get(name, ""))
    return {finding.text: finding for finding in installation.check_packages()}


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("2.7.9", "FAIL"),
        ("2.8.0", "ok"),
        ("2.8.11", "ok"),
        ("2.9.0", "FAIL"),
        ("2.9rc1", "FAIL"),
        ("2.11", "FAIL"),
        ("3.0", "FAIL"),
    ],
)
def test_versions_of_nnunet(version, status, monkeypatch):
    found = packages(monkeypatch, nnunetv2=version, torch="2.15.0", torchvision="0.29", timm="1.0.22")
    assert found[f"nnunetv2 {version} (supported >=2.8,<2.9)"].status == status
    assert found["torch 2.15.0, torchvision 0.29, timm 1.0.22"].status == "ok"


@pytest.mark.parametrize(
    ("version", "refused"), [("2.1.1", True), ("2.1.2", False), ("2.9.1+cu126", True), ("2.10.0", False)]
)
def test_versions_of_torch_that_nnunet_refuses(version, refused, monkeypatch):
    found = packages(monkeypatch, nnunetv2="2.8.1", torch=version, torchvision="0.29", timm="1.0.22")
    failures = [finding for finding in found.values() if finding.status == "FAIL"]
    assert [f.text for f in failures] == (
        [f"torch {version}: nnU-Net needs >=2.1.2 and refuses 2.9"] if refused else []
    )


def test_a_package_that_is_missing_is_named(monkeypatch):
    found = packages(monkeypatch, nnunetv2="2.8.1", torch="2.15.0", timm="1.0.22")
    finding = found["torch 2.15.0, torchvision is not installed, timm 1.0.22"]
    assert finding.status == "FAIL"
    assert finding.fix.startswith("python -m pip install")


def test_imports_that_work_are_ok():
    assert installation.check_imports(Outcome({"version": "2.15.0"}), Outcome()).status == "ok"


def test_a_finding_is_one_line_and_its_mend_is_indented():
    assert str(Finding("ok", "fine")) == "ok    fine"
    assert str(Finding("FAIL", "broken", "do this\nthen that")) == "FAIL  broken\n      do this\n      then that"
