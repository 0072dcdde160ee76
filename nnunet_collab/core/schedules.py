"""Schedules of learning rates and loss weights. They depend only on the iteration, so resuming does not change them."""

from __future__ import annotations

import math


def poly_with_warmup(step: int, total: int, *, warmup: int = 0, power: float = 0.9) -> float:
    """Factor of the initial learning rate: linear rise over the warm-up, then polynomial decay to 0.

    Without warm-up this is nnU-Net's `PolyLRScheduler`, with it nnU-Net's `Lin_incr_LRScheduler` followed by
    `PolyLRScheduler_offset`, as its Primus trainers use them.

    Args:
        step: Index of the epoch or iteration, from 0 to `total - 1`.
        total: Number of steps of the whole run.
        warmup: Number of warm-up steps; the factor is 1 at the last of them.
        power: Exponent of the decay.
    """
    if step < warmup:
        return (step + 1) / warmup
    return float((1 - (step - warmup) / (total - warmup)) ** power)


def sigmoid_ramp(iteration: int, length: int, *, steps: int = 0) -> float:
    """Factor that rises from exp(-5) to 1 over `length` iterations: exp(-5 (1 - t)^2) (Laine and Aila 2017).

    Args:
        iteration: Index of the iteration, from 0.
        length: Number of iterations of the rise; with 0 or less the factor is always 1.
        steps: Number of equal steps in which t rises, as in SSL4MIS (200 in a run); 0 for a continuous rise.
    """
    if length <= 0:
        return 1.0
    # Integer arithmetic: with rounded fractions some steps would come one iteration late.
    share = iteration * steps // length / steps if steps else iteration / length
    return math.exp(-5 * (1 - min(1.0, share)) ** 2)
