r"""Adaptive rectification module (ARM) of CTRCL: correct a peer's soft label by the truth where it is wrong.

For one voxel with truth :math:`y`, prediction :math:`P`, mistake :math:`M = [\arg\max P \ne y]`, and
:math:`p^{tru} = P_y`, :math:`p^{mis} = \max_{k \ne y} P_k`,

.. math::
    \lambda^a = (1 + p^{mis} - p^{tru})^{-1}, \quad \lambda^s = e^{-CE(P, y)} = p^{tru}, \quad
    \lambda^c = e^{-S(P)}, \quad S(P) = -\sum_k P_k \log P_k,

.. math::
    \lambda = \lambda^a \lambda^s \lambda^c, \qquad
    P_r = \begin{cases} \lambda P + (1 - \lambda)\,\mathrm{onehot}(y) & M = 1 \\ P & M = 0. \end{cases}

Source: Wu et al., "CNN-Transformer Rectified Collaborative Learning for Medical Image Segmentation", section III.B,
equations 4-11. The factors are evaluated per voxel ("a matrix of dynamic weights"), on `P` and not on the masked
`P * M` of equation 5, whose cross-entropy and entropy are undefined outside `M`. The paper does not
say what happens if the true class ties with another class. Here it is a mistake, so that the order of the classes does
not matter. Units: nats.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

ALL_FACTORS = ("alignment", "similarity", "certainty")


def rectify(probs: Tensor, labels: Tensor, *, factors: Collection[str] = ALL_FACTORS) -> Tensor:
    """Rectified soft label P_r; it sums to 1.

    With `similarity`, or with `alignment` and `certainty`, its largest class is the truth.

    Args:
        probs: Probabilities of a peer, `(B, K, *S)`. They are not detached here: detach them before the call.
        labels: True labels, `(B, *S)` int64.
        factors: Which of `alignment` (equation 9), `similarity` (10) and `certainty` (11) make up lambda. Without any
            factor lambda = 1: nothing is rectified, which is plain mutual learning.

    Returns:
        `(B, K, *S)`.

    Raises:
        ValueError: If a factor is unknown, or the shapes disagree.
    """
    unknown = set(factors) - set(ALL_FACTORS)
    if unknown:
        raise ValueError(f"rectify: factors must be among {ALL_FACTORS}; got {sorted(unknown)}.")
    expected = (probs.shape[0], *probs.shape[2:])
    if labels.shape != expected:
        raise ValueError(f"rectify: labels must have one value per voxel, so {expected}; got {tuple(labels.shape)}.")
    index = labels.unsqueeze(1)
    p_true = probs.gather(1, index)
    p_mistaken = probs.scatter(1, index, 0).amax(dim=1, keepdim=True)
    weight = torch.ones_like(p_true)
    if "alignment" in factors:
        weight = weight / (1 + p_mistaken - p_true)
    if "similarity" in factors:
        weight = weight * p_true  # exp(-CE) without the detour through log and exp
    if "certainty" in factors:
        weight = weight * torch.xlogy(probs, probs).sum(dim=1, keepdim=True).exp()
    weight = torch.where(p_true > p_mistaken, 1.0, weight)
    return (weight * probs).scatter_add(1, index, 1 - weight)
