"""Signed distance maps of shapes whose distances are known, and the entry of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_collab.methods.ldc.signed_distance import KEY, WithSignedDistances, signed_distance, signed_distances


def ball(size, radius, spacing):
    """Distance of each voxel from the middle, and the voxels nearer than the radius."""
    axes = [(np.arange(n) - n // 2) * s for n, s in zip(size, spacing, strict=True)]
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    return distance, distance <= radius


def brute_force(mask, spacing):
    """The equation, voxel by voxel."""
    inside, outside = np.argwhere(mask) * spacing, np.argwhere(~mask) * spacing
    d_in, d_out, edge = np.zeros(mask.shape), np.zeros(mask.shape), np.zeros(mask.shape, bool)
    for v in np.ndindex(mask.shape):
        here = np.array(v) * spacing
        others = outside if mask[v] else inside
        distance = np.sqrt(((others - here) ** 2).sum(1)).min()
        (d_in if mask[v] else d_out)[v] = distance
        for axis in range(mask.ndim):
            for step in (-1, 1):
                w = list(v)
                w[axis] += step
                if mask[v] and 0 <= w[axis] < mask.shape[axis] and not mask[tuple(w)]:
                    edge[v] = True
    return np.where(edge, 0, d_out / d_out.max() - d_in / d_in.max())


@pytest.mark.parametrize(("size", "spacing"), [((7, 9), (1, 1)), ((6, 5), (2.5, 1)), ((4, 6, 5), (3, 1, 0.5))])
def test_any_shape_has_the_map_of_the_equation(size, spacing):
    mask = np.random.default_rng(0).random(size) < 0.5
    np.testing.assert_allclose(signed_distance(mask, spacing), brute_force(mask, spacing), atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 1.0)])
def test_a_disc_falls_towards_its_middle_and_rises_away_from_it(spacing):
    distance, mask = ball((41, 41), 10, spacing)
    found = signed_distance(mask, spacing)
    assert found.dtype == np.float32
    assert found[20, 20] == found.min() == -1
    assert found.max() == 1
    farthest = distance.max() - 10
    outside = ~mask
    # A voxel's distance to a disc is that to its middle less the radius, up to a voxel.
    np.testing.assert_allclose(found[outside] * farthest, distance[outside] - 10, atol=2.2)
    assert (found[mask] <= 0).all()
    assert (found[outside] > 0).all()


def test_a_square_is_zero_on_its_outermost_layer():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    found = signed_distance(mask, (1, 1))
    border = mask.copy()
    border[3:6, 3:6] = False
    assert not found[border].any()
    assert found[4, 4] == -1
    assert found[3, 3] == pytest.approx(-2 / 3)
    assert found[4, 1] == pytest.approx(1 / np.sqrt(8))


def test_the_border_of_the_patch_is_no_boundary():
    mask = np.zeros((5, 6), bool)
    mask[:, :3] = True
    np.testing.assert_allclose(
        signed_distance(mask, (1, 1)), np.tile([-1, -2 / 3, 0, 1 / 3, 2 / 3, 1], (5, 1)), atol=1e-6
    )


@pytest.mark.parametrize("fill", [False, True])
def test_a_class_without_a_boundary_in_the_patch_is_zero(fill):
    assert not signed_distance(np.full((4, 5, 3), fill), (1, 1, 1)).any()


class Source:
    def __init__(self, target):
        self.target = target

    def generate_train_batch(self):
        return {"data": torch.zeros(1), "target": self.target, "keys": ["a"]}


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_batch_gets_a_map_per_class_of_the_full_resolution(deep_supervision):
    labels = torch.randint(0, 4, (2, 1, 6, 7), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    target = [labels, labels[..., ::2, ::2]] if deep_supervision else labels
    batch = WithSignedDistances(Source(target), (1, 2), classes=[1, 2], regions=0).generate_train_batch()
    assert batch["target"] is target
    assert batch["keys"] == ["a"]
    assert batch[KEY].shape == (2, 2, 6, 7)
    assert batch[KEY].dtype is torch.float32
    for b in range(2):
        for k in (1, 2):
            want = signed_distance(labels[b, 0].numpy() == k, (1, 2))
            np.testing.assert_array_equal(batch[KEY][b, k - 1].numpy(), want)


def test_regions_have_a_map_each_and_the_channel_of_the_ignore_label_none():
    target = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    batch = WithSignedDistances(Source(target), (1, 1), classes=[], regions=2).generate_train_batch()
    assert batch[KEY].shape == (1, 2, 5, 6)
    np.testing.assert_array_equal(batch[KEY][0, 1].numpy(), signed_distance(target[0, 1].numpy(), (1, 1)))


@pytest.mark.parametrize(("size", "spacing"), [((7, 9), (1, 1)), ((6, 5), (2.5, 1)), ((4, 6, 5), (3, 1, 0.5))])
def test_the_maps_of_the_device_are_those_of_the_loader(size, spacing):
    rng = np.random.default_rng(1)
    masks = rng.random((2, 4, *size)) < np.array([0.5, 0.1, 0.9, 0.3]).reshape(1, 4, *[1] * len(size))
    masks[0, 1] = False
    masks[0, 2] = True
    masks[1, 1] = False
    masks[1, 1][tuple(slice(1, 3) for _ in size)] = True  # away from the border of the patch
    found = signed_distances(torch.from_numpy(masks), spacing)
    want = np.stack([[signed_distance(mask, spacing) for mask in sample] for sample in masks])
    assert found.dtype is torch.float32
    np.testing.assert_allclose(found.numpy(), want, atol=1e-5)
    for b, k in ((0, 0), (1, 1), (1, 3)):
        np.testing.assert_allclose(found[b, k].numpy(), brute_force(masks[b, k], spacing), atol=1e-5)


def test_the_device_reads_nothing_on_the_way():
    with FakeTensorMode():
        assert signed_distances(torch.rand(2, 3, 5, 6) > 0.5, (1, 2)).shape == (2, 3, 5, 6)
