"""Check cores, memory and GPUs, and whether nnU-Net will compile the networks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from nnunet_collab.core.shipped import available_cores
from nnunet_collab.doctor.finding import Finding

_SWITCH_OFF = "export nnUNet_compile=f   # trains the same, somewhat slower"


def check_computer() -> Finding:
    """Number of cores that this process may use, and size of the memory."""
    memory = memory_gb()
    known = f", {memory:.0f} GB of memory" if memory else ""
    return Finding("ok", f"{available_cores()} CPU cores{known}")


def check_gpus(facts: Mapping[str, Any]) -> Finding:
    """The GPUs that torch can use.

    Args:
        facts: Facts of the step `torch`.
    """
    if facts["gpus"]:
        names = [f"{name} ({memory:.0f} GiB)" for name, memory in facts["gpus"]]
        return Finding("ok", f"CUDA {facts['cuda']}: {', '.join(names)}")
    if facts["cuda"]:
        fix = "With an NVIDIA GPU: check that `nvidia-smi` lists it and that CUDA_VISIBLE_DEVICES is correct. "
    else:
        fix = "With an NVIDIA GPU: install a build of torch for CUDA; this one is for the CPU. "
    return Finding(
        "warn", "torch finds no GPU; training on the CPU is slow", f"{fix}Without one: train with -device cpu."
    )


def check_compilation(facts: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Finding:
    """Whether nnU-Net will use torch.compile, and whether it can work.

    Args:
        facts: Facts of the step `torch`.
        environment: Environment variables; `nnUNet_compile` is nnU-Net's switch.
    """
    if not facts["gpus"] or os.name == "nt":
        return Finding("ok", "torch.compile: not used; nnU-Net compiles only on CUDA, and not on Windows")
    switch = environment.get("nnUNet_compile", "true")
    if switch.lower() not in ("true", "1", "t"):
        return Finding("ok", f"torch.compile: switched off by nnUNet_compile={switch}")
    if not facts["triton"]:
        return Finding("warn", "torch.compile: will fail, because triton is not installed", _SWITCH_OFF)
    if not any(shutil.which(name) for name in (environment.get("CC", ""), "cc", "gcc", "clang") if name):
        return Finding("warn", "torch.compile: will fail, because there is no C compiler", _SWITCH_OFF)
    return Finding("ok", "torch.compile: used; the first iterations take minutes")


def memory_gb() -> float:
    """Physical memory in GB, or 0 if it is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0.0
