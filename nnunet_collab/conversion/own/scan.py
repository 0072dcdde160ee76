"""Find the cases in the user's folders, of any format, and pair them with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_collab.conversion.own.dicom_cases import dicom_cases, series_pattern
from nnunet_collab.conversion.own.dicom_series import Series
from nnunet_collab.conversion.own.dicom_tags import read_slices
from nnunet_collab.conversion.own.found_case import FoundCase, pair, refuse_same_names
from nnunet_collab.conversion.own.image_files import ending_of, image_cases, visible_files
from nnunet_collab.conversion.own.options import OwnOptions
from nnunet_collab.conversion.own.segmentations import Segmentation, describe, require_highdicom
from nnunet_collab.core.errors import CollabError, listed


@dataclass
class Scan:
    """What is in the user's folders.

    Attributes:
        roles: "train", "unlabeled" and "test" -> cases.
        series_of: First file of a DICOM series -> the series.
        segmentations: Label that is DICOM-SEG -> what it says of itself.
        problems: Faults, one line each.
        unused: Files in these folders that are not used.
    """

    roles: dict[str, list[FoundCase]] = field(default_factory=dict)
    series_of: dict[Path, Series] = field(default_factory=dict)
    segmentations: dict[Path, Segmentation] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """Number of channels of the images with labels, or of the first case; 0 without a case."""
        return next((len(case.images) for cases in self.roles.values() for case in cases), 0)


def scan_source(source: Path, options: OwnOptions) -> Scan:
    """Find all cases. Every fault of the files' names, and of the DICOM tags, is in `problems`.

    Raises:
        CollabError: If an option is refused, if a folder that is named is missing, or if there is no image.
    """
    series_pattern(options.series)
    folders = _folders(source, options)
    scan = Scan()
    for role, images, labels in (
        ("train", options.images, options.labels),
        ("unlabeled", options.unlabeled, None),
        ("test", options.test_images, options.test_labels),
    ):
        found = _labels(folders[labels], options, scan) if labels in folders else []
        names = {name for label in found for name in (label.key, *label.aliases)}
        cases = _images(folders[images], options, scan, names) if images in folders else []
        scan.roles[role] = pair(cases, found, scan.problems)
    _divide(scan, folders.get(options.labels), options)
    if not any(scan.roles.values()) and not scan.problems:
        raise CollabError(
            f"{folders.get(options.images, source)}: it must hold images (NIfTI, NRRD, MetaImage, DICOM, PNG, TIFF, "
            "JPEG or BMP); none was found. Give the folder above the images as SOURCE, or name the folders with "
            "--images, --labels and so on."
        )
    return scan


def _folders(source: Path, options: OwnOptions) -> dict[str, Path]:
    """Name -> folder, of those that exist."""
    defaults = OwnOptions()
    kinds = ("images", "labels", "unlabeled", "test_images", "test_labels")
    named = {kind: getattr(options, kind) for kind in kinds}
    if missing := [
        f"--{kind} {name}"
        for kind, name in named.items()
        if name != getattr(defaults, kind) and not (source / name).is_dir()
    ]:
        raise CollabError(
            f"{source}: it must hold the folders that are named; it lacks {listed(missing)}. Correct them."
        )
    if len(set(named.values())) < len(named):
        raise CollabError(
            f"{source}: the folders must differ; got {', '.join(named.values())}. Give each its own folder."
        )
    found = {name: source / name for name in named.values() if (source / name).is_dir()}
    if not {options.images, options.unlabeled} & found.keys():
        there = listed(sorted(path.name for path in source.iterdir() if path.is_dir())) or "no folder"
        raise CollabError(
            f"{source}: SOURCE must hold the folder {options.images}, and perhaps {options.labels}, "
            f"{options.unlabeled}, {options.test_images} and {options.test_labels}; it holds {there}. Name your "
            "folders, e.g. --images scans --labels masks."
        )
    return found


def _images(folder: Path, options: OwnOptions, scan: Scan, labels: set[str]) -> list[FoundCase]:
    files = visible_files(folder)
    slices, segmentations = read_slices([path for path in files if not ending_of(path)], scan.problems)
    of_files = image_cases(folder, files, options.channel_names, scan.problems, labels, scan.channels)
    of_dicom, series = dicom_cases(folder, slices, options.channel_names, options.series, scan.problems)
    scan.series_of |= series
    if segmentations and not slices:
        scan.problems.append(f"{segmentations[0]}: it is a DICOM segmentation, which belongs to the folder of labels.")
    scan.unused += _unused(files, of_files, [part.path for part in slices])
    return refuse_same_names([*of_files, *of_dicom], scan.problems)


def _labels(folder: Path, options: OwnOptions, scan: Scan) -> list[FoundCase]:
    files = visible_files(folder)
    slices, segmentations = read_slices([path for path in files if not ending_of(path)], scan.problems)
    of_files = image_cases(
        folder, [path for path in files if ending_of(path)], ("label",), scan.problems, _stems(files)
    )
    of_dicom, series = dicom_cases(folder, slices, (), "", scan.problems)  # --series chooses images
    scan.series_of |= series
    if segmentations:
        require_highdicom()
    of_segmentations = [_of_segmentation(folder, path, segmentations, scan) for path in segmentations]
    scan.unused += _unused(files, of_files, [*(part.path for part in slices), *segmentations])
    return refuse_same_names([*of_files, *of_dicom, *of_segmentations], scan.problems)


def _stems(files: Sequence[Path]) -> set[str]:
    return {path.name[: -len(ending_of(path)) or None] for path in files}


def _of_segmentation(folder: Path, path: Path, all_of_folder: Sequence[Path], scan: Scan) -> FoundCase:
    """A DICOM-SEG as a label: it is called by its file, by its folder, and by the series to which it refers."""
    inside = path.relative_to(folder)
    around = inside.parent.as_posix()
    alone = sum(other.parent == path.parent for other in all_of_folder) == 1
    try:
        scan.segmentations[path] = describe(path)
    except CollabError as error:
        scan.problems.append(str(error))
        scan.segmentations[path] = Segmentation({}, ())
    aliases = (*sorted(scan.segmentations[path].series), *([around] if alone and around != "." else []))
    return FoundCase(inside.with_suffix("").as_posix(), (path,), aliases=aliases)


def _divide(scan: Scan, labels: Path | None, options: OwnOptions) -> None:
    """Move images without labels to the unlabeled ones, or report them. Without any label, none is a fault."""
    with_labels = [case for case in scan.roles["test"] if case.label is not None]
    if with_labels and len(with_labels) < len(scan.roles["test"]):
        scan.problems += [
            f"{case.images[0]}: all test images must have labels, or none; the label of {case.key} is missing. Copy "
            "it, or remove the image."
            for case in scan.roles["test"]
            if case.label is None
        ]
    without = [case for case in scan.roles["train"] if case.label is None]
    if without and labels is not None and not options.rest_unlabeled:
        scan.problems += [
            f"{case.images[0]}: the label of this image is missing; none in {labels} is named {case.key}. Copy it, "
            f"move the image to {options.unlabeled}, or say --rest_unlabeled."
            for case in without
        ]
        return
    scan.roles["train"] = [case for case in scan.roles["train"] if case.label is not None]
    scan.roles["unlabeled"] = [*scan.roles["unlabeled"], *without]
    refuse_same_names(scan.roles["unlabeled"], scan.problems)


def _unused(files: Sequence[Path], cases: Sequence[FoundCase], dicom: Sequence[Path]) -> list[Path]:
    used = {path for case in cases for path in (*case.images, *case.others)} | {*dicom}
    return [path for path in files if path not in used]
