"""The unlabeled images of a training set. Their labels are never opened.

The dataset replaces an nnU-Net dataset in `nnUNetDataLoader`. Its "segmentation" says only where unsupervised losses
apply: it is 0 there, -1 outside of the image, and `ANNOTATED` at annotated voxels. Neither label files nor property
files, which hold `class_locations`, are read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_collab.core.errors import CollabError
from nnunet_collab.data.locations import load_locations
from nnunet_collab.data.preprocessed_files import image_file, is_whole, open_array

# Not -1: in images normalized with a mask, voxels outside of the image are set to 0. Annotated voxels must be kept.
ANNOTATED = -2


class UnlabeledDataset:
    """Preprocessed images by case name.

    Args:
        folders: Case name -> folder of its preprocessed image.
        partially_labeled: nnU-Net's dataset of labeled cases with an ignore label. Voxels of this label are also
            unlabeled data; only the positions of this label are used.
        ignore_label: The ignore label; needed with `partially_labeled`.
        located: Case name -> folder with the locations of its predicted foreground; see `data.locations`.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        partially_labeled: Any = None,
        ignore_label: int | None = None,
        located: Mapping[str, Path] | None = None,
    ) -> None:
        self.folders = dict(folders)
        self.partially_labeled = partially_labeled
        self.ignore_label = ignore_label
        self.located = dict(located or {})
        known = [] if partially_labeled is None else list(partially_labeled.identifiers)
        self.identifiers = sorted({*self.folders, *known})

    def without(self, cases: Collection[str]) -> UnlabeledDataset:
        """The dataset without some of its unlabeled cases; those that are partially labeled stay."""
        kept = {case: folder for case, folder in self.folders.items() if case not in cases}
        located = {case: folder for case, folder in self.located.items() if case not in cases}
        return UnlabeledDataset(
            kept, partially_labeled=self.partially_labeled, ignore_label=self.ignore_label, located=located
        )

    def load_case(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Image `(C, *S)`, learn mask `(1, *S)`, None, and properties with only the locations of predicted classes.

        Raises:
            CollabError: If the image is missing or truncated.
        """
        if identifier in self.folders:
            image = open_image(self.folders[identifier], identifier)
            where: Any = _Where((1, *image.shape[1:]))
        else:
            image, labels, _, _ = self.partially_labeled.load_case(identifier)
            where = _Unannotated(labels, self.ignore_label)
        found = load_locations(self.located[identifier], identifier) if identifier in self.located else {}
        return image, where, None, {"class_locations": found}


def open_image(folder: Path, identifier: str) -> Any:
    """A preprocessed image `(C, *S)` in one of nnU-Net's formats, without its label.

    Raises:
        CollabError: If the image is missing or truncated.
    """
    if (path := image_file(folder, identifier)) is not None:
        try:
            return open_array(path)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CollabError(
                f"{path}: the preprocessed image of the unlabeled case {identifier!r} must be complete; it is not "
                f"({error}). Delete the file, then run nnunet_collab preprocess_unlabeled for images in imagesUn, "
                f"nnUNetv2_preprocess for cases of imagesTr."
            ) from error
    raise CollabError(
        f"{folder}: holds no preprocessed image of the unlabeled case {identifier!r}. Run nnunet_collab "
        f"preprocess_unlabeled for images in imagesUn, nnUNetv2_preprocess for cases of imagesTr."
    )


def has_image(folder: Path, identifier: str) -> bool:
    """Whether `open_image` finds a complete image."""
    path = image_file(folder, identifier)
    return path is not None and is_whole(path)


class _Where:
    """An array of zeros that takes no memory: unsupervised losses apply everywhere."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.ndim = len(shape)
        self.dtype = np.dtype(np.int16)

    def __getitem__(self, window: Any) -> npt.NDArray[np.int16]:
        # A copy, because nnU-Net makes a tensor of it and the shared zero is read-only.
        zeros: npt.NDArray[np.int16] = np.broadcast_to(np.int16(0), self.shape)[window].copy()
        return zeros


class _Unannotated(_Where):
    """A label file, read crop by crop: 0 at the ignore label, -1 outside of the image, `ANNOTATED` elsewhere."""

    def __init__(self, labels: Any, ignore_label: int | None) -> None:
        super().__init__(labels.shape)
        self.labels = labels
        self.ignore_label = ignore_label

    def __getitem__(self, window: Any) -> npt.NDArray[np.int16]:
        labels = np.asarray(self.labels[window])
        return np.where(labels == self.ignore_label, 0, np.where(labels < 0, -1, ANNOTATED)).astype(np.int16)
