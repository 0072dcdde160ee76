"""Convert a user's own folders: find the cases, name them, check everything, and write the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import SimpleITK as sitk

from nnunet_collab.conversion.own.classes import Classes, find_classes, parse_classes
from nnunet_collab.conversion.own.found_case import FoundCase
from nnunet_collab.conversion.own.image_files import PICTURES, ending_of
from nnunet_collab.conversion.own.naming import check_key, name_cases, name_patients, write_key
from nnunet_collab.conversion.own.options import OwnOptions
from nnunet_collab.conversion.own.patients import patients_of
from nnunet_collab.conversion.own.readers import Readers
from nnunet_collab.conversion.own.scan import Scan, scan_source
from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target, raw_folder
from nnunet_collab.conversion.source_check import Case, SourceRules, verify_pairs
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.patients import patient_lookup

_EACH_CASE = "(.+)"  # the pattern of a dataset in which every case is a separate patient
_PNG_TYPES = (sitk.sitkUInt8, sitk.sitkUInt16, sitk.sitkVectorUInt8)


@dataclass(frozen=True)
class _Patients:
    """What the dataset says of its patients.

    Attributes:
        pattern: Pattern of dataset.json.
        table: Case -> patient for patients.csv, or None where the pattern tells.
        source: Role/key -> patient in the source; empty if none is known.
    """

    pattern: str
    table: dict[str, str] | None
    source: dict[str, str]


def convert_own(source: Path, target: Target, options: OwnOptions) -> Path:
    """Write the user's folders as an nnU-Net raw dataset.

    Args:
        source: Folder that holds the folders of images and labels.
        target: The dataset to write.
        options: Options of the command line.

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If an option, the source or the target is refused. Nothing is written then.
    """
    raw_folder(target)
    check_key(options.key)
    if options.classes:
        parse_classes(options.classes)  # an option is refused before any file is read
    scan = scan_source(source, options)
    if scan.unused:
        print(
            f"{len(scan.unused)} other files are not used: {listed([str(p.relative_to(source)) for p in scan.unused])}."
        )
    names = name_cases(scan.roles, keep=options.keep_names, key=options.key, problems=scan.problems)
    patients = _patients(scan, names, options)
    is_flat = _is_flat(scan)
    problems = [*scan.problems, *_modality_faults(scan), *_inversion_faults(scan), *_segmentation_faults(scan)]
    readers = _readers(scan)
    try:
        classes = _classes(scan, readers, options)
        readers.segments = classes.source
    except CollabError as error:
        problems.append(str(error))
        classes = None
    components, ending = _format(scan, readers, is_flat)
    rules = SourceRules(
        classes.values if classes else {},
        axes=2 if is_flat else 3,
        components=components,
        read_image=readers.image,
        read_label=readers.label,
    )
    roles = {role: [_case(case, names[f"{role}/{case.key}"]) for case in cases] for role, cases in scan.roles.items()}
    if problems or classes is None:
        _refuse(problems, [case for cases in roles.values() for case in cases], rules)
    info = DatasetInfo(
        channel_names=_channel_names(scan, options, components),
        labels=classes.labels,
        file_ending=ending,
        patient_pattern=patients.pattern,
        description="",
        license="",
        citation="",
        reference="",
        patients=patients.table,
        extra={"source_label_values": {str(old): new for old, new in classes.values.items()}},
    )
    dataset = RawDataset(info, rules, roles["train"], roles["test"], unlabeled=roles["unlabeled"])
    _print_findings(options, classes, patients, info)
    folder = write_raw_dataset(dataset, target)
    if options.key is not None:
        write_key(options.key, names, patients.table or {}, patients.source)
    _print_next(scan, target, info)
    return folder


def _readers(scan: Scan) -> Readers:
    image_of = {
        case.label: case.images[0]
        for case in _all_cases(scan)
        if case.label is not None and case.label in scan.segmentations
    }
    return Readers(scan.series_of, image_of)


def _case(case: FoundCase, name: str) -> Case:
    return Case(name, case.images, case.label, case.others)


def _refuse(problems: Sequence[str], cases: Sequence[Case], rules: SourceRules) -> NoReturn:
    """Raise with the faults that are known, and with those of the files, so that all are told at once."""
    if not rules.label_values:  # without classes, labels cannot be checked
        cases = [replace(case, label=None) for case in cases]
    faults = [fault for fault in verify_pairs(cases, rules) if fault.partition(": ")[2] not in problems]
    told = list(dict.fromkeys([*problems, *faults]))
    found = "one fault" if len(told) == 1 else f"{len(told)} faults"
    raise CollabError("\n- ".join([f"convert own: the source has {found}, so nothing was written:", *told]))


def _patients(scan: Scan, names: Mapping[str, str], options: OwnOptions) -> _Patients:
    found = patients_of(scan.roles, options.patients, options.patient_pattern, scan.problems)
    if found is None or not found.keys() >= names.keys():  # a case without a patient has been reported
        return _Patients(_EACH_CASE, None, {})
    named = options.patients is not None or options.patient_pattern is not None
    new = name_patients(found, keep=options.keep_names and named, key=options.key)
    table = {case: new[found[name]] for name, case in names.items()}
    if options.keep_names and options.patient_pattern is not None and _tells(options.patient_pattern, table):
        return _Patients(options.patient_pattern, None, found)
    return _Patients(_EACH_CASE, table, found)


def _tells(pattern: str, table: Mapping[str, str]) -> bool:
    """Whether the pattern finds the patients in the names of the dataset, too."""
    try:
        patient_of = patient_lookup(pattern, table)
    except CollabError:
        return False
    return all(patient_of(case) == patient for case, patient in table.items())


def _all_cases(scan: Scan) -> list[FoundCase]:
    return [case for cases in scan.roles.values() for case in cases]


def _is_flat(scan: Scan) -> bool:
    """Whether the images are pictures. Pictures and volumes cannot be in one dataset."""
    flat = [case for case in _all_cases(scan) if ending_of(case.images[0]) in PICTURES]
    volumes = [case for case in _all_cases(scan) if ending_of(case.images[0]) not in PICTURES]
    if flat and volumes:
        scan.problems.append(
            f"{flat[0].images[0]}: a dataset must hold either pictures or volumes; {volumes[0].images[0]} is a volume "
            f"({len(flat)} pictures, {len(volumes)} volumes). Convert them to two datasets."
        )
    return bool(flat)


def _modality_faults(scan: Scan) -> list[str]:
    """Channels of different numbers or modalities."""
    cases = _all_cases(scan)
    faults = [
        f"{case.images[0]}: every case must have {scan.channels} channels; it has {len(case.images)}. Copy the files "
        "again, or name the channels with --channels."
        for case in cases
        if len(case.images) != scan.channels
    ]
    first = next((case for case in cases if case.modality), None)
    faults += [
        f"{case.images[0]}: all images must have the same modality; it is {case.modality}, and that of "
        f"{first.images[0]} is {first.modality}. Convert them to two datasets, or move one away."
        for case in cases
        if first is not None and case.modality not in ("", first.modality)
    ]
    return faults


def _inversion_faults(scan: Scan) -> list[str]:
    """Images whose low values are bright, among images whose high values are."""
    inverted = {path: series.slices[0].is_inverted for path, series in scan.series_of.items()}
    images = [path for case in _all_cases(scan) for path in case.images if path in inverted]
    if all(inverted[path] for path in images):
        return []
    return [
        f"{path}: in this image low values are bright (MONOCHROME1), in others high values are. Convert it with the "
        "others' scale first, or leave it out."
        for path in images
        if inverted[path]
    ]


def _segmentation_faults(scan: Scan) -> list[str]:
    """DICOM segmentations of another series than that of the image with which their name pairs them."""
    faults = []
    for case in _all_cases(scan):
        series = [scan.series_of[path].slices[0].series for path in case.images if path in scan.series_of]
        if case.label is None or case.label not in scan.segmentations or not series:
            continue
        if (wanted := scan.segmentations[case.label].series) and not {*series} & {*wanted}:
            faults.append(
                f"{case.label}: a segmentation must refer to the series of its image, {series[0]} in "
                f"{case.images[0].parent}; it refers to {listed(sorted(wanted))}. Choose that series with --series, or "
                "export the segmentation again."
            )
    return faults


def _classes(scan: Scan, readers: Readers, options: OwnOptions) -> Classes:
    labels = [case.label for case in _all_cases(scan) if case.label is not None]
    segmentations = {path: scan.segmentations[path] for path in labels if path in scan.segmentations}
    others = [path for path in labels if path not in scan.segmentations]
    return find_classes(others, segmentations, options.classes, readers.label)


def _format(scan: Scan, readers: Readers, is_flat: bool) -> tuple[int, str]:
    """Values per pixel of the images, and the ending of the files to write.

    Pictures become PNG, which nnU-Net reads as pictures, if PNG can hold their values; else NIfTI.
    """
    if not is_flat:
        return 1, ".nii.gz"
    kinds = []
    for case in _all_cases(scan):
        for path in case.images:
            try:
                picture = readers.image(path)
                kinds.append((picture.GetNumberOfComponentsPerPixel(), picture.GetPixelID()))
            except CollabError:  # reported by the check of the source
                continue
    components = kinds[0][0] if kinds else 1
    return components, ".png" if all(kind in _PNG_TYPES for _, kind in kinds) else ".nii.gz"


def _channel_names(scan: Scan, options: OwnOptions, components: int) -> dict[str, str]:
    names = options.channel_names
    if components == 3 and not names:
        names = ("R", "G", "B")
    if not names:
        modality = next((case.modality for case in _all_cases(scan) if case.modality), "")
        word = {"CT": "CT", "MR": "MRI", "PT": "PET", "US": "ultrasound"}.get(modality, "image")
        names = (word,) if scan.channels == 1 else tuple(f"{word}{n}" for n in range(scan.channels))
    return {str(number): name for number, name in enumerate(names)}


def _print_findings(options: OwnOptions, classes: Classes, patients: _Patients, info: DatasetInfo) -> None:
    shown = ", ".join(f"{name} (was {classes.source[name]})" for name in classes.source)
    print(f"Classes: {shown or 'none, because there is no label'}. Channels: {', '.join(info.channel_names.values())}.")
    if "image" in info.channel_names.values() and info.file_ending == ".nii.gz":
        print("If these are CT images, say --channels CT: nnU-Net then keeps their Hounsfield units.")
    if not patients.source:
        print(
            "Every case is treated as a separate patient. If a patient has several cases, say so with --patients or "
            "--patient_pattern."
        )
    if not options.keep_names:
        where = f"goes to {options.key}" if options.key else "is not written (--key FILE)"
        print(f"Cases get numbers; the table that tells which scan becomes which case {where}.")


def _print_next(scan: Scan, target: Target, info: DatasetInfo) -> None:
    """The commands to type after those that every conversion prints."""
    if scan.roles["train"]:
        configuration = "2d" if info.file_ending == ".png" else "3d_fullres"
        trainer = "CrossTeachingTrainer" if scan.roles["unlabeled"] else "CTRCLTrainer"
        print(f"Look at it: nnunet_collab doctor -d {target.dataset_id}")
        print(f"Train: nnUNetv2_train {target.dataset_id} {configuration} 0 -tr {trainer}")
    else:
        print(
            "There is no label yet. Draw labels of some images, put them into SOURCE, and convert again with "
            "--overwrite."
        )
