"""Rectified predictions: every reading of equation 8 and equation 17 voxel by voxel, and what mu learns."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from nnunet_collab.methods.crln.rectifier import Rectifier, rectify_prediction, replace_prediction

SHAPES = [(2, 3, 3, 4), (2, 3, 2, 3, 2)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
SPACES = ["logit", "probability", "probability_raw"]
each_space = pytest.mark.parametrize("space", SPACES)
each_rule = pytest.mark.parametrize("rule", [*SPACES, "replace"])


def make(shape=SHAPES[0], dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) * 2).to(dtype) for _ in range(2)]


def softmax(row):
    powers = [math.exp(v - max(row)) for v in row]
    return [p / sum(powers) for p in powers]


def rectify(logits, relations, mu, rule, tau):
    if rule == "replace":
        return replace_prediction(logits, relations, tau=tau)
    return rectify_prediction(logits, relations, mu, space=rule)


def reference(z, m, mu, rule, tau):
    """Probabilities of one voxel."""
    if rule == "logit":
        return softmax([a + (1 - mu) * b for a, b in zip(z, m, strict=True)])
    y, s = softmax(z), softmax(m)
    if rule in ("probability", "probability_raw"):
        return [(a + (1 - mu) * b) / (2 - mu) for a, b in zip(y, s, strict=True)]
    return s if max(y) < tau and max(y) < max(s) else y


@each_rule
@each_shape
@pytest.mark.parametrize("mu", [0.0, 0.4, 1.0])
def test_every_voxel_equals_the_equation(shape, rule, mu):
    logits, relations = make(shape)
    tau = 0.8
    found = rectify(logits, relations, mu, rule, tau).exp()
    assert found.dtype is torch.float64
    changed = 0
    for b, *v in np.ndindex(shape[0], *shape[2:]):
        where = (b, slice(None), *v)
        want = reference(logits[where].tolist(), relations[where].tolist(), mu, rule, tau)
        assert found[where].tolist() == pytest.approx(want, rel=1e-9)
        assert sum(found[where].tolist()) == pytest.approx(1, rel=1e-9)
        changed += want != pytest.approx(softmax(logits[where].tolist()))
    assert (changed == 0) == (mu == 1 and rule != "replace")
    assert rule != "replace" or changed < found[:, 0].numel()


@pytest.mark.parametrize(
    ("space", "want"),
    [("probability", (0.5125, 0.4875)), ("logit", (0.50388, 0.49612))],
    ids=["prob_norm", "logit"],
)
def test_hand_sized_cases(space, want):
    y, m = (torch.tensor(v, dtype=torch.float64).log().view(1, 2, 1, 1) for v in ((0.7, 0.3), (0.2, 0.8)))
    found = rectify_prediction(y, m, 0.4, space=space).exp()
    assert found.flatten().tolist() == pytest.approx(want, abs=5e-6)


def test_the_hand_sized_case_as_printed_is_not_normalized():
    rectifier = Rectifier("learnable", space="probability_raw", tau=0.97, num_classes=2, dims=2)
    with torch.no_grad():
        rectifier.raw.fill_(math.log(0.4 / 0.6))
    y, m = (torch.tensor(v).log().view(1, 2, 1, 1) for v in ((0.7, 0.3), (0.2, 0.8)))
    values = rectifier.mass * rectifier(y, m).exp()
    assert values.flatten().tolist() == pytest.approx((0.82, 0.78), abs=5e-6)


def test_everything_else_sums_to_one():
    for kind, space in itertools.product(("fixed", "concatenation", "learnable"), SPACES):
        if (kind, space) != ("learnable", "probability_raw"):
            assert Rectifier(kind, space=space, tau=0.97, num_classes=2, dims=2).mass == 1


@pytest.mark.parametrize(
    ("y", "m", "tau", "replaced"),
    [
        (0.7, 0.8, 0.75, True),
        (0.7, 0.8, 0.65, False),  # sure enough
        (0.7, 0.6, 0.97, False),  # M is less sure
        (0.3, 0.8, 0.75, True),  # the confidence counts, whatever the class
        (0.75, 0.875, 0.75, False),  # as sure as tau is not below it
        (0.75, 0.25, 0.97, False),  # M as sure as the prediction
    ],
)
def test_replace_asks_for_a_prediction_less_sure_than_tau_and_than_the_map(y, m, tau, replaced):
    prediction, relations = (torch.tensor([p, 1 - p], dtype=torch.float64).log().view(1, 2, 1, 1) for p in (y, m))
    if y == tau:  # as the softmax gives it, to the last bit
        tau = float(prediction.log_softmax(1).max().exp())
    found = replace_prediction(prediction, relations, tau=tau).exp()
    assert found.flatten().tolist() == pytest.approx([m, 1 - m] if replaced else [y, 1 - y])


@each_rule
def test_half_precision_is_widened_and_huge_logits_stay_finite(rule):
    logits, relations = make(dtype=torch.float16)
    found = rectify(logits * 50, relations * 50, 0.5, rule, 0.97)
    assert found.dtype is torch.float32
    assert not found.isnan().any()
    torch.testing.assert_close(found.exp().sum(1), torch.ones_like(found[:, 0]))


@pytest.mark.parametrize("space", ["logit", "probability"])
@pytest.mark.parametrize("agrees", [False, True])
def test_mu_falls_where_the_map_is_right_and_rises_where_it_is_wrong(space, agrees):
    rectifier = Rectifier("learnable", space=space, tau=0.97, num_classes=2, dims=2)
    assert rectifier.mu.item() == pytest.approx(0.5)
    logits = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1)
    relations = torch.tensor([2.0, -2.0] if agrees else [-2.0, 2.0]).view(1, 2, 1, 1)
    (-rectifier(logits, relations)[:, 0].sum()).backward()  # the truth is class 0
    assert (rectifier.raw.grad > 0) == agrees


@pytest.mark.parametrize("agrees", [False, True])
def test_as_printed_mu_never_rises(agrees):
    rectifier = Rectifier("learnable", space="probability_raw", tau=0.97, num_classes=2, dims=2)
    logits = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1)
    relations = torch.tensor([2.0, -2.0] if agrees else [-2.0, 2.0]).view(1, 2, 1, 1)
    (-rectifier(logits, relations)[:, 0].sum() - rectifier.mass.log()).backward()
    assert rectifier.raw.grad > 0


@each_space
def test_the_gradients_of_mu_and_of_both_inputs_are_right(space):
    logits, relations = make((1, 3, 2, 2))
    mu = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    inputs = (logits.requires_grad_(), relations.requires_grad_(), mu)
    assert torch.autograd.gradcheck(lambda z, m, u: rectify_prediction(z, m, u, space=space), inputs)


@each_shape
@each_space
def test_a_learned_mu_is_the_one_of_the_equation(shape, space):
    logits, relations = make(shape, torch.float32)
    rectifier = Rectifier("learnable", space=space, tau=0.97, num_classes=3, dims=len(shape) - 2)
    with torch.no_grad():
        rectifier.raw.fill_(1.3)
    mu = 1 / (1 + math.exp(-1.3))
    assert rectifier.mu.item() == pytest.approx(mu, rel=1e-6)
    want = rectify_prediction(logits, relations, mu, space=space)
    torch.testing.assert_close(rectifier(logits, relations), want, rtol=1e-5, atol=1e-5)


@each_shape
def test_fixed_is_equation_17_and_has_nothing_to_learn(shape):
    logits, relations = make(shape, torch.float32)
    rectifier = Rectifier("fixed", space="logit", tau=0.8, num_classes=3, dims=len(shape) - 2)
    assert list(rectifier.parameters()) == []
    assert rectifier.mu.item() == 0
    want = replace_prediction(logits, relations, tau=0.8)
    assert torch.equal(rectifier(logits, relations), want)


def convolution(rectifier, stack):
    """`mix` of `(B, 2 C, *S)` with zeros outside, one offset at a time."""
    weight, bias = (p.detach().double().numpy() for p in (rectifier.mix.weight, rectifier.mix.bias))
    shape, size = stack.shape[2:], weight.shape[2:]
    assert set(size) == {3}, "paper, section 4.4.6: a convolution of 3 x 3 x 3"
    padded = np.pad(stack, [(0, 0), (0, 0), *[(1, 1)] * len(shape)])
    result = np.zeros((len(stack), len(weight), *shape)) + bias.reshape(-1, *[1] * len(shape))
    for offset in itertools.product(range(3), repeat=len(shape)):
        window = tuple(slice(k, k + n) for k, n in zip(offset, shape, strict=True))
        part = padded[(slice(None), slice(None), *window)]
        result += np.einsum("oi,bi...->bo...", weight[(slice(None), slice(None), *offset)], part)
    return result


@each_shape
def test_concatenation_is_a_convolution_of_probabilities_and_map(shape):
    logits, relations = make(shape, torch.float32)
    rectifier = Rectifier("concatenation", space="logit", tau=0.97, num_classes=3, dims=len(shape) - 2)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in rectifier.parameters():
            parameter.copy_(torch.randn_like(parameter))
    found = rectifier(logits, relations)
    want = convolution(rectifier, torch.cat([logits.softmax(1), relations], 1).double().numpy())
    want = torch.from_numpy(want).log_softmax(1)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4)
    found[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in rectifier.parameters())
