"""Heads of signed distance maps: ranges, shapes, and that each vector belongs to its own slice."""

from __future__ import annotations

import pytest
import torch

from nnunet_collab.methods.ldc.distance_head import DistanceHead, SliceProjection


@pytest.mark.parametrize("size", [(6, 5), (3, 6, 5)])
def test_maps_are_within_their_range_and_float32(size):
    head = DistanceHead(len(size), 4, 2)
    features = 100 * torch.randn(2, 4, *size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = head(features)
    assert maps.shape == (2, 2, *size)
    assert maps.dtype is torch.float32
    assert maps.abs().max() <= 1
    weight, bias = head.point.weight.flatten(1), head.point.bias
    want = torch.tanh(torch.einsum("kd,bdn->bkn", weight, features.flatten(2)) + bias.view(1, -1, 1))
    torch.testing.assert_close(head(features).flatten(2), want)


def test_an_image_has_one_vector_of_length_one():
    projection = SliceProjection(2, None, (40, 36), pool=16, width=8)
    vectors = projection(torch.randn(3, 2, 40, 36))
    assert vectors.shape == (3, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_changes_its_own_vector_alone(axis):
    size = (4, 6, 5)
    projection = SliceProjection(2, axis, size, pool=4, width=8)
    maps = torch.randn(2, 2, *size)
    vectors = projection(maps)
    assert vectors.shape == (2 * size[axis], 8)
    maps.select(2 + axis, 1)[1] += 1  # slice 1 of volume 1
    changed = (projection(maps) != vectors).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [size[axis] + 1]


def test_small_maps_are_not_pooled_and_every_weight_learns():
    projection = SliceProjection(1, 0, (3, 2, 5), pool=16, width=4)
    assert projection.pool == (2, 5)
    projection(torch.randn(2, 1, 3, 2, 5)).square().mul(torch.rand(6, 4)).sum().backward()
    assert all(p.grad is not None for p in projection.parameters())
