"""Number of threads that a training on the CPU uses."""

from __future__ import annotations

import os

import torch

VARIABLE = "OMP_NUM_THREADS"


def honor_omp_threads(device: torch.device) -> None:
    """Set the number of torch's threads to OMP_NUM_THREADS, if that is set.

    For `-device cpu`, nnU-Net sets it to the number of cores and ignores the variable. Two trainings at the same time
    then wait for each other's threads and are several times slower than with one thread each.
    """
    wanted = os.environ.get(VARIABLE, "")
    if device.type == "cpu" and wanted.isdecimal() and int(wanted) > 0:
        torch.set_num_threads(int(wanted))
