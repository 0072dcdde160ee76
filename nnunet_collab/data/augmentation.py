"""The papers' light augmentation in place of nnU-Net's."""

from __future__ import annotations

import math

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

# CTRCL (section IV.B) says "random flip and random rotation" without numbers. The code its protocol follows
# (TransUNet's, also SSL4MIS's) rotates half of the samples by up to 20 degrees; flips are nnU-Net's mirroring.
ROTATION_PROBABILITY = 0.5
ROTATION_RADIANS = (-20 / 180 * math.pi, 20 / 180 * math.pi)


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
