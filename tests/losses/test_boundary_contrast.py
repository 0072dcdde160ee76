"""InfoNCE of images and slices in plain float64, its negatives, and two ranks that see each other's."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_semi_supervised import on_two_ranks

from nnunet_collab.core import distributed
from nnunet_collab.losses.boundary_contrast import boundary_contrast, diagonal_contrast, distance_error


def unit(count, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def reference(student, teacher, slices, gap, temperature):
    losses = []
    for i in range(len(student)):
        terms = []
        for j in range(len(student)):
            near = i // slices == j // slices and 0 < abs(i - j) <= gap
            if not near:
                terms.append(math.exp(float(np.dot(teacher[i], student[j])) / temperature))
        positive = math.exp(float(np.dot(teacher[i], student[i])) / temperature)
        losses.append(-math.log(positive / sum(terms)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize(("slices", "gap"), [(1, 0), (1, 1), (4, 0), (4, 1), (4, 2), (2, 5)])
def test_it_is_the_equation(slices, gap, temperature):
    student, teacher = unit(8), unit(8, seed=1)
    found = boundary_contrast(student, teacher, slices=slices, gap=gap, temperature=temperature)
    want = reference(student.numpy(), teacher.numpy(), slices, gap, temperature)
    assert float(found) == pytest.approx(want, rel=1e-12)


def test_the_hand_case():
    # Of two anchors the negatives are orthogonal and opposite, 0.1429316 each; of the middle one both are orthogonal.
    anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    teacher = torch.cat([anchor, student[1:]])
    own = [float(boundary_contrast(student.roll(-i, 0), teacher.roll(-i, 0), temperature=0.5)) for i in range(3)]
    assert own[0] == pytest.approx(own[1])  # the order of the batch does not matter
    e = math.exp
    middle = -math.log(e(2) / (e(2) + 1 + 1))
    assert own[0] == pytest.approx((2 * 0.1429316 + middle) / 3, abs=1e-7)


def test_the_gradient_is_right_and_reaches_the_student_alone():
    student, teacher = unit(6).requires_grad_(), unit(6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: boundary_contrast(s, teacher, slices=3, gap=1, temperature=0.5), student)
    boundary_contrast(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


@pytest.mark.parametrize("count", [0, 1])
def test_without_negatives_there_is_nothing_to_learn(count):
    student = unit(count).requires_grad_()
    value = boundary_contrast(student, unit(count, seed=1))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_slices_that_are_no_whole_volumes_are_refused():
    with pytest.raises(ValueError, match="the number of vectors must be a multiple of 3 slices; got 4"):
        boundary_contrast(unit(4), unit(4), slices=3)


@pytest.mark.parametrize("first", [1, 2])
def test_two_ranks_are_each_others_negatives(monkeypatch, first):
    """`first` volumes of two slices on one rank, the other of three in all on the other."""
    student, teacher = unit(6), unit(6, seed=1)
    options = {"slices": 2, "gap": 1, "temperature": 0.3}
    whole = student.clone().requires_grad_()
    value = boundary_contrast(whole, teacher, **options)
    value.backward()
    here = threading.local()

    def on_rank(rank):
        here.rank = rank
        distributed.dist.get_rank = lambda: here.rank
        rows = slice(0, 2 * first) if rank == 0 else slice(2 * first, 6)
        own = student[rows].clone().requires_grad_()
        loss = boundary_contrast(own, teacher[rows], **options)
        loss.backward()
        return float(loss), own.grad

    (a, grad_a), (b, grad_b) = on_two_ranks(monkeypatch, on_rank)
    assert (a + b) / 2 == pytest.approx(float(value), rel=1e-12)
    torch.testing.assert_close(torch.cat([grad_a, grad_b]) / 2, whole.grad)


def test_the_released_contrast_is_cosines_of_whole_maps_with_the_diagonal_as_positives():
    a = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    value = diagonal_contrast(a, b, temperature=0.07)
    cosines = torch.stack([torch.stack([F.cosine_similarity(x.flatten(), y.flatten(), dim=0) for y in b]) for x in a])
    assert float(value) == pytest.approx(float(F.cross_entropy(cosines / 0.07, torch.arange(3))), abs=1e-12)
    value.backward()
    assert b.grad is None
    assert a.grad.any()
    with pytest.raises(ValueError, match="diagonal_contrast: shapes must be equal"):
        diagonal_contrast(a, b[:2])


def test_the_distance_error_leaves_out_samples_with_ignored_voxels():
    maps = torch.randn(3, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    truth, keep = torch.randn(3, 2, 4, 6, dtype=torch.float64), torch.ones(3, 4, 6, dtype=torch.bool)
    keep[1, 2, 3] = False
    value = distance_error(maps, truth, keep)
    assert float(value) == pytest.approx(float((maps - truth)[[0, 2]].square().mean()), rel=1e-12)
    value.backward()
    assert not maps.grad[1].any()
    maps.grad = None
    nothing = distance_error(maps, truth, torch.zeros_like(keep))
    nothing.backward()
    assert nothing == 0
    assert not maps.grad.any()


@pytest.mark.parametrize("size", [(4, 6), (4, 6, 2)])
def test_coarse_maps_are_brought_to_the_size_of_the_truth(size):
    coarse = torch.full((1, 2, *[n // 2 for n in size]), 0.5)
    keep = torch.ones(1, *size, dtype=torch.bool)
    assert float(distance_error(coarse, torch.zeros(1, 2, *size), keep)) == pytest.approx(0.25)
