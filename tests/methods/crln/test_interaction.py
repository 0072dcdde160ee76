"""DIM beside equations 3 to 6 in float64, one sample, prototype and class at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from nnunet_collab.methods.crln.interaction import DynamicInteraction

CLASSES, PROTOTYPES, CHANNELS = 3, 4, (6, 5)
AGGREGATIONS = ("sum", "spatial", "convolutional", "shared")
# Sizes of f_2, f_3 and the image: halves, thick slices, and sizes that are no multiples of each other.
SIZES = [((2, 3), (4, 6), (8, 12)), ((2, 2, 2), (2, 4, 4), (4, 8, 8)), ((2, 3, 2), (3, 5, 4), (5, 9, 7))]
each_size = pytest.mark.parametrize("sizes", SIZES, ids=["2d", "thick slices", "no multiples"])
each_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)


def make(sizes=SIZES[0], aggregation="shared", batch=2):
    """A module with weights that are far from their start, and its two maps."""
    torch.manual_seed(3)
    module = DynamicInteraction(len(sizes[0]), CLASSES, PROTOTYPES, CHANNELS, aggregation=aggregation)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module, *(torch.randn(batch, c, *s) for c, s in zip(CHANNELS, sizes, strict=False))


# ---------------------------------------------------------------- the reference


def softmax(values):
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


def convolve(stack, weight, bias):
    """A 3 x 3 (x 3) convolution of `(R, *s)` with zeros outside, one output and one offset at a time."""
    padded = np.pad(stack, [(0, 0)] + [(1, 1)] * (stack.ndim - 1))
    result = np.zeros((len(weight), *stack.shape[1:]))
    for o in range(len(weight)):
        for i in range(len(stack)):
            for offset in itertools.product(range(3), repeat=stack.ndim - 1):
                window = tuple(slice(k, k + n) for k, n in zip(offset, stack.shape[1:], strict=True))
                result[o] += weight[(o, i, *offset)] * padded[i][window]
        result[o] += bias[o]
    return result


def enlarge(volume, size):
    """Linear interpolation along each axis in turn; the center of voxel i of n lies at (i + 1/2) / n."""
    for axis, target in enumerate(size):
        source = volume.shape[axis]
        slabs = []
        for i in range(target):
            x = min(max((i + 0.5) * source / target - 0.5, 0), source - 1)
            low = math.floor(x)
            first, second = (np.take(volume, k, axis) for k in (low, min(low + 1, source - 1)))
            slabs.append((1 - (x - low)) * first + (x - low) * second)
        volume = np.stack(slabs, axis)
    return volume


def reference(module, coarse, fine, size, aggregation):
    """M(x) of one sample, `(C, *size)`."""
    w = {name: value.detach().double().numpy() for name, value in module.state_dict().items()}

    def linear(name, row):
        weight = w[f"{name}.weight"].reshape(w[f"{name}.weight"].shape[:2])
        return weight @ row + w[f"{name}.bias"]

    def tokens(name, features):
        features = features.double().numpy()
        return [linear(name, features[(slice(None), *v)]) for v in np.ndindex(*features.shape[1:])]

    r2, r3 = tokens("context_2", coarse), tokens("context_3", fine)
    result = []
    for c in range(CLASSES):
        stack = np.zeros((PROTOTYPES, *fine.shape[1:]))
        for i in range(PROTOTYPES):
            query = linear("query_1", w["prototypes"][c, i])
            scores = [float(query @ linear("key_1", token)) / math.sqrt(CHANNELS[0]) for token in r2]
            seen = sum(a * linear("value_1", token) for a, token in zip(softmax(scores), r2, strict=True))
            query = linear("query_2", seen)
            stack[i] = np.reshape(
                [query @ linear("key_2", token) / math.sqrt(CHANNELS[1]) for token in r3], fine.shape[1:]
            )
        own = slice(None) if aggregation == "shared" else slice(c * PROTOTYPES, (c + 1) * PROTOTYPES)
        if aggregation != "sum":
            stack = convolve(stack, w["spatial.weight"][own], w["spatial.bias"][own])
        if aggregation in ("sum", "spatial"):
            plane = sum(stack)
        else:
            row = 0 if aggregation == "shared" else c
            weights = w["combine.weight"][row].reshape(-1)
            plane = sum(a * m for a, m in zip(weights, stack, strict=True)) + w["combine.bias"][row]
        result.append(enlarge(plane, size))
    return np.stack(result)


# ---------------------------------------------------------------- the promises


@each_aggregation
@each_size
def test_equals_the_equations_per_sample(sizes, aggregation):
    module, coarse, fine = make(sizes, aggregation)
    found = module(coarse, fine, sizes[2])
    assert found.shape == (2, CLASSES, *sizes[2])
    want = np.stack([reference(module, a, b, sizes[2], aggregation) for a, b in zip(coarse, fine, strict=True)])
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(found.detach().numpy(), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@each_aggregation
def test_a_sample_does_not_see_the_others_of_its_batch(aggregation):
    module, coarse, fine = make(SIZES[1], aggregation, batch=3)
    together = module(coarse, fine, SIZES[1][2])
    for k in range(3):
        alone = module(coarse[k : k + 1], fine[k : k + 1], SIZES[1][2])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["sum", "shared"])
@each_size
def test_with_shared_weights_permuted_classes_permute_the_map(sizes, aggregation):
    module, coarse, fine = make(sizes, aggregation)
    before = module(coarse, fine, sizes[2])
    order = [2, 0, 1]
    with torch.no_grad():
        module.prototypes.copy_(module.prototypes[order].clone())
    torch.testing.assert_close(module(coarse, fine, sizes[2]), before[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["spatial", "convolutional"])
def test_with_weights_per_class_permuted_classes_do_not(aggregation):
    module, coarse, fine = make(SIZES[0], aggregation)
    before = module(coarse, fine, SIZES[0][2])
    with torch.no_grad():
        module.prototypes.copy_(module.prototypes[[2, 0, 1]].clone())
    assert (module(coarse, fine, SIZES[0][2]) - before[:, [2, 0, 1]]).abs().max() > 0.05


@pytest.mark.parametrize("aggregation", AGGREGATIONS[1:])
@each_size
def test_an_identity_and_a_convolution_of_ones_are_the_plain_sum(sizes, aggregation):
    plain, coarse, fine = make(sizes, "sum")
    module, _, _ = make(sizes, aggregation)
    module.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith(("spatial", "combine")):
                parameter.zero_()
        weight = module.spatial.weight
        for o in range(len(weight)):
            weight[(o, o % PROTOTYPES, *[1] * (weight.ndim - 2))] = 1
        if aggregation != "spatial":
            module.combine.weight.fill_(1)
    torch.testing.assert_close(module(coarse, fine, sizes[2]), plain(coarse, fine, sizes[2]), rtol=1e-4, atol=1e-4)


@each_aggregation
def test_autocast_changes_nothing(aggregation):
    module, coarse, fine = make(SIZES[0], aggregation)
    want = module(coarse, fine, SIZES[0][2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(coarse, fine, SIZES[0][2])
        half = module(coarse.bfloat16(), fine.bfloat16(), SIZES[0][2])
    assert found.dtype is half.dtype is torch.float32
    assert torch.equal(found, want)
    assert torch.equal(half, module(coarse.bfloat16().float(), fine.bfloat16().float(), SIZES[0][2]))


@each_aggregation
def test_everything_in_it_learns_and_so_do_both_maps(aggregation):
    module, coarse, fine = make(SIZES[1], aggregation)
    coarse.requires_grad_()
    fine.requires_grad_()
    torch.manual_seed(0)
    found = module(coarse, fine, SIZES[1][2])
    (found * torch.randn_like(found)).sum().backward()
    # The bias of the first key adds the same to all scores of a softmax.
    idle = [n for n, p in module.named_parameters() if p.grad is None or (not p.grad.any() and n != "key_1.bias")]
    assert idle == []
    assert coarse.grad.any()
    assert fine.grad.any()


@each_aggregation
def test_the_prototypes_start_near_zero_and_different(aggregation):
    torch.manual_seed(0)
    module = DynamicInteraction(2, 4, 16, (64, 32), aggregation=aggregation)
    assert module.prototypes.shape == (4, 16, 64)
    assert module.prototypes.std().item() == pytest.approx(0.02, rel=0.1)
    assert abs(module.prototypes.mean().item()) < 0.002
