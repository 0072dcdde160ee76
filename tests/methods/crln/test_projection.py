"""The projection of some voxels beside the projection of the whole map, written as sums in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from nnunet_collab.methods.crln.projection import VoxelProjection

CHANNELS, WIDTH = 3, 5
SHAPES = [(4, 5), (3, 2, 4), (1, 3, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d", "one slice"])


def make(shape, batch=2):
    torch.manual_seed(4)
    module = VoxelProjection(len(shape), CHANNELS, WIDTH)
    return module, torch.randn(batch, CHANNELS, *shape, requires_grad=True)


def reference(module, features):
    """r = Conv1(Conv3(f_4)) with zeros outside of the image, `(B, F, *S)`."""
    w = {name: value.detach().double().numpy() for name, value in module.state_dict().items()}
    features = features.detach().double().numpy()
    shape = features.shape[2:]
    point = w["point.weight"].reshape(WIDTH, CHANNELS)
    result = np.zeros((len(features), WIDTH, *shape))
    for b, *v in np.ndindex(len(features), *shape):
        middle = w["spatial.bias"].copy()
        for offset in itertools.product(range(3), repeat=len(shape)):
            place = [x + k - 1 for x, k in zip(v, offset, strict=True)]
            if all(0 <= x < n for x, n in zip(place, shape, strict=True)):
                middle += w["spatial.weight"][(slice(None), slice(None), *offset)] @ features[(b, slice(None), *place)]
        result[(b, slice(None), *v)] = point @ middle + w["point.bias"]
    return result


def every_voxel(features):
    return torch.tensor(list(np.ndindex(len(features), *features.shape[2:])))


def some_members(features, classes=4):
    """Overlapping classes of chance members; one has a single voxel in a corner, the last is empty."""
    generator = torch.Generator().manual_seed(1)
    members = torch.rand((len(features), classes, *features.shape[2:]), generator=generator) < 0.4
    members[:, -2:] = False
    members[(0, -2, *[0] * (features.ndim - 2))] = True
    return members


@each_shape
def test_the_whole_map_equals_the_sums(shape):
    module, features = make(shape)
    np.testing.assert_allclose(module(features).detach().numpy(), reference(module, features), rtol=1e-4, atol=1e-5)


@each_shape
def test_voxels_equal_the_whole_map_there_with_borders(shape):
    module, features = make(shape)
    voxels = every_voxel(features)
    found = module.at(features, voxels)
    assert found.shape == (len(voxels), WIDTH)
    want = np.moveaxis(reference(module, features), 1, -1).reshape(-1, WIDTH)
    np.testing.assert_allclose(found.detach().numpy(), want, rtol=1e-4, atol=1e-5)


@each_shape
def test_voxels_may_come_twice_and_in_any_order(shape):
    module, features = make(shape)
    voxels = every_voxel(features)
    chosen = [3, 0, 3, len(voxels) - 1]
    torch.testing.assert_close(
        module.at(features, voxels[chosen]), module.at(features, voxels)[chosen], rtol=1e-5, atol=1e-6
    )


@each_shape
def test_constants_are_the_same_without_gradient(shape):
    module, features = make(shape)
    voxels = every_voxel(features)
    found = module.fixed(features).at(voxels)
    assert not found.requires_grad
    want = np.moveaxis(reference(module, features), 1, -1).reshape(-1, WIDTH)
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-4, atol=1e-5)


@each_shape
def test_means_equal_those_of_the_whole_map(shape):
    module, features = make(shape)
    members = some_members(features)
    found = module.fixed(features).mean_of(members).numpy()
    assert found.shape == (4, WIDTH)
    r = np.moveaxis(reference(module, features), 1, -1)
    for c in range(3):
        np.testing.assert_allclose(found[c], r[members[:, c].numpy()].mean(axis=0), rtol=1e-4, atol=1e-5)
    assert np.isnan(found[3]).all()


@each_shape
def test_the_mean_over_the_samples_weighs_voxels_not_samples(shape):
    module, features = make(shape, batch=3)
    members = torch.zeros((3, 1, *shape), dtype=torch.bool)
    members[0] = True
    members[(2, 0, *[0] * len(shape))] = True
    r = np.moveaxis(reference(module, features), 1, -1)
    want = r[members[:, 0].numpy()].mean(axis=0)
    np.testing.assert_allclose(module.fixed(features).mean_of(members)[0].numpy(), want, rtol=1e-4, atol=1e-5)


@each_shape
def test_gradients_equal_those_of_the_whole_map(shape):
    module, features = make(shape)
    voxels = every_voxel(features)[::2]
    factors = torch.randn(len(voxels), WIDTH)
    inputs = [features, *module.parameters()]
    found = torch.autograd.grad((module.at(features, voxels) * factors).sum(), inputs)
    whole = module(features)[(voxels[:, 0], slice(None), *voxels[:, 1:].unbind(1))]
    want = torch.autograd.grad((whole * factors).sum(), inputs)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
