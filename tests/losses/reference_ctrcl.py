"""CTRCL's equations (paper, sections III.B and III.C) in float64, one voxel or cell at a time.

Plain Python over numpy arrays; nothing here is shared with the package. `logit_loss_fast` is a second, vectorized
writing of `logit_loss`, for volumes that a loop cannot cross in time.

Shapes: `B` samples, `K` classes, `D` channels, `*S` spatial axes of the labels, `*s` those of a feature map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Kind = TypeVar("Kind", np.int64, np.bool_)

FACTORS = ("alignment", "similarity", "certainty")
TARGET_FLOOR = 1e-8  # of the target inside the logarithm, order "student_first" of the logit losses only


def log_softmax(logits: Iterable[float]) -> list[float]:
    values = [float(z) for z in logits]
    top = max(values)
    return [z - top - math.log(sum(math.exp(other - top) for other in values)) for z in values]


def softmax(logits: Iterable[float]) -> list[float]:
    return [math.exp(v) for v in log_softmax(logits)]


def rectify_voxel(p: Sequence[float], truth: int, factors: Collection[str]) -> list[float]:
    """Equations 4 to 11 for the probabilities of one voxel."""
    mistake = max((k for k in range(len(p)) if k != truth), key=lambda k: p[k])
    if p[truth] > p[mistake]:
        return list(p)
    lam = 1.0
    if "alignment" in factors:
        lam /= 1.0 + p[mistake] - p[truth]
    if "similarity" in factors:
        cross_entropy = -math.log(p[truth]) if p[truth] > 0 else math.inf
        lam *= math.exp(-cross_entropy)
    if "certainty" in factors:
        entropy = -sum(v * math.log(v) for v in p if v > 0)
        lam *= math.exp(-entropy)
    return [lam * v + (1.0 - lam) * (1.0 if k == truth else 0.0) for k, v in enumerate(p)]


def kl_voxel(target: Sequence[float], logits: Iterable[float], order: str) -> tuple[float, list[float]]:
    """KL of one voxel and its gradient with respect to the student's logits, the target held fixed."""
    log_p = log_softmax(logits)
    p = [math.exp(v) for v in log_p]
    if order == "target_first":
        kl = sum(q * (math.log(q) - lp) for q, lp in zip(target, log_p, strict=True) if q > 0)
        return kl, [pk - q for pk, q in zip(p, target, strict=True)]
    gaps = [lp - math.log(max(q, TARGET_FLOOR)) for q, lp in zip(target, log_p, strict=True)]
    kl = sum(pk * gap for pk, gap in zip(p, gaps, strict=True))
    return kl, [pk * (gap - kl) for pk, gap in zip(p, gaps, strict=True)]


def target_voxel(
    kind: str, student: Iterable[float], peer: Iterable[float], truth: int, factors: Collection[str], *, skip: bool
) -> list[float] | None:
    """What one voxel of the student is pulled to; None where there is nothing to teach.

    With `skip`, a peer that is right, but less sure of the truth than the student, teaches nothing.
    """
    p, q = softmax(student), softmax(peer)
    if kind == "ensemble":
        return [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    if kind == "rectified":
        right = all(q[truth] > other for k, other in enumerate(q) if k != truth)
        return None if skip and right and q[truth] < p[truth] else rectify_voxel(q, truth, factors)
    if kind == "selective" and not -log_softmax(peer)[truth] < -log_softmax(student)[truth]:
        return None
    return q


def logit_loss(
    kind: str,
    student: Array,
    peer: Array,
    labels: Labels,
    keep: Mask,
    order: str,
    factors: Collection[str] = FACTORS,
    *,
    skip: bool = False,
) -> tuple[float, Array]:
    """Mean over kept voxels, and the gradient `(B, K, *S)`; kinds `mutual`, `rectified`, `ensemble`, `selective`."""
    total, gradient = 0.0, np.zeros_like(student)
    kept = int(keep.sum())
    for b, *v in np.argwhere(keep):
        at = (b, slice(None), *v)
        target = target_voxel(kind, student[at], peer[at], int(labels[(b, *v)]), factors, skip=skip)
        if target is not None:
            kl, slope = kl_voxel(target, student[at], order)
            total += kl
            gradient[at] = np.array(slope) / kept
    return total / max(kept, 1), gradient


def logit_loss_fast(
    kind: str, student: Array, peer: Array, labels: Labels, keep: Mask, order: str
) -> tuple[float, Array]:
    """`logit_loss` with all factors on whole arrays."""
    z, t = (np.moveaxis(a, 1, -1)[keep] for a in (student, peer))
    truth = labels[keep]
    rows = np.arange(len(truth))
    log_p, log_q = (a - np.logaddexp.reduce(a, axis=1, keepdims=True) for a in (z, t))
    p, q = np.exp(log_p), np.exp(log_q)
    use = np.ones(len(truth), dtype=bool)
    target = q
    if kind == "ensemble":
        target = 0.5 * p + 0.5 * q
    elif kind == "selective":
        use = log_q[rows, truth] > log_p[rows, truth]
    elif kind == "rectified":
        right = q[rows, truth]
        lam = right / (1.0 + q.max(axis=1) - right) * np.exp((q * log_q).sum(axis=1))
        lam[q.argmax(axis=1) == truth] = 1.0
        target = lam[:, None] * q
        target[rows, truth] += 1.0 - lam
    if order == "target_first":
        kl, slope = (target * (np.log(target) - log_p)).sum(axis=1), p - target
    else:
        gap = log_p - np.log(np.maximum(target, TARGET_FLOOR))
        kl = (p * gap).sum(axis=1)
        slope = p * (gap - kl[:, None])
    gradient = np.zeros_like(student)
    np.moveaxis(gradient, 1, -1)[keep] = slope * use[:, None] / len(truth)
    return float((kl * use).sum() / len(truth)), gradient


def pool(features: Array, size: Sequence[int]) -> Array:
    """Average of the cells that each coarse cell overlaps: from floor(i*in/out) up to ceil((i+1)*in/out)."""
    coarse = np.zeros((*features.shape[:2], *size))
    for cell in np.ndindex(*size):
        window = []
        for i, n, m in zip(cell, features.shape[2:], size, strict=True):
            window.append(slice(i * n // m, -(-(i + 1) * n // m)))
        block = features[(slice(None), slice(None), *window)]
        coarse[(slice(None), slice(None), *cell)] = block.reshape(*block.shape[:2], -1).mean(axis=2)
    return coarse


def nearest(labels: NDArray[Kind], size: Sequence[int]) -> NDArray[Kind]:
    """Nearest-exact down-sampling of `(B, *S)`: index floor((i + 1/2) * in / out), in whole numbers."""
    picks = [[(2 * i + 1) * n // (2 * m) for i in range(m)] for n, m in zip(labels.shape[1:], size, strict=True)]
    return labels[np.ix_(range(labels.shape[0]), *picks)]


def prototypes_of(features: Array, labels: Labels, keep: Mask, num_classes: int) -> dict[int, Array]:
    """Equation 14 on one grid; only classes that occur have an entry."""
    prototypes = {}
    for k in range(num_classes):
        averages = []
        for b in range(features.shape[0]):
            cells = [features[(b, slice(None), *v)] for v in np.argwhere((labels[b] == k) & keep[b])]
            if cells:
                averages.append(np.sum(cells, axis=0) / (len(cells) + 1e-6))
        if averages:
            prototypes[k] = np.sum(averages, axis=0) / len(averages)
    return prototypes


def log_response(feature: Array, prototypes: dict[int, Array], classes: Sequence[int], alpha: float) -> list[float]:
    """Equation 15 for one cell, as logarithms, one entry per class of `classes`."""
    logits = []
    for k in classes:
        norms = max(math.sqrt(feature @ feature), 1e-8) * max(math.sqrt(prototypes[k] @ prototypes[k]), 1e-8)
        logits.append(-alpha * (1.0 - float(feature @ prototypes[k]) / norms))
    return log_softmax(logits)


def class_aware_loss(
    student: Array,
    peer: Array,
    labels: Labels,
    keep: Mask,
    num_classes: int,
    *,
    alpha: float = 20.0,
    order: str = "target_first",
    classes: str = "sample",
    frozen: dict[int, Array] | None = None,
) -> float:
    """Equations 13 to 16; `frozen` replaces the student's own prototypes."""
    size = tuple(min(pair) for pair in zip(student.shape[2:], peer.shape[2:], strict=True))
    student, peer = pool(student, size), pool(peer, size)
    labels, keep = nearest(labels, size), nearest(keep, size)
    own = frozen if frozen is not None else prototypes_of(student, labels, keep, num_classes)
    other = prototypes_of(peer, labels, keep, num_classes)
    terms = []
    present = [
        np.unique(labels[b][keep[b]] if classes == "sample" else labels[keep]).tolist() for b in range(len(labels))
    ]
    for b, *v in np.argwhere(keep):
        log_s = log_response(student[(b, slice(None), *v)], own, present[b], alpha)
        log_t = log_response(peer[(b, slice(None), *v)], other, present[b], alpha)
        first, second = (log_t, log_s) if order == "target_first" else (log_s, log_t)
        terms.append(sum(math.exp(x) * (x - y) for x, y in zip(first, second, strict=True)))
    return math.fsum(terms) / max(len(terms), 1)


def logit_case(shape: Sequence[int], seed: int) -> tuple[Array, Array, Labels, Mask]:
    """Student and peer logits, labels and keep; half of the peer's voxels are right and no argmax is a near tie."""
    rng = np.random.default_rng(seed)
    student, peer = rng.normal(0.0, 1.5, (2, *shape))
    best = peer.argmax(axis=1)
    np.put_along_axis(peer, best[:, None], np.take_along_axis(peer, best[:, None], 1) + 0.1, 1)
    labels = np.where(rng.random(best.shape) < 0.5, best, rng.integers(0, shape[1], best.shape))
    keep = rng.random(best.shape) < 0.8
    keep.flat[0], keep.flat[-1] = False, True
    return student, peer, labels.astype(np.int64), keep


def factor_subsets() -> list[tuple[str, ...]]:
    return [subset for n in range(4) for subset in itertools.combinations(FACTORS, n)]
