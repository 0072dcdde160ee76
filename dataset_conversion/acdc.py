"""ACDC (Automated Cardiac Diagnosis Challenge, MICCAI 2017): cine MRI of the heart, from the official layout.

The source, as downloaded:

    training/patient001/Info.cfg                          Group: the diagnosis, used to balance the folds
    training/patient001/patient001_4d.nii.gz              not used
    training/patient001/patient001_frame01.nii.gz         image at end-diastole or end-systole
    training/patient001/patient001_frame01_gt.nii.gz      its label: 0 background, 1 RV, 2 myocardium, 3 LV
    testing/patient101/...                                the same; may be missing, or be without labels

Both frames of a patient always have the same role. The default is the split of the challenge: testing/ is the test set.
`--split ssl4mis` selects the split of the semi-supervised papers: 70, 10 and 20 of the 100 patients in training/ for
training, validation and test, from the public lists of SSL4MIS. Their first 3, 7 or 14 patients are the labeled ones.

Run with
`nnunet_collab convert acdc SOURCE -d ID` or `python dataset_conversion/acdc.py SOURCE -d ID`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from nnunet_collab.conversion.labeled_protocol import PublishedOrder
from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone
from nnunet_collab.conversion.source_check import Case, SourceRules
from nnunet_collab.core.errors import CollabError

DATASET_NAME = "ACDC"
OPTIONS = {
    "--split": {
        "choices": ["challenge", "ssl4mis"],
        "help": "challenge: 100 training and 50 test patients (default); ssl4mis: 70, 10 and 20 of the 100, as in the "
        "semi-supervised papers",
    }
}

INFO = DatasetInfo(
    channel_names={"0": "cineMRI"},  # not "CT", so that nnU-Net standardizes each image separately
    labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    file_ending=".nii.gz",
    patient_pattern=r"(patient\d+)_frame\d+",
    description="Right ventricle, myocardium and left ventricle in short-axis cine MRI at end-diastole and end-systole",
    license="CC BY-NC-SA 4.0",
    citation=(
        "O. Bernard, A. Lalande, C. Zotti, F. Cervenansky, et al., Deep Learning Techniques for Automatic MRI Cardiac "
        "Multi-Structures Segmentation and Diagnosis: Is the Problem Solved?, IEEE Transactions on Medical Imaging "
        "37(11), 2514-2525, 2018, doi:10.1109/TMI.2018.2837502"
    ),
    reference="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
)
RULES = SourceRules(label_values={0: 0, 1: 1, 2: 2, 3: 3})
# The lists of SSL4MIS name 100 patients. Patients in neither of the first two lists are training patients.
SSL4MIS_TEST = (11, 13, 84, 33, 93, 22, 68, 24, 83, 81, 80, 1, 7, 66, 8, 65, 75, 64, 59, 52)
SSL4MIS_VALIDATION = (28, 85, 82, 87, 19, 30, 78, 45, 2, 39)
SSL4MIS_FIRST = (99, 38, 50, 100, 58, 21, 49, 20, 72, 40, 60, 89, 4, 56, 98, 96, 31, 18, 94, 47, 48, 55, 97, 74, 43, 41)
FRAME = re.compile(r"(?P<case>(?P<patient>patient\d+)_frame\d+)(?P<label>_gt)?\.nii(\.gz)?")


def convert(source: Path, target: Target, split: str = "challenge") -> Path:
    """Write ACDC as an nnU-Net raw dataset.

    Args:
        source: The folder that holds `training/`, or that holds `database/training/` as in the official archive.
        target: The dataset to write.
        split: "challenge" or "ssl4mis".

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If source or target are refused. Nothing is written then.
    """
    root = source / "database" if (source / "database").is_dir() else source
    if not (root / "training").is_dir():
        raise CollabError(
            f"{source}: SOURCE must hold the folder training, as in the official archive; it does not. Give the folder "
            "above training."
        )
    patients = _patient_folders(root / "training")
    if not patients:
        raise CollabError(
            f"{root / 'training'}: it must hold one folder per patient, patient001 and so on; none was found. Unpack "
            "the archive again."
        )
    train, problems = _find_cases(patients, labels_needed=True)
    groups = {folder.name: _group(folder) for folder in patients}
    if split == "ssl4mis":
        return write_raw_dataset(_ssl4mis(root / "training", train, problems, groups), target)
    test_patients = _patient_folders(root / "testing")
    # Until 2022 the labels of the test cases were not public. So all may be missing, but not only some of them.
    labels_needed = any(
        FRAME.fullmatch(path.name) and "_gt" in path.name for p in test_patients for path in p.iterdir()
    )
    test, test_problems = _find_cases(test_patients, labels_needed=labels_needed)
    dataset = RawDataset(
        INFO, RULES, train, test, groups, [*problems, *test_problems], split="The challenge's own, by folder."
    )
    return write_raw_dataset(dataset, target)


def _ssl4mis(folder: Path, cases: list[Case], problems: list[str], groups: dict[str, str]) -> RawDataset:
    """The patients of the training folder, with the roles of the public lists.

    Raises:
        CollabError: If patients of the lists are missing.
    """
    found = {INFO.patient_of(case.name) for case in cases}
    if missing := sorted(set(_names(range(1, 101))) - found):
        raise CollabError(
            f"{folder}: --split ssl4mis needs all 100 patients; {len(missing)} are missing, e.g. {missing[0]}. Copy "
            "them again, or leave --split out."
        )
    test, validation = _names(SSL4MIS_TEST), _names(SSL4MIS_VALIDATION)
    return RawDataset(
        INFO,
        RULES,
        train=[case for case in cases if INFO.patient_of(case.name) not in test],
        test=[case for case in cases if INFO.patient_of(case.name) in test],
        groups=groups,
        problems=problems,
        validation=validation,
        split="The 70, 10 and 20 patients of the public lists of SSL4MIS, all of the challenge's training set.",
        order=PublishedOrder(_names(SSL4MIS_FIRST), "the public list of SSL4MIS", 70),
    )


def _names(numbers: Iterable[int]) -> list[str]:
    return [f"patient{number:03d}" for number in numbers]


def _patient_folders(folder: Path) -> list[Path]:
    """The folders of the patients; empty if `folder` is missing. Other entries, e.g. read-me files, are ignored."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and re.fullmatch(r"patient\d+", path.name))


def _find_cases(patients: list[Path], *, labels_needed: bool) -> tuple[list[Case], list[str]]:
    cases: list[Case] = []
    problems: list[str] = []
    for folder in patients:
        images: dict[str, Path] = {}
        labels: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            match = FRAME.fullmatch(path.name)
            if match is None or not path.is_file():
                continue
            kind = labels if match["label"] else images
            if match["patient"] != folder.name:
                problems.append(f"{path}: the file must be of {folder.name}. Move it to the folder {match['patient']}.")
            elif other := kind.get(match["case"]):
                problems.append(
                    f"{path}: there must be one file per frame; found also {other.name}. Remove one of them."
                )
            else:
                kind[match["case"]] = path
        problems += _unpaired(folder, images, labels, labels_needed)
        cases += [Case(name, (image,), labels.get(name)) for name, image in images.items()]
    return cases, problems


def _unpaired(folder: Path, images: dict[str, Path], labels: dict[str, Path], labels_needed: bool) -> list[str]:
    if not images and not labels:
        return [
            f"{folder}: there is no image {folder.name}_frameNN.nii.gz. Copy the patient again or remove the folder."
        ]
    problems = [
        f"{labels[name]}: the image of this label is missing. Copy {name}.nii.gz to it, or remove the label."
        for name in sorted(labels.keys() - images.keys())
    ]
    if labels_needed:
        problems += [
            f"{images[name]}: the label of this image is missing. Copy {name}_gt.nii.gz to it, or remove the image."
            for name in sorted(images.keys() - labels.keys())
        ]
    return problems


def _group(folder: Path) -> str:
    """The diagnosis in Info.cfg, or "" if there is none. It is used only to balance the folds."""
    info = folder / "Info.cfg"
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    match = re.search(r"^\s*Group\s*:\s*(\S+)", text, flags=re.MULTILINE)
    return match[1] if match else ""


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
