"""The unlabeled side of a training set: images whose labels are never opened.

It stands where an nnU-Net dataset stands in `nnUNetDataLoader`, but its "segmentation" says only where unsupervised
losses apply: 0 there, -1 outside of the image, `ANNOTATED` where a label is. Neither label files nor the property
files, which hold `class_locations`, are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from nnunet_collab.core.errors import CollabError

# Not -1: what is outside of the image is blanked in images normalized with a mask, and annotated voxels must not be.
ANNOTATED = -2


class UnlabeledDataset:
    """Preprocessed images by case name.

    Args:
        folders: Case name -> the folder of its preprocessed image.
        partially_labeled: nnU-Net's dataset of labeled cases whose voxels of the ignore label are unlabeled data,
            too; only the place of that label is used.
        ignore_label: That label; needed with `partially_labeled`.
    """

    def __init__(
        self, folders: Mapping[str, Path], *, partially_labeled: Any = None, ignore_label: int | None = None
    ) -> None:
        self.folders = dict(folders)
        self.partially_labeled = partially_labeled
        self.ignore_label = ignore_label
        known = [] if partially_labeled is None else list(partially_labeled.identifiers)
        self.identifiers = sorted({*self.folders, *known})

    def load_case(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Image `(C, *S)`, where to learn `(1, *S)`, nothing, and properties without any location of a class.

        Raises:
            CollabError: If the image is not there.
        """
        if identifier in self.folders:
            image = open_image(self.folders[identifier], identifier)
            where: Any = _Where((1, *image.shape[1:]))
        else:
            image, labels, _, _ = self.partially_labeled.load_case(identifier)
            where = _Unannotated(labels, self.ignore_label)
        return image, where, None, {"class_locations": {}}


def open_image(folder: Path, identifier: str) -> Any:
    """A preprocessed image `(C, *S)` in one of nnU-Net's formats, without its label.

    Raises:
        CollabError: If there is none.
    """
    compressed, plain, archive = (folder / f"{identifier}{ending}" for ending in (".b2nd", ".npy", ".npz"))
    if compressed.is_file():
        # Threads of blosc2 would not survive the fork of a loader's worker; its memory maps do not work on Windows.
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}
        return blosc2.open(urlpath=str(compressed), mode="r", dparams={"nthreads": 1}, **mapped)
    if plain.is_file():
        return np.load(plain, mmap_mode="r")
    if archive.is_file():
        return np.load(archive)["data"]  # an archive is read entry by entry
    raise CollabError(
        f"{folder}: holds no preprocessed image of the unlabeled case {identifier!r}. Run nnunet_collab "
        f"preprocess_unlabeled for images in imagesUn, nnUNetv2_preprocess for cases of imagesTr."
    )


def has_image(folder: Path, identifier: str) -> bool:
    """Whether `open_image` finds one."""
    return any((folder / f"{identifier}{ending}").is_file() for ending in (".b2nd", ".npy", ".npz"))


class _Where:
    """An array of zeros in which nothing is stored: unsupervised losses apply everywhere."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.ndim = len(shape)
        self.dtype = np.dtype(np.int16)

    def __getitem__(self, window: Any) -> npt.NDArray[np.int16]:
        # A copy, since nnU-Net makes a tensor of it, and the shared zero cannot be written to.
        zeros: npt.NDArray[np.int16] = np.broadcast_to(np.int16(0), self.shape)[window].copy()
        return zeros


class _Unannotated(_Where):
    """A label file seen as 0 at the ignore label, -1 outside and `ANNOTATED` everywhere else, crop by crop."""

    def __init__(self, labels: Any, ignore_label: int | None) -> None:
        super().__init__(labels.shape)
        self.labels = labels
        self.ignore_label = ignore_label

    def __getitem__(self, window: Any) -> npt.NDArray[np.int16]:
        labels = np.asarray(self.labels[window])
        return np.where(labels == self.ignore_label, 0, np.where(labels < 0, -1, ANNOTATED)).astype(np.int16)
