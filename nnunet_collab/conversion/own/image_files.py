"""Find the image files that are not DICOM in a user's folder: their case and channel, by their path."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from nnunet_collab.conversion.own.found_case import FoundCase
from nnunet_collab.core.errors import listed

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURES = (".png", ".tiff", ".tif", ".jpeg", ".jpg", ".bmp")
_DATA = (".raw", ".zraw", ".raw.gz", ".img")  # voxels of a header that is a file of its own
_MOST_NUMBERED = 16  # more numbered files of one name are cases, not channels


def ending_of(path: Path) -> str:
    """The ending of an image file in lower case; empty for other files."""
    name = path.name.lower()
    return next((ending for ending in (*VOLUMES, *PICTURES) if name.endswith(ending)), "")


def visible_files(folder: Path) -> list[Path]:
    """All files at any depth in alphabetical order, without hidden files and folders."""
    files = (path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else ()
    return sorted(path for path in files if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def image_cases(
    folder: Path,
    files: Sequence[Path],
    channels: Sequence[str],
    problems: list[str],
    labels: Collection[str] = (),
    expected: int = 0,
) -> list[FoundCase]:
    """The cases of the files of known formats.

    Args:
        folder: Folder of the images or labels.
        files: Its files.
        channels: Names of the channels. A file belongs to the channel whose name ends its own name, or is its name, or
            is the name of a folder around it. Empty: files named CASE_0000, CASE_0001 and so on are channels; else
            there is one channel.
        problems: A line is added for each case without all channels.
        labels: Names of the labels: a file of such a name is a case, whatever number ends it.
        expected: Number of channels of the images with labels, if it is known. It tells of a folder with one case
            whether its numbered files are channels.
    """
    stems = {path: _stem(path.relative_to(folder)) for path in files if ending_of(path)}
    if not channels and (numbered := _numbered(stems, labels, expected)):
        parts, count = numbered
    elif len(channels) > 1:
        parts, count = {path: split_channel(stem, channels) for path, stem in stems.items()}, len(channels)
    else:
        parts, count = {path: (stem, 0) for path, stem in stems.items()}, 1
    return _grouped(parts, count, channels, problems)


def split_channel(stem: str, channels: Sequence[str]) -> tuple[str, int | None]:
    """Name of the case and number of the channel of a path without ending; None if the path names no channel."""
    parts = PurePosixPath(stem).parts
    for number, channel in enumerate(channels):
        lower = [part.lower() for part in parts]
        if channel.lower() in lower and len(parts) > 1:
            place = lower.index(channel.lower())
            return "/".join((*parts[:place], *parts[place + 1 :])), number
    # The longest name first: T1ce ends like ce.
    for channel in sorted(channels, key=len, reverse=True):
        match = re.fullmatch(rf"(.+)[_. -]{re.escape(channel)}", stem, re.IGNORECASE)
        if match:
            return match[1], channels.index(channel)
    return stem, None


def _stem(path: Path) -> str:
    return path.as_posix()[: -len(ending_of(path))]


def _numbered(
    stems: dict[Path, str], labels: Collection[str], expected: int
) -> tuple[dict[Path, tuple[str, int | None]], int] | None:
    """The cases if all files are named CASE_0000, CASE_0001, ... with the same numbers for each case; else None."""
    matches = {path: re.fullmatch(r"(.+)_(\d{4})", stem) for path, stem in stems.items()}
    if not stems or not all(matches.values()) or {*stems.values()} & {*labels}:
        return None
    parts = {path: (match[1], int(match[2])) for path, match in matches.items() if match}
    numbers: dict[str, set[int]] = defaultdict(set)
    for name, number in parts.values():
        numbers[name].add(number)
    count = max(map(len, numbers.values()))
    one_case = len(numbers) == 1 and count > 1 and count != expected and not {*numbers} & {*labels}
    if count > _MOST_NUMBERED or one_case or not all(0 in found for found in numbers.values()):
        return None
    return {path: (name, number if number < count else None) for path, (name, number) in parts.items()}, count


def _grouped(
    parts: dict[Path, tuple[str, int | None]], count: int, channels: Sequence[str], problems: list[str]
) -> list[FoundCase]:
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    for path, (name, number) in parts.items():
        if number is None:
            called = f"one of the channels {listed(channels, 9)}" if channels else f"a channel below {count}"
            problems.append(f"{path}: its name or a folder around it must name {called}. Rename it or move it away.")
        elif other := cases[name].get(number):
            problems.append(f"{path}: there must be one file per case; found also {other}. Remove one of them.")
        else:
            cases[name][number] = path
    cases_in = Counter(PurePosixPath(name).parent for name in cases)
    found = []
    for name, images in sorted(cases.items()):
        missing = [channels[n] if channels else f"{n:04d}" for n in range(count) if n not in images]
        if missing and images:
            problems.append(
                f"case {name}: every case must have {count} channels; {listed(missing)} missing beside "
                f"{next(iter(images.values()))}. Copy the files again, or remove the case."
            )
        if missing:
            continue
        paths = tuple(images[number] for number in range(count))
        parent = PurePosixPath(name).parent
        around = [parent.as_posix()] if cases_in[parent] == 1 and parent.name else []
        data = [beside for path in paths for beside in _data_files(path)]
        found.append(FoundCase(name, paths, aliases=tuple(around), others=tuple(data)))
    return found


def _data_files(header: Path) -> list[Path]:
    """The files beside a header (.mhd, .nhdr) that may hold its voxels."""
    if ending_of(header) not in (".mhd", ".nhdr"):
        return []
    places = [header.with_name(header.name[: -len(ending_of(header))] + ending) for ending in _DATA]
    return [place for place in places if place.is_file()]
