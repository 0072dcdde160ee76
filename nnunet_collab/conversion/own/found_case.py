"""A case or a label as it is found in the user's folders, and the ways in which an image and its label are paired."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_LABEL_WORDS = re.compile(r"[_. -](seg|segmentation|label|labels|mask|gt|labelmap)$", re.IGNORECASE)


@dataclass(frozen=True)
class FoundCase:
    """A case of one of the user's folders.

    Attributes:
        key: Its name in the source: the path below its folder without ending and channel.
        aliases: Other names by which a label can call it: the folder around it, UID of its DICOM series.
        images: One path per channel; for a DICOM series its first file.
        label: Path of the label, or None.
        others: Other files of the case, e.g. the other slices of a series.
        patient: PatientID of its DICOM files; empty if unknown.
        modality: Modality of its DICOM files; empty if unknown.
    """

    key: str
    images: tuple[Path, ...]
    aliases: tuple[str, ...] = ()
    label: Path | None = None
    others: tuple[Path, ...] = ()
    patient: str = ""
    modality: str = ""


def pair(images: Sequence[FoundCase], labels: Sequence[FoundCase], problems: list[str]) -> list[FoundCase]:
    """The images, each with its label if there is one.

    A label belongs to the image of the same name. Names are compared exactly; then without words such as `_seg` at the
    label's end; then with the aliases of both.

    Args:
        images: Images of one folder.
        labels: Labels of one folder; the first path of each is the label.
        problems: A line is added for each label without an image, and for each second label of an image.
    """
    label_of: dict[str, FoundCase] = {}
    for label in labels:
        image = _image_of(label, images)
        if image is None:
            problems.append(
                f"{label.images[0]}: the image of this label is missing; none is named {label.key}. Copy it, rename "
                "the label after its image, or remove the label."
            )
        elif other := label_of.get(image.key):
            problems.append(
                f"{label.images[0]}: there must be one label per image; {other.images[0]} is one of {image.key}, too. "
                "Remove one of them."
            )
        else:
            label_of[image.key] = label
    return [_with_label(image, label_of.get(image.key)) for image in images]


def refuse_same_names(cases: Iterable[FoundCase], problems: list[str]) -> list[FoundCase]:
    """The cases without those that have the name of an earlier one; a line is added to `problems` for each."""
    first: dict[str, FoundCase] = {}
    for case in cases:
        if other := first.get(case.key):
            problems.append(
                f"{case.images[0]}: there must be one file per case; found also {other.images[0]}. Remove one of them."
            )
        else:
            first[case.key] = case
    return list(first.values())


def _with_label(image: FoundCase, label: FoundCase | None) -> FoundCase:
    if label is None:
        return image
    return replace(image, label=label.images[0], others=(*image.others, *label.others))


def _image_of(label: FoundCase, images: Sequence[FoundCase]) -> FoundCase | None:
    by_key: Mapping[str, FoundCase] = {image.key: image for image in images}
    for name in (label.key, _LABEL_WORDS.sub("", label.key)):
        if name in by_key:
            return by_key[name]
    names = {label.key, _LABEL_WORDS.sub("", label.key), *label.aliases}
    found = [image for image in images if names & {image.key, *image.aliases}]
    return found[0] if len(found) == 1 else None
