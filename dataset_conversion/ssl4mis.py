"""SSL4MIS-style .h5 files (ACDC or Left Atrium): convert the data of many semi-supervised code bases to images.

The source is one of the two datasets below. The lists of the code base (`train.list`, `val.list`, `test.list`; or .txt)
are in the source or in `Flods/`. Without lists, all cases are training cases.

    **/patient001_frame01.h5                       ACDC, volumes: arrays image and label, ordered z, y, x
    **/patient001_frame01_slice_1.h5               ACDC, slices (train_slices.list): stacked to volumes
    **/06SR5RBREL16DQ6M8LWS/mri_norm2.h5           Left Atrium: ordered x, y, z, cropped around the atrium

These files do not contain a spacing, and their intensities are normalized. `--originals FOLDER` names the official data
from which they were made: then the geometry is restored, and each case is compared with its original. Otherwise a
spacing of 1 is written, and dataset.json says that it is unknown. Distances in mm are then distances in voxels, and
nnU-Net plans with this spacing. `--labeled 7` selects the first 7 patients of train.list, as in the code bases. The
conversion needs h5py: nnunet-collab[h5]. Run with
`nnunet_collab convert ssl4mis SOURCE -d ID` or `python dataset_conversion/ssl4mis.py SOURCE -d ID`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_collab.conversion.h5_volumes import H5Volume, require_h5py
from nnunet_collab.conversion.labeled_protocol import PublishedOrder
from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone
from nnunet_collab.conversion.source_check import Case, SourceRules
from nnunet_collab.conversion.source_files import by_name, refuse_nothing_found
from nnunet_collab.core.errors import CollabError
from nnunet_collab.splits.few_labels import listed

DATASET_NAME = "SSL4MIS"
OPTIONS = {
    "--originals": {
        "metavar": "FOLDER",
        "help": "folder of the official data (ACDC or LA) from which the .h5 files were made; restores the geometry",
    }
}

ACDC = DatasetInfo(
    channel_names={"0": "cineMRI"},
    labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    file_ending=".nii.gz",
    patient_pattern=r"(patient\d+)_frame\d+",
    description="Right ventricle, myocardium and left ventricle in cine MRI; from .h5 files, intensities normalized",
    license="CC BY-NC-SA 4.0",
    citation="O. Bernard, A. Lalande, C. Zotti, et al., IEEE TMI 37(11), 2514-2525, 2018, doi:10.1109/TMI.2018.2837502",
    reference="https://github.com/HiLab-git/SSL4MIS",
)
LA = DatasetInfo(
    channel_names={"0": "LGE-MRI"},
    labels={"background": 0, "left_atrium": 1},
    file_ending=".nii.gz",
    patient_pattern=r"(\w+)",
    description="Left atrium in late gadolinium enhanced MRI; from .h5 files, cropped, intensities normalized",
    license="for research, with citation",
    citation="Z. Xiong, Q. Xia, et al., Medical Image Analysis 67, 101832, 2021, doi:10.1016/j.media.2020.101832",
    reference="https://github.com/yulequan/UA-MT",
)
ROLES = {"train": ("train", "train_slices"), "val": ("val",), "test": ("test",)}  # role -> names of lists


def convert(source: Path, target: Target, originals: str = "") -> Path:
    """Write .h5 files of ACDC or LA as an nnU-Net raw dataset.

    Args:
        source: A folder with the .h5 files below it.
        target: The dataset to write.
        originals: Folder of the official data, or "".

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If source or target are refused, or if h5py is missing. Nothing is written then.
    """
    require_h5py()
    if originals and not Path(originals).is_dir():
        raise CollabError(f"--originals: must be the folder of the official data; {originals} is not one. Correct it.")
    problems: list[str] = []
    acdc = _acdc_files(source, problems)
    la = _la_files(source)
    if acdc and la:
        raise CollabError(f"{source}: SOURCE must hold either ACDC or LA; found both. Give the folder of one of them.")
    refuse_nothing_found([*acdc, *la], problems, source, "patient001_frame01.h5 and so on, or */mri_norm2.h5")
    info = ACDC if acdc else LA
    volumes = {name: H5Volume(files, axes_xyz=bool(la)) for name, files in {**acdc, **la}.items()}
    if originals:
        find = _acdc_original if acdc else _la_original
        volumes = {name: find(name, volume, Path(originals), problems) for name, volume in volumes.items()}
    roles, order = _read_lists(source, list(volumes), info, problems)
    by_file = {volume.files[0]: volume for volume in volumes.values()}
    cases = {name: _case(name, volume) for name, volume in volumes.items()}
    extra = {"geometry": "restored from the original images"} if originals else {"spacing_unknown": True}
    dataset = RawDataset(
        replace(info, extra={**extra, "intensity_unit": "none (normalized in the .h5 files)"}),
        SourceRules(
            label_values={value: value for value in range(len(info.labels))},
            read_image=lambda path: by_file[path].read("image"),
            read_label=lambda path: by_file[path].read("label"),
        ),
        train=[cases[name] for name in cases if name in roles["train"] or name in roles["val"]],
        test=[cases[name] for name in cases if name in roles["test"]],
        problems=problems,
        validation=sorted({info.patient_of(name) for name in roles["val"]}),
        split="By the lists beside the .h5 files." if order else "There were no lists: all cases are training cases.",
        order=PublishedOrder(order, "the list of training cases beside the .h5 files", len(order)) if order else None,
    )
    if not originals:
        print("The spacing is unknown and written as 1. Use --originals FOLDER to restore it from the originals.")
    return write_raw_dataset(dataset, target)


def _case(name: str, volume: H5Volume) -> Case:
    originals = tuple(path for path in (volume.original, volume.original_label) if path is not None)
    return Case(name, (volume.files[0],), volume.files[0], (*volume.files[1:], *originals))


def _acdc_files(source: Path, problems: list[str]) -> dict[str, tuple[Path, ...]]:
    """Case -> file of its volume, or files of its slices if there is no volume."""
    found: dict[str, tuple[Path, ...]] = {
        name: (path,) for name, path in by_name(source.rglob("*.h5"), r"(patient\d+_frame\d+)\.h5", problems).items()
    }
    slices: dict[str, dict[int, Path]] = {}
    for name, path in by_name(source.rglob("*.h5"), r"(patient\d+_frame\d+_slice_\d+)\.h5", problems).items():
        case, number = name.split("_slice_")
        slices.setdefault(case, {})[int(number)] = path
    for case, paths in slices.items():
        numbers = sorted(paths)
        if case not in found and (numbers[0] > 1 or numbers != list(range(numbers[0], numbers[-1] + 1))):
            problems.append(
                f"{paths[numbers[0]].parent}: the slices of {case} must be numbered without gaps from 0 or 1; found "
                f"{', '.join(map(str, numbers))}. Copy the missing ones."
            )
        found.setdefault(case, tuple(paths[number] for number in numbers))
    return dict(sorted(found.items()))


def _la_files(source: Path) -> dict[str, tuple[Path, ...]]:
    """Scan -> its file, in the layout of the Left Atrium."""
    return {path.parent.name: (path,) for path in sorted(source.rglob("mri_norm2.h5"))}


def _acdc_original(name: str, volume: H5Volume, originals: Path, problems: list[str]) -> H5Volume:
    """Find the original of a frame. SSL4MIS numbers the two frames 01 and 02, unlike the official data."""
    patient, frame = name.split("_")
    folder = next((path for path in sorted(originals.rglob(patient)) if path.is_dir()), originals)
    found = by_name(folder.glob("*"), rf"({patient}_frame\d+)\.nii(?:\.gz)?", problems)
    if len(found) == 2 and frame in ("frame01", "frame02"):
        return replace(volume, original=found[sorted(found)[int(frame[-1]) - 1]])
    if name in found:
        return replace(volume, original=found[name])
    problems.append(
        f"{volume.files[0]}: its original {name}.nii.gz must be below {originals}; it is not. Copy it there, or leave "
        "--originals out."
    )
    return volume


def _la_original(name: str, volume: H5Volume, originals: Path, problems: list[str]) -> H5Volume:
    for path in sorted(originals.rglob(f"{name}/lgemri.nrrd")):
        if (label := path.with_name("laendo.nrrd")).is_file():
            return replace(volume, original=path, original_label=label)
    problems.append(
        f"{volume.files[0]}: its originals {name}/lgemri.nrrd and laendo.nrrd must be below {originals}; they are not. "
        "Copy them there, or leave --originals out."
    )
    return volume


def _read_lists(
    source: Path, names: Sequence[str], info: DatasetInfo, problems: list[str]
) -> tuple[Mapping[str, list[str]], list[str]]:
    """Role -> cases, and the training patients in the order of their list. Without lists: all cases, and no order."""
    roles: dict[str, list[str]] = {role: [] for role in ROLES}
    found = False
    for role, stems in ROLES.items():
        places = [
            f"{folder}{stem}{ending}" for folder in ("", "Flods/") for stem in stems for ending in (".list", ".txt")
        ]
        for path in (source / name for name in places if (source / name).is_file()):
            found = True
            roles[role] += _listed_cases(path, names, problems)
    roles = {role: list(dict.fromkeys(cases)) for role, cases in roles.items()}
    if not found:
        return {**roles, "train": list(names)}, []
    others = {*roles["val"], *roles["test"]}
    roles["train"] = roles["train"] or [name for name in names if name not in others]
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sorted({info.patient_of(n) for n in roles[first]} & {info.patient_of(n) for n in roles[second]}):
            problems.append(
                f"{source}: a patient must be in one list; in those of {first} and of {second}: {listed(both)}. "
                "Correct the lists."
            )
    if left_out := [name for name in names if not any(name in cases for cases in roles.values())]:
        print(f"Leaving out {len(left_out)} cases that are not in a list: {listed(left_out)}.")
    return roles, list(dict.fromkeys(info.patient_of(name) for name in roles["train"]))


def _listed_cases(path: Path, names: Sequence[str], problems: list[str]) -> list[str]:
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    cases = list(dict.fromkeys(re.sub(r"(_slice_\d+)?(\.h5|/mri_norm2\.h5)?$", "", word) for word in words if word))
    if unknown := [case for case in cases if case not in names]:
        problems.append(
            f"{path}: every line must name a case of the source; there is no {listed(unknown)}. Copy the .h5 files "
            "again, or remove the lines."
        )
    return [case for case in cases if case in names]


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
