"""Weak and strong views of an unlabeled patch, made in the workers of the loader.

The geometric transforms (crop, rotation, scaling, mirroring) are those of nnU-Net. They are applied once, so that the
voxels of all views correspond; the result is the weak view. Each strong view then always changes the intensities
visibly: nnU-Net's own intensity augmentation does not change about one third of the patches.

The transforms do not need intensities in [0, 1]. They work with z-scored CT and MR images.
"""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import blur_dimension
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

GEOMETRY = (SpatialTransform, MirrorTransform, Convert3DTo2DTransform, Convert2DTo3DTransform)
# In an image normalized with its mask, voxels outside are 0, except for small errors of the interpolation.
OUTSIDE = 1e-3
# Smallest number of voxels along an axis that is blurred. The slices of an anisotropic patch are too far apart, and
# fewer than the kernel needs.
BLURRED_FROM = 9


class WeakAndStrongViews(BasicTransform):  # type: ignore[misc]
    """Makes the views of a crop and stacks them as channels, so that nnU-Net's loader works without a change.

    Args:
        planned: Result of `nnUNetTrainer.get_training_transforms`; its geometric transforms are used.
        strong: Number of strong views, each with its own random numbers.
        planned_intensities: Whether the weak view has nnU-Net's changes of intensities, too.

    The transform takes `image` `(C, *crop)` and `segmentation` `(1, *crop)`. The segmentation is 0 where unsupervised
    losses apply, -1 outside of the image (padding, outside of a mask), and lower at annotated voxels. These are also
    excluded from the losses, but visible in the image. The transform returns `image` `((1 + strong) * C, *S)`, with the
    weak view first, and the corresponding `segmentation`, with -1 where losses do not apply. Where the geometric
    transforms reach beyond the crop (in corners, if the image is made smaller) both are 0, as in labeled samples.
    Nothing is changed in place.
    """

    def __init__(self, planned: ComposeTransforms, strong: int, *, planned_intensities: bool = False) -> None:
        super().__init__()
        masks = [t for t in planned.transforms if isinstance(t, MaskImageTransform)]
        kinds = (*GEOMETRY, RandomTransform) if planned_intensities else GEOMETRY
        self.weak = ComposeTransforms([t for t in planned.transforms if isinstance(t, kinds)])
        self.strong = strong
        self.intensities = strong_intensities()
        self.mask = masks[0] if masks else None

    def __call__(self, **data_dict: Any) -> dict[str, Any]:
        """The views of one crop."""
        image, where = data_dict["image"], data_dict["segmentation"]
        if self.mask is not None:
            outside = (image[self.mask.apply_to_channels].abs() < OUTSIDE).all(dim=0, keepdim=True)
            where = torch.where(outside, torch.full_like(where, -1), where)
        data = self.weak(image=image, segmentation=where)
        weak, where = data["image"], data["segmentation"]
        views = [weak, *(self.intensities(image=weak.clone())["image"] for _ in range(self.strong))]
        if self.mask is not None:
            # The mask transform writes in place, and the weak view can share memory with the caller's image.
            outside = -(where == -1).short()
            views = [self.mask(image=view.clone(), segmentation=outside)["image"] for view in views]
        return {"image": torch.cat(views), "segmentation": where.clamp(min=-1)}


def strong_intensities() -> ComposeTransforms:
    """Brightness and contrast in every view; gamma, blur and noise each in half of the views.

    The strengths are those of the color jitter (0.5) and blur (p 0.5) of UniMatch and CrossMatch. Their jitter needs
    intensities in [0, 1]; it is replaced by additive brightness in units of the patch's standard deviation.
    """
    return ComposeTransforms(
        [
            ContrastTransform(
                contrast_range=BGContrast((0.5, 1.5)), preserve_range=False, synchronize_channels=False, p_per_channel=1
            ),
            _ShiftTransform(0.5),
            RandomTransform(
                GammaTransform(
                    gamma=BGContrast((0.5, 1.5)),
                    p_invert_image=0.5,
                    synchronize_channels=False,
                    p_per_channel=1,
                    p_retain_stats=1,
                ),
                apply_probability=0.5,
            ),
            RandomTransform(_BlurTransform(0.5, 1.5), apply_probability=0.5),
            RandomTransform(
                GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True),
                apply_probability=0.5,
            ),
        ]
    )


class _ShiftTransform(BasicTransform):  # type: ignore[misc]
    """Adds to each channel a uniform random share of its standard deviation."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        image: Tensor = data_dict["image"]
        shape = (image.shape[0], *[1] * (image.ndim - 1))
        return {"share": torch.empty(shape).uniform_(-self.largest, self.largest)}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        # At least 0.1, so that a constant patch changes, too. Normalized images have a standard deviation of about 1.
        deviation = img.flatten(1).std(dim=1).clamp(min=0.1).view_as(params["share"])
        shifted: Tensor = img + params["share"] * deviation
        return shifted


class _BlurTransform(BasicTransform):  # type: ignore[misc]
    """Blurs with a Gaussian of random width (in voxels) along all axes that are not short."""

    def __init__(self, narrowest: float, widest: float) -> None:
        super().__init__()
        self.range = narrowest, widest

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        return {"sigma": float(torch.empty(()).uniform_(*self.range))}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        for axis, length in enumerate(img.shape[1:]):
            if length >= BLURRED_FROM:
                img = blur_dimension(img, params["sigma"], axis)
        return img
