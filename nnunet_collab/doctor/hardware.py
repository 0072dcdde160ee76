"""What there is to compute with, and whether nnU-Net will compile the networks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from nnunet_collab.core.shipped import available_cores
from nnunet_collab.doctor.finding import Finding

_SWITCH_OFF = "export nnUNet_compile=f   # trains the same, somewhat slower"


def check_computer() -> Finding:
    """Cores this process may use, and memory."""
    memory = memory_gb()
    known = f", {memory:.0f} GB of memory" if memory else ""
    return Finding("ok", f"{available_cores()} CPU cores{known}")


def check_gpus(facts: Mapping[str, Any]) -> Finding:
    """The GPUs torch can use.

    Args:
        facts: Of the step `torch`.
    """
    if facts["gpus"]:
        names = [f"{name} ({memory:.0f} GiB)" for name, memory in facts["gpus"]]
        return Finding("ok", f"CUDA {facts['cuda']}: {', '.join(names)}")
    if facts["cuda"]:
        fix = "With an NVIDIA GPU: does `nvidia-smi` list it, and is CUDA_VISIBLE_DEVICES right? "
    else:
        fix = "With an NVIDIA GPU: install a build of torch for CUDA; this one is for the CPU. "
    return Finding(
        "warn", "no GPU that torch can use; training on the CPU is slow", f"{fix}Without one: train with -device cpu."
    )


def check_compilation(facts: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Finding:
    """Whether torch.compile will be used, and can be.

    Args:
        facts: Of the step `torch`.
        environment: Environment variables; `nnUNet_compile` is nnU-Net's switch.
    """
    if not facts["gpus"] or os.name == "nt":
        return Finding("ok", "torch.compile: not used; nnU-Net compiles on CUDA and not on Windows")
    switch = environment.get("nnUNet_compile", "true")
    if switch.lower() not in ("true", "1", "t"):
        return Finding("ok", f"torch.compile: switched off by nnUNet_compile={switch}")
    if not facts["triton"]:
        return Finding("warn", "torch.compile: will be tried and fail, because triton is not installed", _SWITCH_OFF)
    if not any(shutil.which(name) for name in (environment.get("CC", ""), "cc", "gcc", "clang") if name):
        return Finding("warn", "torch.compile: will be tried and fail, because there is no C compiler", _SWITCH_OFF)
    return Finding("ok", "torch.compile: used; the first iterations take minutes")


def memory_gb() -> float:
    """Physical memory in GB, or 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0.0
