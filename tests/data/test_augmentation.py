"""nnU-Net's augmentation without a clock in it, and the papers' light one: rotation, flips, and nothing else."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_collab.data.augmentation import flips_and_rotations_only, without_timing

FULL_TURN = (-math.pi, math.pi)


def planned(patch=(16, 16), *, dummy_2d=False, **options):
    axes = tuple(range(len(patch)))
    return nnUNetTrainer.get_training_transforms(
        np.array(patch), FULL_TURN, options.pop("scales", None), axes, dummy_2d, **options
    )


def names(composed):
    # Releases of batchgeneratorsv2 differ in how they spell one of the names.
    return [type(t).__name__.replace("Tansform", "Transform") for t in composed.transforms]


def spatial(composed):
    (transform,) = (t for t in composed.transforms if isinstance(t, SpatialTransform))
    return transform


def blurred(transforms, monkeypatch, seconds_per_look):
    """A blurred image, where the clock advances by these seconds from one look at it to the next."""
    times = itertools.accumulate(seconds_per_look)
    monkeypatch.setattr("batchgeneratorsv2.transforms.noise.gaussian_blur.time", lambda: next(times))
    (blur,) = (
        t.transform
        for t in transforms.transforms
        if type(getattr(t, "transform", None)).__name__ == "GaussianBlurTransform"
    )
    blur.p_per_channel = 1
    np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    return blur(image=torch.rand(1, 64, 64))["image"]


def test_the_blur_does_not_depend_on_how_fast_the_machine_is(monkeypatch):
    def both(transforms):
        # Two implementations are timed, one after the other; either may come out as the faster one.
        return [blurred(transforms(), monkeypatch, looks) for looks in (itertools.count(1), itertools.count(10**6, -1))]

    assert not torch.equal(*both(planned))  # so it is in nnU-Net
    first, second = both(lambda: without_timing(planned()))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, both(planned)[0], rtol=1e-4, atol=1e-5)  # and it still blurs


def test_geometry_and_labels_stay_in_nnunets_order():
    assert names(flips_and_rotations_only(planned())) == ["SpatialTransform", "MirrorTransform", "RemoveLabelTransform"]
    everything = planned(
        (4, 16, 16),
        dummy_2d=True,
        scales=[[1, 1, 1], [1, 0.5, 0.5]],
        use_mask_for_norm=[True],
        regions=[(1, 2), (2,)],
        ignore_label=3,
    )
    assert names(flips_and_rotations_only(everything)) == [
        "Convert3DTo2DTransform",
        "SpatialTransform",
        "Convert2DTo3DTransform",
        "MirrorTransform",
        "MaskImageTransform",
        "RemoveLabelTransform",
        "ConvertSegmentationToRegionsTransform",
        "DownsampleSegForDSTransform",
    ]


def test_all_that_is_left_out_changes_intensities():
    stock = planned()
    kept = set(map(id, flips_and_rotations_only(stock).transforms))
    left_out = [t for t in stock.transforms if id(t) not in kept]
    assert all(isinstance(t, RandomTransform) for t in left_out)
    assert {type(t.transform).__name__ for t in left_out} == {
        "GaussianNoiseTransform",
        "GaussianBlurTransform",
        "MultiplicativeBrightnessTransform",
        "ContrastTransform",
        "SimulateLowResolutionTransform",
        "GammaTransform",
    }


def test_half_of_the_samples_turn_by_up_to_twenty_degrees_and_none_is_scaled():
    np.random.seed(0)  # noqa: NPY002  (the transforms draw from the global generator)
    transform = spatial(flips_and_rotations_only(planned()))
    affines = [transform.get_parameters(image=torch.zeros(1, 16, 16))["affine"] for _ in range(400)]
    turned = [np.asarray(affine) for affine in affines if affine is not None]
    assert 160 < len(turned) < 240
    degrees = [math.degrees(math.atan2(a[1, 0], a[0, 0])) for a in turned]
    assert -20 <= min(degrees) < -15
    assert 15 < max(degrees) <= 20
    assert [np.linalg.det(a) for a in turned] == pytest.approx([1.0] * len(turned))


def test_samples_that_do_not_turn_keep_every_value_and_label():
    np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    transforms = flips_and_rotations_only(planned())
    spatial(transforms).p_rotation = 0
    image = torch.rand(1, 16, 16)
    flipped = {tuple(image.flip(axes).flatten().tolist()) for axes in ([], [1], [2], [1, 2])}
    seen = set()
    for _ in range(30):
        out = transforms(image=image.clone(), segmentation=(image > 0.5).to(torch.int16))
        assert torch.equal(out["segmentation"], (out["image"] > 0.5).to(torch.int16))
        seen.add(tuple(out["image"].flatten().tolist()))
    assert seen == flipped  # every flip occurs, and nothing else


def test_larger_crops_are_cut_to_the_patch():
    out = flips_and_rotations_only(planned())(image=torch.rand(1, 24, 30), segmentation=torch.zeros(1, 24, 30).short())
    assert out["image"].shape == out["segmentation"].shape == (1, 16, 16)
