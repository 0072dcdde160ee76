"""Check Python and the packages: their versions, as recorded by pip, and whether they can be imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.probe import Outcome

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
NNUNET = ">=2.8,<2.9"
_INSTALL_NNUNET = f'python -m pip install "nnunetv2{NNUNET}"'
_REINSTALL_TORCH = 'python -m pip install --force-reinstall "torch>=2.1.2,!=2.9.*" torchvision'


def check_python(found: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether the package supports this version of Python."""
    oldest, newest = (".".join(map(str, limit)) for limit in (OLDEST_PYTHON, NEWEST_PYTHON))
    text = f"Python {'.'.join(map(str, found))} (supported {oldest} to {newest})"
    if OLDEST_PYTHON <= found[:2] <= NEWEST_PYTHON:
        return Finding("ok", text)
    return Finding("FAIL", text, f"Install into an environment with a supported version: python{newest} -m venv .venv")


def check_packages() -> Iterator[Finding]:
    """Whether nnU-Net, torch, torchvision and timm are installed, in supported versions."""
    nnunet = installed("nnunetv2")
    if not nnunet:
        yield Finding("FAIL", f"nnunetv2 is not installed (supported {NNUNET})", _INSTALL_NNUNET)
    else:
        fits = (2, 8) <= numbers(nnunet) < (2, 9)
        text = f"nnunetv2 {nnunet} (supported {NNUNET})"
        yield Finding("ok", text) if fits else Finding("FAIL", text, _INSTALL_NNUNET)
    torch = installed("torch")
    if torch and (numbers(torch) < (2, 1, 2) or numbers(torch)[:2] == (2, 9)):
        yield Finding("FAIL", f"torch {torch}: nnU-Net needs >=2.1.2 and refuses 2.9", _REINSTALL_TORCH)
    versions = {name: installed(name) for name in ("torch", "torchvision", "timm")}
    missing = [name for name, found in versions.items() if not found]
    text = ", ".join(f"{name} {found or 'is not installed'}" for name, found in versions.items())
    yield Finding("FAIL", text, f"{_INSTALL_NNUNET}   # also installs these") if missing else Finding("ok", text)


def check_imports(torch: Outcome, timm: Outcome) -> Finding:
    """Whether torch and timm can be imported; nnU-Net imports both before it finds any trainer.

    Args:
        torch: Result of the step `torch`.
        timm: Result of the step `timm`.
    """
    if torch.error:
        return Finding("FAIL", f"torch cannot be imported: {torch.error}", _REINSTALL_TORCH)
    if "torchvision::" in timm.error:
        fix = (
            f"The builds of torch {torch.facts['version']} and torchvision {installed('torchvision')} do not fit, "
            "e.g. one is for the CPU and one for CUDA.\nUntil they fit, nnU-Net finds only its own trainers. "
            f"Install both from the same index, in one command:\n{_REINSTALL_TORCH}\n"
            "(for a CPU build, or another CUDA version, add an --index-url that has both)"
        )
        return Finding("FAIL", f"timm cannot be imported: {timm.error}", fix)
    if timm.error:
        return Finding(
            "FAIL", f"timm cannot be imported: {timm.error}", 'python -m pip install --force-reinstall "timm<1.0.23"'
        )
    return Finding("ok", f"torch {torch.facts['version']} and timm can be imported")


def installed(package: str) -> str:
    """The version that pip recorded, or an empty string."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.8.1rc1+cpu` gives `(2, 8, 1)`."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
