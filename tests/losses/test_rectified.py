"""Rectification of a peer's soft label: CTRCL, section III.B, equations 3 to 11."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from reference_ctrcl import FACTORS, factor_subsets, logit_case, rectify_voxel
from torch import Tensor

from nnunet_collab.losses.rectified import rectify

SHAPES = [(2, 4, 5, 6), (2, 3, 3, 4, 5)]
SUBSETS = factor_subsets()


def make(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Probabilities with right and wrong voxels, and labels."""
    _, peer, labels, _ = logit_case(shape, seed)
    probs = torch.from_numpy(peer).softmax(1).to(dtype)
    truth = torch.from_numpy(labels)
    wrong = probs.argmax(1) != truth
    assert wrong.any()
    assert not wrong.all()
    return probs, truth


def one_voxel(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def one_label(value: int) -> Tensor:
    return torch.tensor([[[value]]])


def loop(probs: Tensor, labels: Tensor, factors: tuple[str, ...]) -> Tensor:
    out = np.zeros(tuple(probs.shape))
    p, y = probs.double().numpy(), labels.numpy()
    for b, *v in np.ndindex(*y.shape):
        at = (b, slice(None), *v)
        out[at] = rectify_voxel([float(x) for x in p[at]], int(y[(b, *v)]), factors)
    return torch.from_numpy(out)


@pytest.mark.parametrize("factors", SUBSETS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_equals_the_equations(
    shape: tuple[int, ...], factors: tuple[str, ...], dtype: torch.dtype, rtol: float
) -> None:
    probs, labels = make(shape, dtype=dtype)
    before = probs.clone()
    got = rectify(probs, labels, factors=factors)
    assert got.shape == probs.shape
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), loop(probs, labels, factors), rtol=rtol, atol=rtol * 1e-3)
    assert torch.equal(probs, before)


@pytest.mark.parametrize("shape", [(3, 5, 40, 41, 7), (2, 3, 130, 129), (1, 3, 70, 71, 72)])
def test_large_volumes_equal_the_equations_on_whole_arrays(shape: tuple[int, ...]) -> None:
    probs, labels = make(shape)
    p, truth = np.moveaxis(probs.numpy(), 1, -1), np.eye(shape[1])[labels.numpy()]
    right = (p * truth).sum(-1, keepdims=True)
    lam = right / (1 + p.max(-1, keepdims=True) - right) * np.exp((p * np.log(p)).sum(-1, keepdims=True))
    lam[right == p.max(-1, keepdims=True)] = 1
    want = np.moveaxis(lam * p + (1 - lam) * truth, -1, 1)
    torch.testing.assert_close(rectify(probs, labels), torch.from_numpy(want), rtol=1e-9, atol=1e-12)


def test_hand_case() -> None:
    got = rectify(one_voxel(0.6, 0.3, 0.1), one_label(1)).flatten()
    torch.testing.assert_close(got, torch.tensor([0.0564100, 0.9341883, 0.0094017]).double(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("factors", SUBSETS)
def test_hand_case_of_every_subset(factors: tuple[str, ...]) -> None:
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    value = {"alignment": 1 / 1.3, "similarity": 0.3, "certainty": math.exp(-entropy)}
    assert value["certainty"] == pytest.approx(0.4074057, abs=1e-7)
    lam = math.prod(value[name] for name in factors)
    got = rectify(one_voxel(0.6, 0.3, 0.1), one_label(1), factors=factors).flatten()
    want = torch.tensor([lam * 0.6, lam * 0.3 + 1 - lam, lam * 0.1], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("factors", SUBSETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_a_distribution_and_leaves_right_voxels_alone(shape: tuple[int, ...], factors: tuple[str, ...]) -> None:
    probs, labels = make(shape)
    got = rectify(probs, labels, factors=factors)
    torch.testing.assert_close(got.sum(1), torch.ones_like(got[:, 0]), rtol=0, atol=1e-12)
    assert (got >= 0).all()
    right = (probs.argmax(1) == labels)[:, None].expand_as(probs)
    torch.testing.assert_close(got[right], probs[right], rtol=0, atol=1e-15)


# Certainty alone is not here: it does not promise the truth (a confident mistake keeps lambda near 1).
@pytest.mark.parametrize("factors", [s for s in SUBSETS if "similarity" in s or len(s) == 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_truth_wins_everywhere(shape: tuple[int, ...], factors: tuple[str, ...]) -> None:
    probs, labels = make(shape)
    assert (probs.argmax(1) != labels).any()
    assert torch.equal(rectify(probs, labels, factors=factors).argmax(1), labels)


@pytest.mark.parametrize("shape", SHAPES)
def test_alignment_alone_makes_truth_and_mistake_tie(shape: tuple[int, ...]) -> None:
    probs, labels = make(shape)
    got = rectify(probs, labels, factors=("alignment",))
    mistake = probs.argmax(1, keepdim=True)
    wrong = mistake[:, 0] != labels
    truth_value, mistake_value = got.gather(1, labels[:, None])[:, 0], got.gather(1, mistake)[:, 0]
    torch.testing.assert_close(truth_value[wrong], mistake_value[wrong], rtol=1e-12, atol=0)


@pytest.mark.parametrize("factors", [s for s in SUBSETS if "similarity" in s])
@pytest.mark.parametrize("shape", SHAPES)
def test_lambda_is_at_most_half_where_wrong(shape: tuple[int, ...], factors: tuple[str, ...]) -> None:
    probs, labels = make(shape)
    got = rectify(probs, labels, factors=factors)
    mistake = probs.argmax(1, keepdim=True)
    lam = (got.gather(1, mistake) / probs.gather(1, mistake))[:, 0][mistake[:, 0] != labels]
    assert (lam <= 0.5).all()
    assert (lam > 0).all()


def test_lambda_at_initialization_is_one_over_k_squared() -> None:
    probs = torch.full((1, 9, 1, 1), 1 / 9, dtype=torch.float64)
    probs[0, 0] += 1e-6  # no tie
    probs[0, 1] -= 1e-6
    got = rectify(probs, one_label(5)).flatten()
    assert (got[0] / probs[0, 0]).item() == pytest.approx(1 / 81, rel=1e-4)


def test_no_factor_leaves_every_voxel_alone() -> None:
    probs, labels = make(SHAPES[0])
    torch.testing.assert_close(rectify(probs, labels, factors=()), probs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_factors_may_be_any_collection_in_any_order(kind: type) -> None:
    probs, labels = make(SHAPES[0])
    want = rectify(probs, labels)
    for names in itertools.permutations(FACTORS):
        torch.testing.assert_close(rectify(probs, labels, factors=kind(names)), want, rtol=1e-14, atol=0)


def test_every_factor_changes_the_result() -> None:
    probs, labels = make(SHAPES[0])
    results = [rectify(probs, labels, factors=s) for s in SUBSETS]
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("factors", SUBSETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_probabilities_stay_finite(factors: tuple[str, ...], dtype: torch.dtype) -> None:
    probs = torch.stack([one_voxel(1, 0, 0), one_voxel(0.75, 0.25, 0)])[:, 0].to(dtype)
    for truth in range(3):
        labels = torch.full((2, 1, 1), truth)
        got = rectify(probs, labels, factors=factors)
        torch.testing.assert_close(got.double(), loop(probs, labels, factors), rtol=1e-5, atol=1e-9)
    if "similarity" in factors:  # the truth had no probability, so nothing of the prediction is left
        assert rectify(probs, labels, factors=factors).flatten(1).tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("shift", [0, 1])
def test_all_right_and_all_wrong(shift: int) -> None:
    probs, _ = make(SHAPES[0])
    labels = (probs.argmax(1) + shift) % probs.shape[1]
    torch.testing.assert_close(rectify(probs, labels), loop(probs, labels, FACTORS), rtol=1e-9, atol=1e-12)


def test_batch_order_and_class_names_change_nothing() -> None:
    probs, labels = make((3, 4, 5, 6))
    want = rectify(probs, labels)
    torch.testing.assert_close(rectify(probs.flip(0), labels.flip(0)).flip(0), want, rtol=1e-12, atol=0)
    names = torch.tensor([2, 0, 3, 1])  # new channel k holds old class names[k]
    torch.testing.assert_close(rectify(probs[:, names], names.argsort()[labels]), want[:, names], rtol=1e-12, atol=0)


def test_memory_layout_changes_nothing() -> None:
    probs, labels = make((2, 4, 6, 6))
    spread = probs.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    turned = labels.transpose(1, 2).contiguous().transpose(1, 2)
    assert not spread.is_contiguous()
    assert not turned.is_contiguous()
    torch.testing.assert_close(rectify(spread, turned), rectify(probs, labels), rtol=1e-14, atol=0)


@pytest.mark.parametrize("factors", [("alignment", "certainity"), ("Alignment",), ["a"], "alignment"])
def test_unknown_factor_is_named_with_the_known_ones(factors: tuple[str, ...]) -> None:
    probs, labels = make(SHAPES[0])
    with pytest.raises(ValueError, match="alignment") as caught:
        rectify(probs, labels, factors=factors)
    assert "similarity" in str(caught.value)
    assert "certainty" in str(caught.value)


@pytest.mark.parametrize("cut", [np.s_[:, :, :5], np.s_[:1], np.s_[:, None], np.s_[:, :, 0]])
def test_shapes_must_agree(cut: tuple[slice, ...]) -> None:
    probs, labels = make(SHAPES[0])
    with pytest.raises(ValueError, match="rectify") as caught:
        rectify(probs, labels[cut])
    assert str(tuple(labels[cut].shape)) in str(caught.value)
    assert str(tuple(labels.shape)) in str(caught.value) or str(tuple(probs.shape)) in str(caught.value)
