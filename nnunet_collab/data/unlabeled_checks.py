"""Find all faults in the names and voxels of the images in imagesUn before any image is preprocessed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.nnunet_folders import UNLABELED, case_images

if TYPE_CHECKING:
    import numpy.typing as npt

Images = Mapping[str, Sequence[Path]]  # case -> one file per channel, or one with all of them


class _Grid(NamedTuple):
    channels: int
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]


def name_problems(raw: Path, images: Images, ending: str, listed_cases: Iterable[str]) -> Iterator[str]:
    """Faults in file names: no images, a missing channel, a name that is used elsewhere.

    Args:
        raw: Folder of the raw dataset.
        images: Images of imagesUn.
        ending: Ending of the dataset's files.
        listed_cases: Labeled cases that dataset.json lists, in any folder.
    """
    folder = raw / UNLABELED
    names = sorted(path.name for path in folder.glob(f"[!.]*{ending}") if path.is_file())
    if not images:
        found = (
            f"none of its {len(list(folder.iterdir()))} files is one" if folder.is_dir() else "there is no such folder"
        )
        yield (
            f"{folder}: it must hold unlabeled images, named like those of imagesTr: CASE_0000{ending}; {found}. "
            "Put the images there, without labels."
        )
    elif odd := [name for name in names if not re.fullmatch(r".+_\d{4}", name[: -len(ending)])]:
        yield f"{folder}: images must be named CASE_0000{ending}; found {listed(odd)}. Add the number of the channel."
    taken = dict.fromkeys(listed_cases, "dataset.json")
    taken |= {case: part for part in ("imagesTs", "imagesTr") for case in case_images(raw / part, ending)}
    taken |= {path.name[: -len(ending)]: "labelsTr" for path in (raw / "labelsTr").glob(f"*{ending}")}
    for case, paths in images.items():
        if case in taken:
            yield f"case {case}: its name must be only in imagesUn; it is also in {taken[case]}. Rename or remove it."
        if case.endswith("_seg"):
            yield f"case {case}: its name must not end with _seg, which nnU-Net uses for labels; it does. Rename it."
        if [int(path.name[len(case) + 1 :][:4]) for path in paths] != [*range(len(paths))]:
            yield (
                f"case {case}: its channels must be numbered from 0000 without a gap; found "
                f"{', '.join(path.name for path in paths)}. Add the missing images."
            )


def image_problems(images: Images, reader: Any, channels: int, processes: int) -> list[str]:
    """Read every image and list all faults, one line each.

    An image must be complete and finite. It must have one value per voxel, or colors if nnU-Net's reader reads them as
    channels. The images of a case must have the same grid, and together the channels of dataset.json.

    Args:
        images: Images to read.
        reader: Reader class of nnU-Net for the dataset.
        channels: Number of channels of each case.
        processes: Number of cases that are read at a time.
    """
    from tqdm import tqdm

    def faults(case: str) -> list[str]:
        return [f"case {case}: {fault}" for fault in _faults_of_case(reader, images[case], channels)]

    with ThreadPoolExecutor(processes) as pool:  # threads suffice: most of the time is decompression, outside Python
        found = tqdm(pool.map(faults, images), total=len(images), desc="Checking", unit="case", disable=None)
        return [fault for of_case in found for fault in of_case]


def _faults_of_case(reader: Any, paths: Sequence[Path], expected: int) -> Iterator[str]:
    import numpy as np  # imported here, so that the help of the command is fast

    grids: list[_Grid] = []
    for path in paths:
        try:
            voxels, grid = _read(reader, path)
        except CollabError as error:
            yield str(error)
            continue
        grids.append(grid)
        if voxels.dtype.kind in "fc" and (bad := int(np.count_nonzero(~np.isfinite(voxels)))):
            yield (
                f"{path}: intensities must be finite; {bad} of its voxels are NaN or infinite. Set them to the value "
                "of the background, or remove the case."
            )
    if len(grids) < len(paths):
        return
    if (channels := sum(grid.channels for grid in grids)) != expected:
        names = ", ".join(path.name for path in paths)
        yield f"it must have {expected} channels, as in dataset.json; found {channels} in {names}. Correct its images."
    for path, grid in zip(paths[1:], grids[1:], strict=True):
        if not _same_grid(grid, grids[0]):
            yield (
                f"its channels must have the same grid; {paths[0].name} has shape {grids[0].shape} and spacing "
                f"{grids[0].spacing_mm}, {path.name} has {grid.shape} and {grid.spacing_mm}. Resample one to the other."
            )


def _same_grid(a: _Grid, b: _Grid) -> bool:
    return a.shape == b.shape and all(
        abs(x - y) <= 1e-4 * abs(y) for x, y in zip(a.spacing_mm, b.spacing_mm, strict=True)
    )


def _read(reader: Any, path: Path) -> tuple[npt.NDArray[Any], _Grid]:
    """Read one image file as nnU-Net will.

    Returns:
        The voxels and the grid; the axes are in the order of the array.

    Raises:
        CollabError: If the file cannot be read completely, or if a voxel has several values and nnU-Net needs one.
    """
    import SimpleITK as sitk
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunet_collab.core.image_io import read_image, read_volume

    if issubclass(reader, SimpleITKIO):  # it would read a truncated file without an error
        image = read_image(path)
        if (components := image.GetNumberOfComponentsPerPixel()) != 1:
            raise CollabError(
                f"{path}: every voxel must have one value; it has {components}, as in a color image. Save each channel "
                "in a separate file, or save a gray image."
            )
        size, spacing = image.GetSize()[::-1], image.GetSpacing()[::-1]
        grid = _Grid(size[0], size[1:], spacing[1:]) if len(size) == 4 else _Grid(1, size, spacing)
        return sitk.GetArrayFromImage(image), grid
    data, spacing_mm, _ = read_volume(path, reader, label=False)
    return data, _Grid(data.shape[0], tuple(data.shape[1:]), tuple(float(mm) for mm in spacing_mm))
