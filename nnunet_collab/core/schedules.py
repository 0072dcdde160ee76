"""Schedules of learning rates and loss weights: pure functions of the iteration, which resuming cannot disturb."""

from __future__ import annotations

import math


def poly_with_warmup(step: int, total: int, *, warmup: int = 0, power: float = 0.9) -> float:
    """Factor of the initial learning rate: linear rise over the warm-up, then polynomial decay to 0.

    Without warm-up this is nnU-Net's `PolyLRScheduler`, with it nnU-Net's `Lin_incr_LRScheduler` followed by
    `PolyLRScheduler_offset`, as its Primus trainers use them.

    Args:
        step: From 0, `< total`; of epochs or of iterations.
        total: Number of steps of the whole run.
        warmup: The rise ends with factor 1 at the last of so many steps.
        power: Exponent of the decay.
    """
    if step < warmup:
        return (step + 1) / warmup
    return float((1 - (step - warmup) / (total - warmup)) ** power)


def sigmoid_ramp(iteration: int, length: int, *, steps: int = 0) -> float:
    """Factor that rises from exp(-5) to 1 over `length` iterations: exp(-5 (1 - t)^2) (Laine and Aila 2017).

    Args:
        iteration: From 0.
        length: Iterations of the rise; 0 or less: always 1.
        steps: If given, t moves in so many equal steps, as in SSL4MIS (200 in a run).
    """
    if length <= 0:
        return 1.0
    # In whole numbers: rounding down a product of fractions would take some steps an iteration late.
    share = iteration * steps // length / steps if steps else iteration / length
    return math.exp(-5 * (1 - min(1.0, share)) ** 2)
