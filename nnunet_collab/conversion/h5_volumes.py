"""Read volumes from the .h5 files of semi-supervised code bases: arrays `image` and `label`, without geometry.

A volume is one file, or one file per slice. If the original image is available, its geometry is restored (`restored`).
The volume is then the original image, or a box of it, with other intensities. The position of the box is found from the
bounding boxes of the labels. It is accepted only if the intensities are a linear function of the original ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.extras import require_package
from nnunet_collab.core.image_io import read_image

LEAST_CORRELATION = 0.999  # smallest correlation with the original; rounding lowers it by less
MOST_VOXELS = 200_000  # approximate number of voxels, evenly spaced, from which the correlation is computed


@dataclass(frozen=True)
class H5Volume:
    """The files of a volume and of its original.

    Attributes:
        files: File of the volume, or files of its slices in order.
        axes_xyz: Whether the axes of the arrays are ordered x, y, z; otherwise z, y, x (slices: y, x).
        original: Image from which the volume was made. With None, the spacing is unknown and written as 1.
        original_label: Label of the original; needed if the volume is a box of the original.
    """

    files: tuple[Path, ...]
    axes_xyz: bool = False
    original: Path | None = None
    original_label: Path | None = None

    def read(self, key: str) -> sitk.Image:
        """Read "image" or "label", with the geometry of the original if there is one.

        Raises:
            CollabError: If a file cannot be read, if slices differ in size, or if the original is a different image.
        """
        volume = self._array(key)
        grid = None if self.original is None else restored(self, volume.shape)
        image = sitk.GetImageFromArray(volume)
        if grid is not None:
            image.CopyInformation(grid)
            if key == "image":
                _refuse_other_image(volume, grid, self)
        return image

    def _array(self, key: str) -> npt.NDArray[Any]:
        parts = [_read(path, key) for path in self.files]
        shapes = sorted({part.shape for part in parts})
        if len(shapes) > 1:
            raise CollabError(
                f"{self.files[0]}: all slices of a volume must have the same size; found "
                f"{', '.join(map(str, shapes))}. Copy the slices again, or leave this case out."
            )
        volume = parts[0] if len(parts) == 1 and parts[0].ndim == 3 else np.stack(parts)
        if volume.dtype == bool:
            volume = volume.astype(np.uint8)
        return np.ascontiguousarray(volume.T if self.axes_xyz else volume)


def require_h5py() -> Any:
    """The module h5py.

    Raises:
        CollabError: If it is not installed.
    """
    return require_package("h5py", "h5", "ssl4mis: reading .h5 files")


def restored(volume: H5Volume, shape: tuple[int, ...]) -> sitk.Image:
    """The part of the original from which a volume was made. It has the geometry of the volume.

    Args:
        volume: A volume with an original.
        shape: Shape of the volume, z, y, x.

    Raises:
        CollabError: If the volume cannot be a part of the original.
    """
    if volume.original is None:
        raise ValueError("restored: the volume has no original")
    original, size = read_image(volume.original), tuple(reversed(shape))
    if original.GetSize() == size:
        return original
    fix = "Use the originals from which this data was made, or leave --originals out."
    if volume.original_label is None or original.GetDimension() != len(size):
        raise CollabError(
            f"{volume.files[0]}: the size must be that of its original {volume.original}, {original.GetSize()}; it is "
            f"{size}. {fix}"
        )
    corners = []
    for label in (sitk.GetArrayFromImage(read_image(volume.original_label)), volume._array("label")):
        voxels = np.argwhere(label)
        if len(voxels) == 0:
            raise CollabError(
                f"{volume.files[0]}: its position in {volume.original} is found from its label, so the label must not "
                f"be empty; it is. Leave this case out, or leave --originals out."
            )
        corners.append((voxels.min(axis=0), voxels.max(axis=0)))
    start = corners[0][0] - corners[1][0]
    extent = [tuple(last - first) for first, last in corners]
    if extent[0] != extent[1] or (start < 0).any() or (start + shape > original.GetSize()[::-1]).any():
        raise CollabError(f"{volume.files[0]}: the label must be that of {volume.original}; it differs. {fix}")
    return sitk.RegionOfInterest(original, size, [int(i) for i in start[::-1]])


def _refuse_other_image(image: npt.NDArray[Any], part: sitk.Image, volume: H5Volume) -> None:
    step = max(1, image.size // MOST_VOXELS)
    ours, theirs = (array.ravel()[::step].astype(np.float64) for array in (image, sitk.GetArrayViewFromImage(part)))
    if ours.std() == 0 or theirs.std() == 0:
        same = ours.std() == theirs.std()
    else:
        same = np.corrcoef(ours, theirs)[0, 1] >= LEAST_CORRELATION
    if not same:
        raise CollabError(
            f"{volume.files[0]}: the intensities must be those of {volume.original}, up to a factor and an offset; "
            "they are not. Use the originals from which this data was made, or leave --originals out."
        )


def _read(path: Path, key: str) -> npt.NDArray[Any]:
    h5py = require_h5py()
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file[key][()])
    except (OSError, KeyError, RuntimeError) as error:
        raise CollabError(
            f"{path}: cannot be read completely ({key}: {error}). Copy or download the file again."
        ) from error
