"""Pseudo-label and consistency losses of the semi-supervised methods in float64, one voxel at a time.

Plain Python over numpy arrays, written from the papers' equations; nothing here is shared with the package. At the end,
what several of the tests start from: a case, and two ranks of a distributed run.

Shapes: `B` samples, `C` classes or regions, `P` independent problems (1, or `C` for regions), `*S` spatial axes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_collab.core import distributed

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kind = TypeVar("Kind")


def softmax(logits: Iterable[float]) -> list[float]:
    values = [float(z) for z in logits]
    top = max(values)
    powers = [math.exp(z - top) for z in values]
    return [power / sum(powers) for power in powers]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def problems(logits: Iterable[float], regions: bool, temperature: float = 1.0) -> list[list[float]]:
    """Per problem the class probabilities of a voxel; of a region those of outside and inside."""
    scaled = [float(z) / temperature for z in logits]
    if not regions:
        return [softmax(scaled)]
    return [[sigmoid(-z), sigmoid(z)] for z in scaled]


def voxels(logits: Array) -> Iterable[tuple[int, ...]]:
    return np.ndindex(logits.shape[0], *logits.shape[2:])


def at(logits: Array, voxel: tuple[int, ...]) -> Array:
    return logits[(voxel[0], slice(None), *voxel[1:])]


def labels_and_confidence(logits: Array, regions: bool) -> tuple[NDArray[np.int64], Array]:
    """`(B, P, *S)` each: the likeliest class of every problem, and its probability."""
    shape = (logits.shape[0], logits.shape[1] if regions else 1, *logits.shape[2:])
    labels, confidence = np.zeros(shape, np.int64), np.zeros(shape)
    for b, *v in voxels(logits):
        for index, q in enumerate(problems(at(logits, (b, *v)), regions)):
            labels[(b, index, *v)] = max(range(len(q)), key=lambda k: q[k])
            confidence[(b, index, *v)] = max(q)
    return labels, confidence


def hard_dice(student: Array, teacher: Array, keep: Mask, regions: bool, tau: float, smooth: float, kind: str) -> float:
    """One ratio per problem and class over the batch, over used voxels alone; class 0 counts for `dice` only."""
    channels = range(student.shape[1])
    entries = [(r, k) for r in channels for k in (0, 1)] if regions else [(0, k) for k in channels]
    if kind != "dice":
        entries = [(index, k) for index, k in entries if k > 0]
    overlap, predicted, labeled = ({e: 0.0 for e in entries} for _ in range(3))
    anything = False
    for voxel in voxels(student):
        if not keep[voxel]:
            continue
        p, q = problems(at(student, voxel), regions), problems(at(teacher, voxel), regions)
        for index, k in entries:
            if max(q[index]) < tau:
                continue
            anything = True
            m = float(max(range(len(q[index])), key=lambda j, own=q[index]: own[j]) == k)
            overlap[index, k] += p[index][k] * m
            predicted[index, k] += p[index][k] ** (1 if kind == "dice_nnunet" else 2)
            labeled[index, k] += m
    if not anything:
        return 0.0
    ratios = [(2 * overlap[e] + smooth) / (predicted[e] + labeled[e] + smooth) for e in entries]
    return 1 - sum(ratios) / len(ratios)


def hard_cross_entropy(student: Array, teacher: Array, keep: Mask, regions: bool, tau: float) -> float:
    """Sum over used voxels / (number of kept voxels, used or not, times that of problems)."""
    total, count = 0.0, 0
    for voxel in voxels(student):
        if not keep[voxel]:
            continue
        p, q = problems(at(student, voxel), regions), problems(at(teacher, voxel), regions)
        for own, other in zip(p, q, strict=True):
            count += 1
            if max(other) >= tau:
                total -= math.log(own[max(range(len(other)), key=lambda k, other=other: other[k])])
    return total / max(count, 1)


def soft_kl(student: Array, teacher: Array, keep: Mask, regions: bool, tau: float, temperature: float) -> float:
    """KL(teacher || student) at a temperature; the confidence is that of the teacher without it."""
    total, count = 0.0, 0
    for voxel in voxels(student):
        if not keep[voxel]:
            continue
        p, q = (problems(at(z, voxel), regions, temperature) for z in (student, teacher))
        sure = problems(at(teacher, voxel), regions)
        for own, other, plain in zip(p, q, sure, strict=True):
            count += 1
            if max(plain) >= tau:
                total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(own, other, strict=True))
    return total / max(count, 1)


def pseudo_label_loss(
    student: Array,
    teacher: Array,
    keep: Mask,
    *,
    regions: bool,
    criterion: str,
    threshold: float = 0.0,
    temperature: float = 1.0,
    smooth: float = 1e-5,
) -> float:
    if criterion == "kl":
        return soft_kl(student, teacher, keep, regions, threshold, temperature)
    if criterion == "ce":
        return hard_cross_entropy(student, teacher, keep, regions, threshold)
    if criterion == "dice_ce":
        dice = hard_dice(student, teacher, keep, regions, threshold, smooth, "dice")
        return (dice + hard_cross_entropy(student, teacher, keep, regions, threshold)) / 2
    return hard_dice(student, teacher, keep, regions, threshold, smooth, criterion)


def squared_difference(student: Array, teacher: Array, keep: Mask, *, regions: bool, used: Mask | None = None) -> float:
    """Mean over kept (and used) voxels and over the classes of a problem; `used` is `(B, P, *S)`."""
    values: list[float] = []
    for b, *v in voxels(student):
        if not keep[(b, *v)]:
            continue
        p, q = (problems(at(z, (b, *v)), regions) for z in (student, teacher))
        for index, (own, other) in enumerate(zip(p, q, strict=True)):
            if used is None or used[(b, index, *v)]:
                values.append(sum((x - y) ** 2 for x, y in zip(own, other, strict=True)) / len(own))
    return sum(values) / max(len(values), 1)


def predictive_entropy(passes: Sequence[Array], *, regions: bool) -> Array:
    """Entropy in nats of the mean over the passes, `(B, P, *S)`."""
    first = passes[0]
    entropy = np.zeros((first.shape[0], first.shape[1] if regions else 1, *first.shape[2:]))
    for b, *v in voxels(first):
        each = [problems(at(z, (b, *v)), regions) for z in passes]
        for index in range(entropy.shape[1]):
            means = [sum(p[index][k] for p in each) / len(each) for k in range(len(each[0][index]))]
            entropy[(b, index, *v)] = -sum(m * math.log(m) for m in means if m > 0)
    return entropy


def logit_pair(shape: Sequence[int], seed: int = 0) -> tuple[Array, Array, Mask]:
    """Logits of a student and of a teacher between unsure and sure, and a mask that leaves a quarter out."""
    generator = np.random.default_rng(seed)
    student, teacher = (generator.normal(0.0, 2.0, shape) for _ in range(2))
    keep = generator.random((shape[0], *shape[2:])) < 0.75
    return student, teacher, keep


def on_two_ranks(monkeypatch: pytest.MonkeyPatch, function: Callable[[int], Kind]) -> list[Kind]:
    """Results of a function of the rank, run on two ranks at a time; the ranks are threads."""
    barrier, here, slots = threading.Barrier(2, timeout=60), threading.local(), [torch.empty(0)] * 2

    def all_reduce(tensor: Tensor) -> None:
        slots[here.rank] = tensor.clone()
        barrier.wait()
        total = slots[0] + slots[1]
        barrier.wait()
        tensor.copy_(total)

    def as_rank(rank: int) -> Kind:
        here.rank = rank
        return function(rank)

    fake = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2, all_reduce=all_reduce
    )
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(distributed, "dist", fake)
        return list(pool.map(as_rank, range(2)))
