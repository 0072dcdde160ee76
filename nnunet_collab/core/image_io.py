"""Reading an image or label file whole, or not at all. Every reader of the package goes through `read_whole`."""

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
    import SimpleITK as sitk  # imported where it is used: `nnunet_collab --help` does not wait for it

T = TypeVar("T")

LABEL_TOLERANCE = 1e-3  # labels stored with a scale factor are not quite whole numbers


class Volume(NamedTuple):
    """An image or label as a reader of nnU-Net returns it.

    Attributes:
        voxels: `(C, Z, Y, X)` float32; Z = 1 in 2D.
        spacing: `(3,)` float64, in mm, in the order of the axes Z, Y, X.
        grid: Where it lies.
    """

    voxels: NDArray[np.float32]
    spacing: NDArray[np.float64]
    grid: Grid


def read_whole(path: Path, read: Callable[[str], T]) -> T:
    """Let `read` read one file, after checking that it is whole.

    Args:
        path: The file.
        read: Takes the path as text.

    Raises:
        CollabError: If the file is no image, is cut off, or fails its checksum.
    """
    try:
        check_whole(path)
        return read(str(path))
    except (MemoryError, ImportError):  # no fault of the file
        raise
    except Exception as error:  # whatever a reader raises on a damaged file
        # SimpleITK's messages open with lines about its own source code; the last line is the reason.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise CollabError(
            f"{path}: cannot be read whole ({reason}). Copy or download this file again, or save it in another format."
        ) from error


def read_image(path: Path) -> sitk.Image:
    """Read one image file with SimpleITK, of any format it knows.

    Raises:
        CollabError: If the file is no image, is cut off, or fails its checksum.
    """
    import SimpleITK as sitk

    return read_whole(path, sitk.ReadImage)


def read_volume(path: Path, reader: type[Any], *, label: bool) -> Volume:
    """Read one file as nnU-Net does.

    Args:
        path: The file.
        reader: nnU-Net's reader class for it.
        label: Whether it is a segmentation; for some formats nnU-Net looks for its spacing elsewhere then.

    Raises:
        CollabError: If the file is no image, is cut off, or fails its checksum.
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
    """Round labels that a scale factor in the header made uneven: 3.0000002 is 3.

    Args:
        voxels: `(*S)` of any number type.

    Returns:
        The labels, rounded, `(*S)` float; and the values that are further than `LABEL_TOLERANCE` from a whole number
        (NaN and infinite ones are), each once, in order.
    """
    rounded = np.rint(voxels)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        uneven = ~(np.abs(voxels - rounded) <= LABEL_TOLERANCE)
    return rounded, np.unique(voxels[uneven])
