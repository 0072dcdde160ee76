"""The classes of a user's labels: from a table, from the segments of DICOM-SEG, or from the values that are found."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_collab.conversion.own.segmentations import Segmentation, names_of
from nnunet_collab.core.csv_text import original
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.image_io import whole_numbers

IGNORE = "ignore"  # nnU-Net's name for voxels without a label
MOST_CLASSES = 200  # a label is stored in 8 bits, and an image is no label


@dataclass(frozen=True)
class Classes:
    """Classes in the source and in nnU-Net.

    Attributes:
        source: Class -> value in the source; without the background.
        values: Value in the source -> value in nnU-Net, which are numbered without a gap; 0 is the background.
        labels: The entry `labels` of dataset.json.
    """

    source: Mapping[str, int]

    @property
    def values(self) -> dict[int, int]:  # noqa: D102 - above
        return {0: 0, **{self.source[name]: number for number, name in enumerate(self._ordered(), start=1)}}

    @property
    def labels(self) -> dict[str, int | list[int]]:  # noqa: D102 - above
        return {"background": 0, **{name: number for number, name in enumerate(self._ordered(), start=1)}}

    def _ordered(self) -> list[str]:
        """Classes by their values; the ignore label is the last, as nnU-Net requires."""
        return sorted(self.source, key=lambda name: (name == IGNORE, self.source[name]))


def parse_classes(text: str) -> dict[str, int]:
    """Class -> value in the source, from `1=liver,2=tumor` or a CSV file with the columns value and name.

    Raises:
        CollabError: If the text or the file has another form, or names a value or a class twice.
    """
    fix = 'Write "1=liver,2=tumor", or name a CSV file whose first line is "value,name".'
    if "=" in text and not Path(text).is_file():
        pairs = [tuple(part.strip() for part in word.partition("=")[::2]) for word in text.split(",")]
    else:
        pairs = _of_file(Path(text), fix)
    faults = [f"{value}={name}" for value, name in pairs if not re.fullmatch(r"\d{1,5}", value) or not name]
    if faults or not pairs:
        raise CollabError(
            f"--classes: each class must be a whole number and a name; got {listed(faults) or 'none'}. {fix}"
        )
    wanted = {name: int(value) for value, name in pairs if not (int(value) == 0 and name.lower() == "background")}
    numbers = [int(value) for value, _ in pairs]
    if 0 in wanted.values() or len(set(numbers)) < len(numbers) or len({n for _, n in pairs}) < len(pairs):
        raise CollabError(
            f"--classes: every value and every name must occur once, and 0 is the background; got {text}. {fix}"
        )
    return wanted


def find_classes(
    labels: Sequence[Path],
    segmentations: Mapping[Path, Segmentation],
    table: str,
    read_values: Callable[[Path], sitk.Image],
) -> Classes:
    """The classes of all labels.

    Args:
        labels: Labels that are not DICOM-SEG; their values are looked at if there is no table.
        segmentations: Label that is DICOM-SEG -> what it says of itself.
        table: Value of --classes; empty: no table.
        read_values: Reads a label of `labels`.

    Raises:
        CollabError: If the table is refused, if labels with values and with named segments are mixed without a table,
            if a segment is not in the table, or if there are too many values.
    """
    names = names_of(segmentations)
    if table:
        wanted = parse_classes(table)
        if unknown := [name for name in names if name not in wanted]:
            raise CollabError(
                f"--classes: it must name every segment of the DICOM segmentations; it lacks {listed(unknown)}. Add "
                "them."
            )
        return Classes(wanted)
    if names and labels:
        raise CollabError(
            f"convert own: {len(segmentations)} labels are DICOM segmentations with the segments {listed(names)}, and "
            f"{len(labels)} labels hold numbers, e.g. {labels[0]}. Say with --classes which number is which segment, "
            "e.g. "
            f'--classes "1={names[0]}".'
        )
    if names:
        return Classes({name: number for number, name in enumerate(names, start=1)})
    return Classes(_named(_values_of(labels, read_values)))


def _of_file(path: Path, fix: str) -> list[tuple[str, ...]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = list(csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ","))
        return [(row["value"].strip(), original(row["name"].strip())) for row in rows]
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise CollabError(
            f"--classes: {path} must be a table of classes; it cannot be read ({error}). {fix}"
        ) from error


def _values_of(labels: Sequence[Path], read: Callable[[Path], sitk.Image]) -> list[int]:
    """All values but 0. Labels that cannot be read, and values that are not whole, are reported by the later check."""
    found: set[int] = set()
    for path in tqdm(labels, desc="Looking for classes", unit="label", disable=None):
        try:
            label = read(path)  # held, because the view below does not hold it
            voxels = np.unique(sitk.GetArrayViewFromImage(label))
        except CollabError:
            continue
        rounded, uneven = whole_numbers(voxels.astype(np.float64))
        whole = rounded[~np.isin(voxels, uneven)]
        found |= {int(value) for value in whole[(whole > 0) & (whole < 2**15)]}
        if len(found) > MOST_CLASSES:
            raise CollabError(
                f"{path}: a label must hold few values, one per class; more than {MOST_CLASSES} were found. It may be "
                "an image. Copy the label again, or name the classes with --classes."
            )
    return sorted(found)


def _named(values: Sequence[int]) -> dict[str, int]:
    if len(values) == 1:
        return {"foreground": values[0]}
    return {f"class_{value}": value for value in values}
