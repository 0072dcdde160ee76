"""Learning-rate schedules as pure functions of the iteration, so that resuming cannot disturb them."""

from __future__ import annotations


def poly_with_warmup(iteration: int, total: int, *, warmup_iterations: int = 0, power: float = 0.9) -> float:
    """Factor of the initial learning rate: linear rise over the warm-up, then polynomial decay to 0.

    Without warm-up this is nnU-Net's `PolyLRScheduler`, with it nnU-Net's `Lin_incr_LRScheduler` followed by
    `PolyLRScheduler_offset`, as its Primus trainers use them.

    Args:
        iteration: From 0, `< total`.
        total: Number of iterations of the whole run.
        warmup_iterations: The rise ends with factor 1 at its last iteration.
        power: Exponent of the decay.
    """
    if iteration < warmup_iterations:
        return (iteration + 1) / warmup_iterations
    return float((1 - (iteration - warmup_iterations) / (total - warmup_iterations)) ** power)
