"""Group DICOM slices into cases: a folder per case, or a tree of patients, studies and series.

Slices of one study below one subfolder are a case. If there are several series, one is chosen. Slices directly in the
folder are cases by study, too.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from nnunet_collab.conversion.own.dicom_series import Series, in_order, series_faults
from nnunet_collab.conversion.own.dicom_tags import Slice
from nnunet_collab.conversion.own.found_case import FoundCase
from nnunet_collab.conversion.own.image_files import split_channel
from nnunet_collab.core.errors import CollabError, listed

MOST_SLICES = "most"  # value of --series


def series_pattern(word: str) -> re.Pattern[str] | None:
    """The expression of --series, or None if no word is to be searched.

    Raises:
        CollabError: If it is not a regular expression.
    """
    if word in ("", MOST_SLICES):
        return None
    try:
        return re.compile(word, re.IGNORECASE)
    except re.error as error:
        raise CollabError(
            f"--series: it must be `most`, or a word or regular expression that the series' description or UID "
            f"contains; got {word!r} ({error}). Correct it."
        ) from error


def dicom_cases(
    folder: Path, slices: Sequence[Slice], channels: Sequence[str], choice: str, problems: list[str]
) -> tuple[list[FoundCase], dict[Path, Series]]:
    """The cases of a folder.

    Args:
        folder: Folder of images or labels.
        slices: All image slices below it.
        channels: Names of the channels; with several, a folder around the slices has the name of its channel.
        choice: Value of --series.
        problems: A line is added for each fault.

    Returns:
        The cases; and for each path in their `images`, which is the first slice of a series, that series.
    """
    names = channels if len(channels) > 1 else ()
    slices = _of_one_patient(folder, slices, problems)
    units: dict[tuple[str, str], dict[int, list[Slice]]] = defaultdict(lambda: defaultdict(list))
    for part in slices:
        inside, channel = _case_folder(part.path.parent.relative_to(folder), names)
        if channel is None:
            problems.append(
                f"{part.path.parent}: a folder around the slices must have the name of a channel, one of "
                f"{listed(names, 9)}. Rename it, or move it away."
            )
            continue
        top = PurePosixPath(inside).parts[0] if PurePosixPath(inside).parts else ""
        units[top, part.study][channel].append(part)
    problems[:] = dict.fromkeys(problems)  # a line per folder, not per slice
    shared = Counter(top for top, _ in units)
    cases: list[FoundCase] = []
    series_of: dict[Path, Series] = {}
    for (top, _), parts in sorted(units.items(), key=lambda item: str(item[1][min(item[1])][0].path)):
        chosen = {n: s for n in sorted(parts) if (s := _choose(parts[n], choice, problems)) is not None}
        if len(chosen) < len(parts):
            continue
        if missing := [names[n] for n in range(len(names)) if n not in chosen]:
            example = next(iter(chosen.values())).files[0].parent
            problems.append(
                f"{example}: every case must have all channels; {listed(missing)} missing. Copy them again."
            )
            continue
        key = top if top and shared[top] == 1 else _key(folder, [p for group in parts.values() for p in group], names)
        cases.append(_case(key, list(chosen.values())))
        series_of |= {series.files[0]: series for series in chosen.values()}
    return _with_own_keys(cases, series_of), series_of


def _case_folder(path: Path, names: Sequence[str]) -> tuple[str, int | None]:
    """The folder of the case, without that of the channel; and the channel."""
    if not names:
        return path.as_posix().removeprefix("."), 0
    lower = [part.lower() for part in path.parts]
    found = [number for number, name in enumerate(names) if name.lower() in lower]
    if len(found) != 1:
        return path.as_posix(), None
    return split_channel(f"{path.as_posix()}/x", names)[0].removesuffix("x").strip("/"), found[0]


def _choose(slices: Sequence[Slice], choice: str, problems: list[str]) -> Series | None:
    """The series to convert; None after a fault."""
    groups: dict[str, list[Slice]] = defaultdict(list)
    for part in slices:
        groups[part.series].append(part)
    where = Path(os.path.commonpath([part.path.parent for part in slices]))
    candidates = list(groups.values())
    if pattern := series_pattern(choice):
        wanted = [
            group for group in candidates if pattern.search(group[0].description) or pattern.search(group[0].series)
        ]
        if not wanted:
            problems.append(f"{where}: no series fits --series {choice}; found {_told(candidates)}. Correct --series.")
            return None
        candidates = wanted
    volumes = [group for group in candidates if not all(part.is_localizer for part in group)]
    candidates = volumes or candidates
    if len(candidates) > 1 and not choice and (mixed := _in_one_folder(candidates)):
        problems.append(
            f"{mixed}: a folder must hold one series; it holds {len(candidates)}: {_told(candidates)}. Choose with "
            "--series WORD or --series most, or move each to a folder of its own."
        )
        return None
    most = max(map(len, candidates))
    largest = [group for group in candidates if len(group) == most]
    if len(largest) > 1:
        problems.append(
            f"{where}: {len(largest)} series have the most slices: {_told(largest)}. Choose with --series WORD, or "
            "move the others away."
        )
        return None
    if faults := list(series_faults(largest[0])):
        problems += faults
        return None
    return in_order(largest[0])


def _of_one_patient(folder: Path, slices: Sequence[Slice], problems: list[str]) -> list[Slice]:
    """The slices without those of folders that hold two patients. `folder` itself may hold a whole archive."""
    first: dict[Path, Slice] = {}
    mixed: set[Path] = set()
    for part in slices:
        other = first.setdefault(part.path.parent, part)
        if other.patient != part.patient and part.path.parent not in (folder, *mixed):
            mixed.add(part.path.parent)
            problems.append(
                f"{part.path.parent}: a folder must hold one patient; {other.path.name} and {part.path.name} have "
                "different PatientIDs. Move the files of each patient to a folder of their own."
            )
    return [part for part in slices if part.path.parent not in mixed]


def _in_one_folder(groups: Iterable[Sequence[Slice]]) -> Path | None:
    """A folder that holds slices of two series, or None."""
    holders: dict[Path, str] = {}
    for group in groups:
        for part in group:
            if holders.setdefault(part.path.parent, part.series) != part.series:
                return part.path.parent
    return None


def _told(groups: Sequence[Sequence[Slice]]) -> str:
    return listed([f"{g[0].description or 'no description'} ({len(g)} slices, UID {g[0].series})" for g in groups])


def _key(folder: Path, slices: Sequence[Slice], names: Sequence[str]) -> str:
    """The deepest folder that holds all slices of a study, as a path below `folder`; empty for `folder` itself."""
    places = {_case_folder(part.path.parent.relative_to(folder), names)[0] or "." for part in slices}
    return "" if "." in places else os.path.commonpath(sorted(places)).replace(os.sep, "/")


def _case(key: str, chosen: Sequence[Series]) -> FoundCase:
    first = chosen[0].slices[0]
    return FoundCase(
        key,
        tuple(series.files[0] for series in chosen),
        aliases=tuple(filter(None, (PurePosixPath(key).name, *(s.slices[0].series for s in chosen), first.patient))),
        others=tuple(path for series in chosen for path in series.files[1:]),
        patient=first.patient,
        modality=first.modality,
    )


def _with_own_keys(cases: Sequence[FoundCase], series_of: dict[Path, Series]) -> list[FoundCase]:
    """Give cases whose folder does not tell them apart the UID of their series as a name."""
    count = Counter(case.key for case in cases)
    result = []
    for case in cases:
        if not case.key or count[case.key] > 1:
            uid = series_of[case.images[0]].slices[0].series
            result.append(replace(case, key=f"{case.key}/{uid}".strip("/")))
        else:
            result.append(case)
    return result
