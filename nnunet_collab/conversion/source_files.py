"""Find the files of a downloaded dataset and pair images with labels. Each fault becomes one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunet_collab.conversion.source_check import Case
from nnunet_collab.core.errors import CollabError


def root_folder(source: Path, places: Sequence[str], holds: Sequence[str]) -> Path:
    """The folder of the dataset, in the given folder or below it.

    Args:
        source: Folder given by the user.
        places: Folders to search, relative to `source`, in this order; "." is `source` itself.
        holds: Names of the folders that must all be in it.

    Raises:
        CollabError: If none of the places holds them.
    """
    for place in places:
        if all((source / place / name).is_dir() for name in holds):
            return source / place
    inside = " or ".join(f"{source / place}" for place in places[1:])
    raise CollabError(
        f"{source}: SOURCE must hold the folder{'s' * (len(holds) > 1)} {' and '.join(holds)}, as in the official "
        f"archive; neither it nor {inside} does. Give the folder above {holds[0]}."
    )


def by_name(paths: Iterable[Path], pattern: str, problems: list[str]) -> dict[str, Path]:
    """First group of the pattern -> file, for all files whose whole name matches.

    Args:
        paths: Any paths; those that do not match are ignored (e.g. read-me files, hidden files of macOS).
        pattern: Regular expression with a group.
        problems: A line is added for each additional file with the same group.
    """
    found: dict[str, Path] = {}
    for path in sorted(paths):
        match = re.fullmatch(pattern, path.name)
        if match is None:
            continue
        if other := found.get(match[1]):
            problems.append(f"{path}: there must be one file per case; found also {other}. Remove one of them.")
        else:
            found[match[1]] = path
    return found


def paired(
    images: Mapping[str, Path], labels: Mapping[str, Path], problems: list[str], *, prefix: str = ""
) -> list[Case]:
    """Cases with one image and one label each.

    Args:
        images: Name -> path of the image.
        labels: Name -> path of the label.
        problems: A line is added for each image without a label and each label without an image.
        prefix: Start of the cases' names.
    """
    problems += [
        f"{labels[name]}: the image of this label is missing. Copy it again, or remove the label."
        for name in sorted(labels.keys() - images.keys())
    ]
    problems += [
        f"{images[name]}: the label of this image is missing. Copy it again, or remove the image."
        for name in sorted(images.keys() - labels.keys())
    ]
    return [Case(f"{prefix}{name}", (images[name],), labels[name]) for name in sorted(images.keys() & labels.keys())]


def refuse_nothing_found(cases: Sequence[object], problems: Sequence[str], folder: Path, wanted: str) -> None:
    """Stop if a folder holds nothing that belongs to the dataset.

    Raises:
        CollabError: If there are neither cases nor faults.
    """
    if not cases and not problems:
        raise CollabError(f"{folder}: it must hold {wanted}; none was found. Unpack the archive again.")
