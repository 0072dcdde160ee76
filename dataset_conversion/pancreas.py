"""Pancreas-CT (National Institutes of Health, The Cancer Imaging Archive): CT as DICOM series, labels as NIfTI.

The source, as downloaded, the folders at any depth:

    Pancreas-CT/PANCREAS_0001/<study>/<series>/*.dcm            image, one series per patient
    TCIA_pancreas_labels-02-05-2017/label0001.nii.gz            its label: 0 background, 1 pancreas

Cases 25 and 70 were withdrawn. They may be missing; if not, they are left out.

**Orientation.** The labels are stored in another orientation than the series, and their headers are wrong about it: a
tool that uses these headers shows the label upside down. So only size and spacing are compared, and the grid of the
image is used. For all cases the same axes of the stored label must be flipped: y (rows), z (slices), both or none. The
right one of these four is found on a few cases: the one with the largest share of label voxels on soft tissue (-50 to
250 HU). The result is printed and written to dataset.json. If it is not clear, nothing is converted. `--flip` sets it.

Run with `nnunet_collab convert pancreas SOURCE -d ID` or `python dataset_conversion/pancreas.py SOURCE -d ID`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone
from nnunet_collab.conversion.source_check import Case, SourceRules
from nnunet_collab.conversion.source_files import by_name, paired, refuse_nothing_found
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.grid import GridTolerance
from nnunet_collab.core.image_io import read_image
from nnunet_collab.splits.patient_folds import held_out

DATASET_NAME = "PancreasCT"
OPTIONS = {
    "--flip": {
        "choices": ["none", "y", "z", "yz"],
        "help": "axes of the stored labels to flip (default: found by the share of label voxels on soft tissue)",
    }
}

INFO = DatasetInfo(
    channel_names={"0": "CT"},
    labels={"background": 0, "pancreas": 1},
    file_ending=".nii.gz",
    patient_pattern=r"(pancreas_\d{4})",
    description="Pancreas in portal venous contrast CT",
    license="CC BY 3.0",
    citation=(
        "H. R. Roth, A. Farag, E. B. Turkbey, L. Lu, J. Liu, R. M. Summers, Data From Pancreas-CT, The Cancer Imaging "
        "Archive, 2016, doi:10.7937/K9/TCIA.2016.tNB1kqBU; H. R. Roth, L. Lu, A. Farag, et al., DeepOrgan: Multi-level "
        "Deep Convolutional Networks for Automated Pancreas Segmentation, MICCAI 2015, LNCS 9349, 556-564"
    ),
    reference="https://www.cancerimagingarchive.net/collection/pancreas-ct/",
)
WITHDRAWN = ("0025", "0070")
FLIPS = ("none", "y", "z", "yz")
SOFT_TISSUE_HU = (-50, 250)
LOOKED_AT = 5  # number of cases on which the orientation is found
CLEAR = 0.02  # smallest difference between the best share and the second best
PLAUSIBLE = 0.6  # smallest share on soft tissue of a right orientation
SLICE_TOLERANCE = 0.1  # largest relative difference of slice distances; the headers store rounded positions


def read_series(folder: Path) -> sitk.Image:
    """Read the DICOM series below the folder of a patient.

    Raises:
        CollabError: If there is not exactly one series, if a file cannot be read, or if slices are missing.
    """
    reader = sitk.ImageSeriesReader()
    found = sorted(folder.rglob("*.dcm"))
    places = sorted({path.parent for path in found})
    series = [(place, uid) for place in places for uid in reader.GetGDCMSeriesIDs(str(place))]
    if len(series) != 1:
        raise CollabError(
            f"{folder}: it must hold exactly one DICOM series; found {len(series)}. Download the patient again."
        )
    files = reader.GetGDCMSeriesFileNames(str(series[0][0]), series[0][1])
    if unread := sorted(set(found) - {Path(file) for file in files}):  # GDCM skips them without an error
        raise CollabError(
            f"{folder}: every .dcm file must be a complete slice of the series; {len(unread)} are not, e.g. "
            f"{unread[0]}. Download the patient again."
        )
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
        positions = [[float(x) for x in reader.GetMetaData(i, "0020|0032").split("\\")] for i in range(len(files))]
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise CollabError(
            f"{folder}: the DICOM series cannot be read ({reason}). Download the patient again."
        ) from error
    steps = [math.dist(a, b) for a, b in pairwise(positions)]
    usual = float(np.median(steps)) if steps else 0.0
    if any(abs(step - usual) > SLICE_TOLERANCE * usual for step in steps):
        raise CollabError(
            f"{folder}: the distance of neighboring slices must be {usual:g} mm; found {min(steps):g} to "
            f"{max(steps):g} mm, so slices are missing. Download the patient again."
        )
    return image


def read_label(path: Path, flip: str) -> sitk.Image:
    """Read a label and flip its voxels. Its origin and direction are not meaningful.

    Args:
        path: NIfTI file.
        flip: One of `FLIPS`.

    Raises:
        CollabError: If it cannot be read.
    """
    label = read_image(path)
    if label.GetDimension() != 3:  # the check of the source reports it
        return label
    return sitk.Flip(label, [False, "y" in flip, "z" in flip])


def convert(source: Path, target: Target, flip: str = "") -> Path:
    """Write Pancreas-CT as an nnU-Net raw dataset.

    Args:
        source: A folder with the series and the labels below it.
        target: The dataset to write.
        flip: One of `FLIPS`, or "" to find it.

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If source or target are refused. Nothing is written then.
    """
    problems: list[str] = []
    folders = (path for path in source.rglob("PANCREAS_*") if path.is_dir())
    images = by_name(folders, r"PANCREAS_(\d{4})", problems)
    labels = by_name(source.rglob("label*"), r"label(\d{4})\.nii(?:\.gz)?", problems)
    for number in WITHDRAWN:
        if left_out := [str(found.pop(number)) for found in (images, labels) if number in found]:
            print(f"Leaving out case {number}, which was withdrawn: {' and '.join(left_out)}.")
    cases = paired(images, labels, problems, prefix="pancreas_")
    refuse_nothing_found(cases, problems, source, "PANCREAS_0001 and so on, and label0001.nii.gz and so on")
    flip = flip or find_flip(cases, problems)
    names = [case.name for case in cases]
    # 80 of the paper's 82 cases are still available; public code uses 62 of them for training.
    roles = held_out(names, {"train": 62, "test": 18 if len(names) <= 80 else 20})
    dataset = RawDataset(
        replace(INFO, extra={"intensity_unit": "HU", "label_flip": flip}),
        SourceRules(
            label_values={0: 0, 1: 1},
            read_image=read_series,
            read_label=partial(read_label, flip=flip),
            label_grid=GridTolerance(spacing=1e-2, origin=math.inf, direction=math.inf),
        ),
        train=[case for case in cases if case.name in roles["train"]],
        test=[case for case in cases if case.name in roles["test"]],
        problems=problems,
        split="Drawn at random with a fixed seed, 62 to 20 (62 to 18 of 80): the papers' lists are not used.",
    )
    return write_raw_dataset(dataset, target)


def find_flip(cases: Sequence[Case], problems: list[str]) -> str:
    """The flip with the largest share of label voxels on soft tissue.

    Args:
        cases: All cases; up to 5 of them, evenly chosen, are used. Cases that cannot be read or compared are skipped,
            because the check of the source reports them. If none is left, the result is "none".
        problems: A line is added if no flip is clearly the best; the result is "none" then.
    """
    count = min(LOOKED_AT, len(cases))
    chosen = [cases[i * len(cases) // count] for i in range(count)]
    shares = [found for case in chosen if (found := _shares_on_soft_tissue(case)) is not None]
    if not shares:
        return "none"
    means = {flip: float(np.mean([share[flip] for share in shares])) for flip in FLIPS}
    best, second = sorted(FLIPS, key=lambda flip: -means[flip])[:2]
    told = ", ".join(f"{flip} {share:.1%}" for flip, share in means.items())
    if means[best] < PLAUSIBLE or means[best] - means[second] < CLEAR:
        problems.append(
            f"labels of {', '.join(case.name for case in chosen)}: one orientation must clearly fit the soft tissue "
            f"best (at least {PLAUSIBLE:.0%} of the label voxels on it, and {CLEAR:.0%} more than any other "
            f"orientation); found, by flipped axes: {told}. View a label over its image, and set the axes with --flip."
        )
        return "none"
    print(f"Labels are flipped along: {best}. Share of their voxels on soft tissue, by flipped axes: {told}.")
    return best


def _shares_on_soft_tissue(case: Case) -> dict[str, float] | None:
    if case.label is None:
        return None
    try:
        hu, label = (sitk.GetArrayFromImage(image) for image in (read_series(case.images[0]), read_image(case.label)))
    except CollabError:
        return None
    if hu.shape != label.shape or not label.any():
        return None
    z, y, x = np.nonzero(label)
    result = {}
    for flip in FLIPS:
        rows = label.shape[1] - 1 - y if "y" in flip else y
        slices = label.shape[0] - 1 - z if "z" in flip else z
        values = hu[slices, rows, x]
        result[flip] = float(np.mean((values >= SOFT_TISSUE_HU[0]) & (values <= SOFT_TISSUE_HU[1])))
    return result


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
