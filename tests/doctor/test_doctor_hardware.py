"""`nnunet_collab doctor`: what the computer has, and whether networks will be compiled."""

from __future__ import annotations

import os
import shutil

import pytest

from nnunet_collab.doctor import hardware
from nnunet_collab.doctor.finding import Finding

GPU = {"gpus": [["NVIDIA H200", 139.8]], "cuda": "13.2", "triton": True}
NO_GPU = {"gpus": [], "cuda": None, "triton": True}


def test_gpus_are_named_with_their_memory():
    assert hardware.check_gpus(GPU) == Finding("ok", "CUDA 13.2: NVIDIA H200 (140 GiB)")


@pytest.mark.parametrize(("cuda", "fix"), [(None, "install a build of torch for CUDA"), ("13.2", "nvidia-smi")])
def test_no_gpu_is_a_warning(cuda, fix):
    finding = hardware.check_gpus({**NO_GPU, "cuda": cuda})
    assert finding.status == "warn"
    assert fix in finding.fix
    assert finding.fix.endswith("Without one: train with -device cpu.")


@pytest.mark.parametrize(
    ("found", "environment", "status", "text"),
    [
        (NO_GPU, {}, "ok", "not used"),
        (GPU, {}, "ok", "used; the first iterations take minutes"),
        (GPU, {"nnUNet_compile": "T"}, "ok", "used; the first iterations take minutes"),
        (GPU, {"nnUNet_compile": "f"}, "ok", "switched off by nnUNet_compile=f"),
        (GPU, {"nnUNet_compile": "yes"}, "ok", "switched off by nnUNet_compile=yes"),
        ({**GPU, "triton": False}, {}, "warn", "will fail, because triton is not installed"),
        ({**GPU, "triton": False}, {"nnUNet_compile": "0"}, "ok", "switched off by nnUNet_compile=0"),
    ],
)
def test_whether_networks_will_be_compiled(found, environment, status, text, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    finding = hardware.check_compilation(found, environment)
    assert finding.status == status
    assert finding.text.startswith(f"torch.compile: {text}")


def test_compilation_needs_a_c_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    finding = hardware.check_compilation(GPU, {})
    assert (finding.status, finding.fix.split()[:2]) == ("warn", ["export", "nnUNet_compile=f"])
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "my-cc" else None)
    assert hardware.check_compilation(GPU, {"CC": "my-cc"}).status == "ok"


def test_the_computer_is_described(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4_000_000}.__getitem__, raising=False)
    assert hardware.check_computer() == Finding("ok", "2 CPU cores, 16 GB of memory")


def test_the_computer_is_described_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert hardware.check_computer() == Finding("ok", "1 CPU cores")
