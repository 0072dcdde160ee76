"""How many threads a training on the CPU uses."""

from __future__ import annotations

import os

import torch

VARIABLE = "OMP_NUM_THREADS"


def honor_omp_threads(device: torch.device) -> None:
    """Let torch use as many threads as OMP_NUM_THREADS says, if it says so.

    nnU-Net sets torch's threads to the number of cores for `-device cpu`, whatever the variable says; two trainings
    side by side then wait for each other's threads and are several times slower than with a thread each.
    """
    wanted = os.environ.get(VARIABLE, "")
    if device.type == "cpu" and wanted.isdecimal() and int(wanted) > 0:
        torch.set_num_threads(int(wanted))
