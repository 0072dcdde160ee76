"""nnU-Net's augmentation made repeatable, and the papers' light one in its place."""

from __future__ import annotations

import math

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

# CTRCL (section IV.B) says "random flip and random rotation" without numbers. The code its protocol follows
# (TransUNet's, also SSL4MIS's) rotates half of the samples by up to 20 degrees; flips are nnU-Net's mirroring.
ROTATION_PROBABILITY = 0.5
ROTATION_RADIANS = (-20 / 180 * math.pi, 20 / 180 * math.pi)


def without_timing(planned: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms as functions of their random numbers alone.

    nnU-Net lets its blur time two implementations, which differ in the last bits, and keep the faster one. The same
    batch would then differ between runs and between workers. Here it always convolves directly, the faster way for
    kernels as short as nnU-Net's.

    Args:
        planned: What `nnUNetTrainer.get_training_transforms` returns; its transforms are changed in place.
    """
    for transform in planned.transforms:
        inner = getattr(transform, "transform", transform)
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return planned


def flips_and_rotations_only(planned: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms without intensity changes and scaling, and with the papers' rotation.

    Args:
        planned: What `nnUNetTrainer.get_training_transforms` returns; its transforms are changed in place.

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
