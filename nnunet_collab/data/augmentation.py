"""Make nnU-Net's augmentation repeatable, or replace it by the lighter augmentation of the papers."""

from __future__ import annotations

import math

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

# CTRCL (section IV.B) says "random flip and random rotation" without numbers. Its protocol follows the code of
# TransUNet, as does SSL4MIS: it rotates half of the samples by up to 20 degrees. Flips are nnU-Net's mirroring.
ROTATION_PROBABILITY = 0.5
ROTATION_RADIANS = (-20 / 180 * math.pi, 20 / 180 * math.pi)


def without_timing(planned: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms, changed so that the result depends only on the random numbers.

    The blur of nnU-Net measures the time of two implementations and uses the faster one. Their results differ in the
    last bits, so the same batch could differ between runs and between workers. Here the blur always convolves directly,
    which is faster for kernels as short as nnU-Net's.

    Args:
        planned: Result of `nnUNetTrainer.get_training_transforms`; its transforms are changed in place.
    """
    for transform in planned.transforms:
        inner = getattr(transform, "transform", transform)
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return planned


def flips_and_rotations_only(planned: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms without intensity changes and scaling, and with the rotation of the papers.

    Args:
        planned: Result of `nnUNetTrainer.get_training_transforms`; its transforms are changed in place.

    Returns:
        Cropping to the patch, rotation, mirroring and the conversion of labels, in nnU-Net's order.
    """
    kept: list[BasicTransform] = [t for t in planned.transforms if not isinstance(t, RandomTransform)]
    for transform in kept:
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = ROTATION_PROBABILITY
            transform.rotation = ROTATION_RADIANS
            transform.p_scaling = 0
    return ComposeTransforms(kept)
