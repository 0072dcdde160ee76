"""Find images that occur in two roles, e.g. as labeled and unlabeled, training and validation, or test images.

Two images are the same if their voxel values are equal; number type, file name and geometry do not matter. Rotated,
resampled or rescaled copies are not found. Constant images (e.g. a missing channel filled with zeros) are ignored.
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
    """Read all images, with a progress bar, and group the cases that contain the same image.

    Args:
        images: Case -> one path per channel.

    Raises:
        CollabError: If images cannot be read; the message lists all of them.
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
    """List the copies that are in two roles.

    Args:
        copies: Groups of cases from `equal_images`.
        split: Roles of the cases of imagesTr, per fold. Without a split, two copies in imagesTr are listed, too: one
            may be a training case and the other one a validation case.

    Returns:
        One line per pair of cases.
    """
    return list(dict.fromkeys(_lines(copies, split)))


def voxel_digest(image: sitk.Image) -> str | None:
    """SHA-256 of shape and voxels; None for a constant image."""
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.size == 0 or voxels.min() == voxels.max():
        return None
    digest = hashlib.sha256(repr(voxels.shape).encode())
    for part in voxels:  # slice by slice, because a volume in float64 may not fit in memory. Adding 0 turns -0 into 0.
        digest.update((np.asarray(part, dtype="<f8") + 0.0).tobytes())
    return digest.hexdigest()


def _lines(groups: Iterable[list[Entry]], split: Split | None) -> Iterator[str]:
    for entries in groups:
        for i, first in enumerate(entries):
            for second in entries[i + 1 :]:
                if conflict := _conflict(first, second, split):
                    yield f"duplicate: {first} and {second} hold the same image: {conflict}"


def _conflict(first: Entry, second: Entry, split: Split | None) -> str:
    """The two roles of two copies, or an empty text if there is no conflict."""
    if split is None:
        if first.folder == second.folder == "imagesTr":
            return "one may be a training case and the other one a validation case"
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
