"""Whether the same image is in two roles: labeled and unlabeled, trained on and validated on, or in the test set.

Images are the same if their voxels are, whatever the number type, the name and the geometry in the header. Turned,
resampled or rescaled copies are not recognized. Constant images (a missing channel filled with zeros) do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.image_io import read_image
from nnunet_collab.core.nnunet_folders import Split

LABELED, UNLABELED, VALIDATION, TEST = "labeled", "unlabeled", "validation", "test"
_ROLE = {"train": LABELED, "val": VALIDATION, "unlabeled": UNLABELED}


class Entry(NamedTuple):
    """A case and the folder it is in: imagesTr, imagesUn or imagesTs."""

    folder: str
    case: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.case}"


def equal_images(images: Mapping[Entry, Sequence[Path]]) -> list[list[Entry]]:
    """Read all images, with a progress bar, and group the cases that hold the same one.

    Args:
        images: Case -> one path per channel.

    Raises:
        CollabError: With every image that cannot be read.
    """
    bar = tqdm(total=sum(map(len, images.values())), desc="Reading images", unit="image", disable=None)
    holders: dict[str, list[Entry]] = {}
    problems = []
    with bar:
        for entry, paths in images.items():
            for path in paths:
                try:
                    digest = voxel_digest(read_image(path))
                except CollabError as error:
                    problems.append(str(error))
                else:
                    if digest is not None and entry not in holders.setdefault(digest, []):
                        holders[digest].append(entry)
                bar.update()
    if problems:
        raise CollabError("\n- ".join(["split --audit: every image must be readable; these are not:", *problems]))
    return [entries for entries in holders.values() if len(entries) > 1]


def duplicates(copies: Iterable[list[Entry]], split: Split | None) -> list[str]:
    """Name the copies in two roles.

    Args:
        copies: Groups of `equal_images`.
        split: Roles of the cases of imagesTr, per fold. Without one, two copies in imagesTr are named, too: one may be
            trained on while the other is validated on.

    Returns:
        One line per pair of cases.
    """
    return list(dict.fromkeys(_lines(copies, split)))


def voxel_digest(image: sitk.Image) -> str | None:
    """SHA-256 of shape and voxels; None for an image of one value, which says nothing."""
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.size == 0 or voxels.min() == voxels.max():
        return None
    digest = hashlib.sha256(repr(voxels.shape).encode())
    for part in voxels:  # in parts: a whole volume as float64 may not fit. Adding 0 makes 0 of -0.
        digest.update((np.asarray(part, dtype="<f8") + 0.0).tobytes())
    return digest.hexdigest()


def _lines(groups: Iterable[list[Entry]], split: Split | None) -> Iterator[str]:
    for entries in groups:
        for i, first in enumerate(entries):
            for second in entries[i + 1 :]:
                if conflict := _conflict(first, second, split):
                    yield f"duplicate: {first} and {second} hold the same image: {conflict}"


def _conflict(first: Entry, second: Entry, split: Split | None) -> str:
    """In which roles two copies are, or an empty text if that does no harm."""
    if split is None:
        if first.folder == second.folder == "imagesTr":
            return "one may be trained on while the other is validated on"
        return _pair(*(_fixed_role(entry) or LABELED for entry in (first, second)))
    found: dict[str, list[str]] = {}
    role_in = _roles_by_fold(split)
    for number, role_of in enumerate(role_in):
        pair = _pair(role_of(first), role_of(second))
        if pair:
            found.setdefault(pair, []).append(str(number))
    if len(found) == 1 and len(next(iter(found.values()))) == len(split):
        return next(iter(found))
    return "; ".join(f"{pair} in fold {', '.join(folds)}" for pair, folds in found.items())


def _roles_by_fold(split: Split) -> list[Callable[[Entry], str]]:
    def lookup(fold: Mapping[str, Sequence[str]]) -> Callable[[Entry], str]:
        role = {case: _ROLE[key] for key, names in fold.items() if key in _ROLE for case in names}
        return lambda entry: _fixed_role(entry) or role.get(entry.case, "")

    return [lookup(fold) for fold in split]


def _fixed_role(entry: Entry) -> str:
    return {"imagesUn": UNLABELED, "imagesTs": TEST}.get(entry.folder, "")


def _pair(first: str, second: str) -> str:
    return f"{first} and {second}" if first and second and first != second else ""
