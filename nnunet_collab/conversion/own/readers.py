"""Read voxels and geometry of the files of one conversion, and nothing else: no tag, comment or description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from nnunet_collab.conversion.own.dicom_series import Series, read_series
from nnunet_collab.conversion.own.image_files import ending_of
from nnunet_collab.conversion.own.segmentations import read_segmentation
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.image_io import read_image, read_whole

BRIGHT = 128  # of a mask saved as JPEG
_GRAY = (64, 192)  # JPEG moves the two values of a mask, but hardly ever so far
_MOST_GRAY = 0.05  # share of pixels


@dataclass
class Readers:
    """Functions that read the images and labels of a conversion by their paths.

    Attributes:
        series_of: First file of a DICOM series -> the series.
        image_of: Label that is a DICOM-SEG -> first image of its case.
        segments: Label of a segment -> value in the source.
    """

    series_of: Mapping[Path, Series]
    image_of: Mapping[Path, Path]
    segments: Mapping[str, int] = field(default_factory=dict)
    _last: tuple[Path, sitk.Image] | None = None  # an image is read again for its label

    def image(self, path: Path) -> sitk.Image:
        """An image without metadata.

        Raises:
            CollabError: If it cannot be read.
        """
        series = self.series_of.get(path)
        if series is not None:
            image = without_metadata(read_series(series))
        else:
            gray = _with_pillow(path, "L") if ending_of(path) == ".bmp" else None  # ITK gives it three equal colors
            image = without_metadata(read_image(path)) if gray is None else gray
        self._last = (path, image)
        return image

    def label(self, path: Path) -> sitk.Image:
        """A label without metadata, with the values of the source.

        Raises:
            CollabError: If it cannot be read, or is a picture whose colors do not tell classes.
        """
        if path in self.image_of:
            image = self.image_of[path]
            grid = self._last[1] if self._last and self._last[0] == image else self.image(image)
            return read_segmentation(path, grid, self.segments)
        if path in self.series_of:
            return without_metadata(read_series(self.series_of[path]))
        if ending_of(path) == ".png":
            return _read_png(path)
        label = without_metadata(read_image(path))
        if label.GetNumberOfComponentsPerPixel() > 1:
            label = _gray(path, label)
        return _of_jpeg(path, label) if ending_of(path) in (".jpg", ".jpeg") else label


def without_metadata(image: sitk.Image) -> sitk.Image:
    """A new image of the same voxels and geometry."""
    is_vector = image.GetNumberOfComponentsPerPixel() > 1
    clean = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image), isVector=is_vector)
    clean.CopyInformation(image)
    return clean


def _with_pillow(path: Path, mode: str) -> sitk.Image | None:
    """The numbers of a picture of this mode of Pillow; None if it has another one."""

    def numbers(name: str) -> sitk.Image | None:
        with Image.open(name) as picture:
            return sitk.GetImageFromArray(np.array(picture)) if picture.mode == mode else None

    return read_whole(path, numbers)


def _read_png(path: Path) -> sitk.Image:
    """The numbers of a PNG with a palette, not its colors."""
    if (indexed := _with_pillow(path, "P")) is not None:
        return indexed
    label = without_metadata(read_image(path))
    return _gray(path, label) if label.GetNumberOfComponentsPerPixel() > 1 else label


def _gray(path: Path, label: sitk.Image) -> sitk.Image:
    """One of three equal channels."""
    voxels = sitk.GetArrayViewFromImage(label)
    if (voxels[..., :3] != voxels[..., :1]).any():
        raise CollabError(
            f"{path}: a label must hold one number per pixel; this one has colors. Save it in gray or with a palette, "
            "one number per class."
        )
    return without_metadata(sitk.VectorIndexSelectionCast(label, 0))


def _of_jpeg(path: Path, label: sitk.Image) -> sitk.Image:
    """A mask saved as JPEG, which changes values: 255 where it is bright, else 0."""
    pixels = sitk.GetArrayViewFromImage(label)
    gray = float(np.mean((pixels >= _GRAY[0]) & (pixels < _GRAY[1])))
    if gray > _MOST_GRAY or (0 < pixels.max() < BRIGHT):
        raise CollabError(
            f"{path}: JPEG changes the numbers of a label, so a JPEG label must be black and white; {gray:.0%} of its "
            "pixels are gray. Save the label as PNG."
        )
    return sitk.Cast(label >= BRIGHT, sitk.sitkUInt8) * 255
