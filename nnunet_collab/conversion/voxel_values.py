"""Check and round labels that are stored as floats, and write images with a clear message for a full disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.image_io import LABEL_TOLERANCE


def label_values(label: sitk.Image) -> list[float]:
    """The distinct values of a label, sorted; NaN comes last."""
    return [float(value) for value in np.unique(sitk.GetArrayViewFromImage(label))]


def not_whole(values: Iterable[float]) -> str:
    """The first values that differ by more than `LABEL_TOLERANCE` from a whole number, as text."""
    # "not <=" instead of ">": NaN is not a whole number.
    wrong = [value for value in values if not abs(value - np.rint(value)) <= LABEL_TOLERANCE]
    return shown_values(wrong)


def shown_values(values: Iterable[float], most: int = 5) -> str:
    """The first `most` values with 10 significant digits, so that 3.0000002 does not look like 3."""
    texts = [f"{value:.10g}" for value in values]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def round_label(label: sitk.Image) -> sitk.Image:
    """The label, rounded to whole numbers as int16, the type that nnU-Net uses. The grid is not changed."""
    result = sitk.GetImageFromArray(np.rint(sitk.GetArrayViewFromImage(label)).astype(np.int16))
    result.CopyInformation(label)
    return result


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image file, compressed.

    Raises:
        CollabError: If it cannot be written, e.g. on a full disk.
    """
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise CollabError(
            f"{path}: could not be written ({reason}). Free some disk space or fix the permissions, then run the "
            "command again."
        ) from error
