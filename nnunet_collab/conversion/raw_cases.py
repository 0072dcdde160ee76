"""Write the cases of a raw dataset so that an interrupted conversion can be continued.

The cases are written to a hidden folder in the parent folder of the dataset. A manifest in it has one line per
*complete* case: the sizes and times of the source files, and the sizes of the written files. After an interruption a
case is kept only if its line is still correct. All other files in the folder, such as those of an incomplete case, are
deleted and written again. The first line of the manifest describes the conversion; if it differs, no case is kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_collab.conversion.raw_target import MANIFEST
from nnunet_collab.conversion.source_check import Case, SourceRules, same_grid, to_nnunet_label
from nnunet_collab.conversion.voxel_values import write_image
from nnunet_collab.core.files import write_atomically
from nnunet_collab.core.image_io import read_image

ROLES = ("Tr", "Un", "Ts")  # training, unlabeled, test

Roles = Mapping[str, Sequence[Case]]
Records = dict[str, dict[str, Any]]  # "Tr/case" -> its line of the manifest


def complete_cases(folder: Path, header: Mapping[str, object], roles: Roles) -> Records:
    """The complete cases of an interrupted conversion. Nothing is changed on the disk.

    Args:
        folder: The hidden folder; it may be missing.
        header: Description of the conversion.
        roles: Role -> cases.

    Returns:
        Records of the cases whose source files and written files match the manifest; empty if the header differs.
    """
    manifest = folder / MANIFEST
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    found: Records = {}
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
        except ValueError:  # the last line, truncated by the interruption
            break
        if number == 0 and record != json.loads(json.dumps(header)):
            return {}
        if number > 0:
            found[record["case"]] = record
    stamps = {f"{role}/{case.name}": source_stamp(case) for role in roles for case in roles[role]}
    return {
        name: record
        for name, record in found.items()
        if record["source"] == stamps.get(name) and record["written"] == _sizes(folder, record["written"])
    }


def write_cases(
    folder: Path, header: Mapping[str, object], roles: Roles, rules: SourceRules, ending: str, kept: Records
) -> None:
    """Write the images and labels of all cases below `folder`.

    Args:
        folder: The hidden folder; created if it is missing. Files in it that do not belong to `kept` are deleted.
        header: Description of the conversion.
        roles: Role -> cases; a role of `ROLES` may be missing.
        rules: Rules for reading the sources.
        ending: Ending of the files, with its dot.
        kept: Records of the complete cases, from `complete_cases`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name for record in kept.values() for name in record["written"]}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
    lines = "".join(json.dumps(line) + "\n" for line in (header, *kept.values()))
    write_atomically(folder / MANIFEST, lambda temporary: _write_text(temporary, lines))
    jobs = [(role, case) for role in ROLES for case in roles.get(role, ()) if f"{role}/{case.name}" not in kept]
    bar = tqdm(jobs, total=len(jobs) + len(kept), initial=len(kept), desc="Writing", unit="case", disable=None)
    with (folder / MANIFEST).open("a", encoding="utf-8") as manifest:
        for role, case in bar:
            stamp = source_stamp(case)  # taken before reading, so that a file that changes meanwhile is read again
            written = _write_case(case, rules, ending, folder, role)
            record = {
                "case": f"{role}/{case.name}",
                "source": stamp,
                "written": _sizes(folder, [path.relative_to(folder).as_posix() for path in written]),
            }
            manifest.write(json.dumps(record) + "\n")
            manifest.flush()


def finish(folder: Path, place: Path) -> None:
    """Rename the complete folder to `place`. A folder of that name is deleted first."""
    if place.exists():
        shutil.rmtree(place)
    folder.rename(place)
    (place / MANIFEST).unlink()  # removed last: after an interruption before this line, the folder is still usable


def source_stamp(case: Case) -> list[list[object]]:
    """Digest of the path, size (bytes) and modification time (ns) of every source file, including those in folders.

    The digest, because the manifest lies among the data, and paths may name patients.
    """
    paths = [path for source in case.sources for path in (sorted(source.rglob("*")) if source.is_dir() else [source])]
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return [[hashlib.sha256(str(path).encode()).hexdigest(), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _write_case(case: Case, rules: SourceRules, ending: str, folder: Path, role: str) -> list[Path]:
    images, labels = folder / f"images{role}", folder / f"labels{role}"
    images.mkdir(parents=True, exist_ok=True)
    written = []
    grid = rules.read_image(case.images[0])
    for channel, path in enumerate(case.images):
        image = grid if channel == 0 else rules.read_image(path)
        place = images / f"{case.name}_{channel:04d}{ending}"
        if path.name.endswith(ending) and rules.read_image is read_image and same_grid(image, grid):
            shutil.copyfile(path, place)
        else:  # another format, or a grid that differs within the tolerance; nnU-Net needs equal grids
            image.CopyInformation(grid)
            write_image(image, place)
        written.append(place)
    if case.label is not None:
        labels.mkdir(parents=True, exist_ok=True)
        written.append(labels / f"{case.name}{ending}")
        label = to_nnunet_label(rules.read_label(case.label), grid, rules)
        write_image(label, written[-1])
    return written


def _sizes(folder: Path, names: Sequence[str] | Mapping[str, object]) -> dict[str, int]:
    """Relative name -> size in bytes; -1 for a missing file."""
    return {name: (folder / name).stat().st_size if (folder / name).is_file() else -1 for name in names}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
