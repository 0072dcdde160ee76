"""Read image and label files, and refuse incomplete ones. Every reader of the package uses `read_whole`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.grid import Grid
from nnunet_collab.core.whole_files import check_whole

if TYPE_CHECKING:
    import SimpleITK as sitk  # imported only where it is used, so that `nnunet_collab --help` is fast

T = TypeVar("T")

LABEL_TOLERANCE = 1e-3  # labels stored with a scale factor are not exact whole numbers


class Volume(NamedTuple):
    """An image or label as a reader of nnU-Net returns it.

    Attributes:
        voxels: Voxel values, `(C, Z, Y, X)` float32; Z = 1 in 2D.
        spacing: Spacing in mm, `(3,)` float64, in the order Z, Y, X.
        grid: Size and position in world coordinates.
    """

    voxels: NDArray[np.float32]
    spacing: NDArray[np.float64]
    grid: Grid


def read_whole(path: Path, read: Callable[[str], T]) -> T:
    """Check that a file is complete, then let `read` read it.

    Args:
        path: The file.
        read: Function that takes the path as a string.

    Raises:
        CollabError: If the file is not an image, is truncated, or has a wrong checksum.
    """
    try:
        check_whole(path)
        return read(str(path))
    except (MemoryError, ImportError):  # not caused by the file
        raise
    except Exception as error:  # whatever a reader raises on a damaged file
        # SimpleITK's messages open with lines about its own source code; the last line is the reason.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise CollabError(
            f"{path}: cannot be read completely ({reason}). Copy or download the file again, or save it in another "
            "format."
        ) from error


def read_image(path: Path) -> sitk.Image:
    """Read one image file with SimpleITK, in any format that SimpleITK supports.

    Raises:
        CollabError: If the file is not an image, is truncated, or has a wrong checksum.
    """
    import SimpleITK as sitk

    return read_whole(path, sitk.ReadImage)


def read_volume(path: Path, reader: type[Any], *, label: bool) -> Volume:
    """Read one file as nnU-Net does.

    Args:
        path: The file.
        reader: Reader class of nnU-Net for this format.
        label: Whether the file is a segmentation. For some formats nnU-Net reads its spacing from another file then.

    Raises:
        CollabError: If the file is not an image, is truncated, or has a wrong checksum.
    """

    def read(name: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
        found: tuple[NDArray[np.float32], dict[str, Any]] = (
            reader().read_seg(name) if label else reader().read_images([name])
        )
        return found

    voxels, properties = read_whole(path, read)
    grid = Grid.of_properties(properties, voxels.shape)
    return Volume(voxels, np.asarray(properties["spacing"], dtype=np.float64), grid)


def whole_numbers(voxels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Round labels to whole numbers. A scale factor in the header can turn 3 into 3.0000002.

    Args:
        voxels: Labels, `(*S)` of any number type.

    Returns:
        The rounded labels, `(*S)` float. And the sorted distinct values that differ by more than `LABEL_TOLERANCE` from
        a whole number, including NaN and infinity.
    """
    rounded = np.rint(voxels)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        uneven = ~(np.abs(voxels - rounded) <= LABEL_TOLERANCE)
    return rounded, np.unique(voxels[uneven])
