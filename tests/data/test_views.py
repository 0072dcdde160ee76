"""Weak and strong views: one geometry, intensities that always differ, and nothing outside of the image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_collab.data.loaders import seeded
from nnunet_collab.data.views import WeakAndStrongViews

TURN = (-math.pi, math.pi)
# Crop, patch, whether rotation and scaling leave the first axis alone.
PIPELINES = {"2d": ((24, 24), (16, 16), False), "3d": ((12, 20, 20), (8, 16, 16), False),
             "dummy 2d": ((4, 24, 24), (4, 16, 16), True)}  # fmt: skip
each_pipeline = pytest.mark.parametrize("pipeline", PIPELINES)


def make_views(pipeline, strong=2, *, always=False, mask=None):
    """The transform as the trainer makes it; `always` turns and scales every patch."""
    _, patch, dummy_2d = PIPELINES[pipeline]
    axes = tuple(range(len(patch)))
    planned = nnUNetTrainer.get_training_transforms(
        np.array(patch), TURN, [[1.0] * len(patch)], axes, dummy_2d, use_mask_for_norm=mask,
        foreground_labels=[1, 2], ignore_label=3,
    )  # fmt: skip
    views = WeakAndStrongViews(planned, strong)
    if always:
        for transform in views.weak.transforms:
            if hasattr(transform, "p_rotation"):
                transform.p_rotation = transform.p_scaling = 1.0
    return views


def apply(views, image, where=None, number=0):
    """Views `(1 + strong, C, *S)` and where to learn, with random numbers of their own."""
    where = torch.zeros((1, *image.shape[1:]), dtype=torch.int16) if where is None else where
    with seeded((number,)):
        out = views(image=image, segmentation=where)
    stacked = out["image"].view(-1, len(image), *out["image"].shape[1:])
    assert stacked.isfinite().all()
    return stacked, out["segmentation"]


def noise(pipeline, channels=1, scale=1.0, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((channels, *PIPELINES[pipeline][0]), generator=generator) * scale + shift


IMAGES = {
    "z-score": lambda pipeline: noise(pipeline),
    "CT in HU": lambda pipeline: noise(pipeline, scale=400, shift=-300),
    "all negative": lambda pipeline: -noise(pipeline).abs() - 5,
    "three channels": lambda pipeline: noise(pipeline, channels=3),
    "constant": lambda pipeline: torch.full((1, *PIPELINES[pipeline][0]), 2.5),
    "zero": lambda pipeline: torch.zeros((1, *PIPELINES[pipeline][0])),
    "tiny contrast": lambda pipeline: noise(pipeline, scale=1e-6, shift=-3),
}


@each_pipeline
def test_all_views_have_the_same_geometry_voxel_by_voxel(pipeline):
    views = make_views(pipeline, always=True)
    views.intensities = ComposeTransforms([])
    crop = noise(pipeline, channels=2)
    outcomes = []
    for number in range(8):
        stacked, _ = apply(views, crop, number=number)
        assert stacked.shape == (3, 2, *PIPELINES[pipeline][1])
        assert torch.equal(stacked[0], stacked[1])
        assert torch.equal(stacked[0], stacked[2])
        outcomes.append(stacked[0])
    assert all(not torch.equal(outcomes[0], other) for other in outcomes[1:])


@each_pipeline
def test_image_and_kept_voxels_have_the_same_geometry(pipeline):
    """Where the image is 1 losses apply, where it is 0 they do not; between lie the interpolated voxels."""
    views = make_views(pipeline, strong=0, always=True)
    generator = torch.Generator().manual_seed(1)
    crop = PIPELINES[pipeline][0]
    blocks = torch.rand((1, 1, *[n // 4 for n in crop]), generator=generator) > 0.4
    image = torch.nn.functional.interpolate(blocks.float(), size=crop, mode="nearest")[0]
    for number in range(8):
        stacked, where = apply(views, image, (image - 1).to(torch.int16), number)
        assert set(where.unique().tolist()) <= {-1, 0}
        assert (where[stacked[0] > 0.9] == 0).all()
        assert (where[stacked[0] < 0.1] == -1).all()


@each_pipeline
@pytest.mark.parametrize("image", IMAGES)
def test_strong_views_always_differ_from_the_weak_one_and_from_each_other(pipeline, image):
    views, crop = make_views(pipeline), IMAGES[image](pipeline)
    for number in range(20):
        weak, first, second = apply(views, crop, number=number)[0]
        size = float(weak.std()) if weak.std() > 0.1 else 0.1
        for a, b in ((weak, first), (weak, second), (first, second)):
            for channel in range(len(crop)):
                assert (a[channel] - b[channel]).abs().max() > 1e-4 * size, (number, channel)


@each_pipeline
def test_the_weak_view_keeps_the_images_own_intensities(pipeline):
    views = make_views(pipeline)
    crop = noise(pipeline)
    known = {round(value, 5) for value in crop.flatten().tolist()}
    unchanged = 0
    for number in range(10):  # most patches are neither turned nor scaled
        weak = apply(views, crop, number=number)[0][0]
        unchanged += {round(value, 5) for value in weak.flatten().tolist()} <= known
    assert unchanged >= 4


@each_pipeline
@pytest.mark.parametrize("mask", [None, [True]])
def test_nothing_is_changed_in_place(pipeline, mask):
    views = make_views(pipeline, mask=mask)
    for number in range(10):
        image = noise(pipeline)
        where = torch.zeros((1, *image.shape[1:]), dtype=torch.int16)
        where[..., 10:12], where[..., 13] = -1, -2
        before = image.clone(), where.clone()
        apply(views, image, where, number)
        assert torch.equal(image, before[0])
        assert torch.equal(where, before[1])


@pytest.mark.parametrize("number", range(6))
@each_pipeline
def test_beyond_the_crop_there_is_nothing_to_learn(pipeline, number):
    """A crop of the patch's own size, shrunk: what comes from outside is 0 in the image and -1."""
    views = make_views(pipeline, strong=1, always=True)
    for transform in views.weak.transforms:
        if hasattr(transform, "scaling"):
            transform.scaling = (1.4, 1.4)
    stacked, where = apply(views, torch.full((1, *PIPELINES[pipeline][1]), 7.0), number=number)
    assert (where == -1).any()
    assert (where == 0).any()
    assert (where[stacked[0] < 3] == -1).all()
    assert (where[stacked[0] == 7] == 0).all()


@each_pipeline
def test_outside_of_a_mask_every_view_is_zero_and_nothing_is_learned(pipeline):
    views = make_views(pipeline, mask=[True, False], always=True)
    image = noise(pipeline, channels=2, shift=4)
    outside = torch.zeros(image.shape[1:], dtype=torch.bool)
    outside[..., :9] = True
    image[0, outside] = 0
    for number in range(8):
        stacked, where = apply(views, image, number=number)
        assert (where == -1).any()
        for view in stacked:
            assert (view[0][where[0] == -1] == 0).all()
            assert (view[0][where[0] == 0] != 0).float().mean() > 0.99
            assert (view[1][where[0] == -1] != 0).any()  # normalized without the mask: left as it is


@each_pipeline
def test_annotated_voxels_are_left_out_but_seen_even_where_a_mask_is_used(pipeline):
    views = make_views(pipeline, mask=[True])
    image = noise(pipeline, shift=6)
    where = torch.zeros((1, *image.shape[1:]), dtype=torch.int16)
    where[..., ::2] = -2
    for number in range(8):
        stacked, left = apply(views, image, where, number)
        assert set(left.unique().tolist()) == {-1, 0}
        if (stacked[0] != 0).all():
            assert (stacked != 0).float().mean() > 0.99
            break
    else:
        raise AssertionError("annotated voxels are blanked")


def test_without_a_mask_zero_is_an_intensity_like_any_other():
    _, where = apply(make_views("2d", mask=[False]), torch.zeros((1, 24, 24)))
    assert (where == 0).all()


def test_random_numbers_alone_decide():
    views, crop = make_views("2d"), noise("2d")
    first, again, other = (apply(views, crop, number=number)[0] for number in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
