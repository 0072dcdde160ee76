"""Rules for dataset.json, and the conversion from the format of nnU-Net's first version."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.json_files import shown
from nnunet_collab.core.names import name_fault

ENTRIES = ("channel_names", "labels", "file_ending")  # nnU-Net needs all three
_OLD = "This is the format of nnU-Net's first version. Convert the dataset with nnUNetv2_convert_old_nnUNet_dataset."


def from_version_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert entries of version 1 to version 2 where version 1 determines them; all other entries are kept.

    `modality` becomes `channel_names`. `labels` changes from number -> name to name -> number. `file_ending` is the
    common ending of all images in the list `training`. That list and `test` are removed, because version 2 finds the
    cases in the folders.
    """
    new = dict(content)
    if "channel_names" not in new and isinstance(new.get("modality"), dict):
        new["channel_names"] = new.pop("modality")
    labels = new.get("labels")
    if isinstance(labels, dict) and labels and all(_is_old_label(item) for item in labels.items()):
        names = [name if value != "0" else "background" for value, name in labels.items()]
        if len(set(names)) == len(names):
            new["labels"] = {name: int(value) for name, value in zip(names, labels, strict=True)}
    if "file_ending" not in new and (ending := _common_ending(new.get("training"))):
        new["file_ending"] = ending
        new.pop("training")
        new.pop("test", None)
    return new


def is_version_1(content: Mapping[str, Any]) -> bool:
    """Whether any entry has the format of version 1."""
    labels = content.get("labels")
    old_labels = isinstance(labels, dict) and any(map(_is_old_label, labels.items()))
    return "modality" in content or "training" in content or old_labels


def check_dataset_json(
    content: Mapping[str, Any], where: str, needs: Collection[str] = ENTRIES, *, old: bool = False
) -> None:
    """Refuse a dataset.json in which an entry is missing or does not have the format that nnU-Net documents.

    Args:
        content: Content in the format of version 2 (`from_version_1`).
        where: Name of the source; it starts the message.
        needs: Entries that must be present. All other known entries are checked if they are present.
        old: Whether the file had the format of version 1.

    Raises:
        CollabError: If anything is wrong; the message lists every fault.
    """
    missing = [entry for entry in needs if entry not in content]
    faults = []
    if missing:
        examples = ", ".join(_EXAMPLES.get(entry, entry) for entry in missing)
        faults.append(f"it must say {listed(missing)}; it does not. Add {examples}.{f' {_OLD}' if old else ''}")
    for entry, check in _CHECKS.items():
        if entry in content and (fault := check(content[entry])):
            faults.append(f"{entry} {fault}")
    if faults:
        raise CollabError("\n- ".join([f"{where}: {faults[0]}", *faults[1:]]))


def _is_old_label(item: tuple[str, Any]) -> bool:
    return item[0].isdecimal() and item[0].isascii() and len(item[0]) < 6 and isinstance(item[1], str)


def _common_ending(training: Any) -> str | None:
    """`.nii.gz` if all images in the list of version 1 have this ending; version 1 had no other."""
    if not isinstance(training, list) or not training:
        return None
    images = [entry.get("image") if isinstance(entry, dict) else None for entry in training]
    return ".nii.gz" if all(isinstance(image, str) and image.endswith(".nii.gz") for image in images) else None


def _channel_fault(channels: Any) -> str | None:
    rule = "must be an object channel number -> name, numbered from 0 without a gap"
    if not isinstance(channels, dict) or not channels:
        return f"{rule}; it is {shown(channels)}. Write e.g. {_EXAMPLES['channel_names']}."
    if sorted(channels) != sorted(str(number) for number in range(len(channels))):
        return f"{rule}; its numbers are {listed(sorted(channels))}. Number them 0, 1, ..."
    if odd := [shown(name) for name in channels.values() if not isinstance(name, str) or not name.strip()]:
        return f"{rule}; {listed(odd)} is not a name. Write e.g. {_EXAMPLES['channel_names']}."
    return None


def _label_fault(labels: Any) -> str | None:
    rule = 'must be an object name -> value with "background": 0'
    fix = f"Write e.g. {_EXAMPLES['labels']}."
    if not isinstance(labels, dict) or not labels:
        return f"{rule}; it is {shown(labels)}. {fix}"
    if any(map(_is_old_label, labels.items())):
        return f"{rule}; it has value -> name, {shown(labels)}. {_OLD}"
    if labels.get("background") != 0 or isinstance(labels["background"], bool):
        return f"{rule}; its background is {shown(labels.get('background'))}. {fix}"
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or any(type(number) is not int or not 0 <= number < 2**15 for number in values):
            return (
                f"{rule}, values being whole numbers, or lists of them for regions, from 0 to {2**15 - 1}; {name!r} is "
                f"{shown(value)}. {fix}"
            )
    single = [value for value in labels.values() if not isinstance(value, list)]
    if len(set(single)) < len(single):
        return f"must give every class its own value; they are {shown(labels)}. Number them 0, 1, 2, ..."
    return None


def _ending_fault(ending: Any) -> str | None:
    if isinstance(ending, str) and re.fullmatch(r"(\.[A-Za-z0-9_-]+)+", ending):
        return None
    return f"must be the ending of the image files with its dot; it is {shown(ending)}. Write e.g. .nii.gz."


def _cases_fault(cases: Any) -> str | None:
    rule = 'must be an object case -> {"images": [paths], "label": path}'
    if not isinstance(cases, dict) or not cases:
        return f"{rule} with at least one case; it is {shown(cases)}. Correct it, or remove it to use imagesTr."
    for case, files in cases.items():
        if fault := name_fault(case):
            return f"{rule}; {shown(case)} cannot be a case name, because it becomes a path: {fault}. Rename it."
        if not isinstance(files, dict) or not _paths(files.get("images")) or not _paths([files.get("label")]):
            return f"{rule}; {case} is {shown(files)}. Correct it."
    return None


def _paths(paths: Any) -> bool:
    return isinstance(paths, list) and bool(paths) and all(isinstance(p, str) and p and "\0" not in p for p in paths)


def _count_fault(count: Any) -> str | None:
    if type(count) is int and 0 <= count < 10**9:
        return None
    return f"must be the number of labeled cases; it is {shown(count)}. Correct the number."


def _pattern_fault(pattern: Any) -> str | None:
    if isinstance(pattern, str) and pattern:
        return None
    return (
        f"must be a regular expression whose first group is the patient; it is {shown(pattern)}. Write e.g. "
        r"(patient\\d+)_.*, or remove the entry."
    )


def _patients_fault(place: Any) -> str | None:
    if isinstance(place, str) and re.fullmatch(r"Dataset\d{3}_[A-Za-z0-9_-]+/patients\.csv", place):
        return None
    return (
        f"must say where the table of patients is, DatasetXXX_NAME/patients.csv; it is {shown(place)}. Correct it, or "
        "remove the entry."
    )


_EXAMPLES = {
    "channel_names": '"channel_names": {"0": "MRI"}',
    "labels": '"labels": {"background": 0, "liver": 1}',
    "file_ending": '"file_ending": ".nii.gz"',
}
_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "channel_names": _channel_fault,
    "labels": _label_fault,
    "file_ending": _ending_fault,
    "dataset": _cases_fault,
    "numTraining": _count_fault,
    "patient_pattern": _pattern_fault,
    "patients": _patients_fault,
}
