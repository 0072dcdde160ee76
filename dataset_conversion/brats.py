"""BraTS 2019 (Brain Tumor Segmentation Challenge, MICCAI 2019): four MRI sequences, from the official layout.

The source, as downloaded:

    MICCAI_BraTS_2019_Data_Training/HGG/BraTS19_2013_10_1/BraTS19_2013_10_1_flair.nii.gz     also _t1, _t1ce, _t2
    MICCAI_BraTS_2019_Data_Training/HGG/BraTS19_2013_10_1/BraTS19_2013_10_1_seg.nii.gz       its label
    MICCAI_BraTS_2019_Data_Training/LGG/...                                                  the same
    name_mapping.csv, survival_data.csv                                                      not used

The source's labels are 0 background, 1 necrotic core, 2 oedema and 4 enhancing tumour. By default FLAIR alone and the
whole tumour, as in the semi-supervised papers; or all four sequences, or the challenge's three nested regions. Run with
`nnunet_collab convert brats SOURCE -d ID` or `python dataset_conversion/brats.py SOURCE -d ID`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from nnunet_collab.data.convert_command import run_alone
from nnunet_collab.data.patient_folds import held_out
from nnunet_collab.data.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.data.raw_target import Target
from nnunet_collab.data.source_check import Case, SourceRules
from nnunet_collab.data.source_files import refuse_nothing_found, root_folder

DATASET_NAME = "BraTS2019"
OPTIONS = {
    "--modalities": {
        "choices": ["flair", "all"],
        "help": "flair: FLAIR alone (default); all: FLAIR, T1, T1 with contrast, T2",
    },
    "--task": {
        "choices": ["whole", "regions"],
        "help": "whole: the whole tumour (default); regions: whole tumour, tumour core, enhancing tumour",
    },
}

SEQUENCES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}
PUBLISHED = {"train": 250, "validation": 25, "test": 60}
GRADES = ("HGG", "LGG")
INFO = DatasetInfo(
    channel_names={},
    labels={},
    file_ending=".nii.gz",
    patient_pattern=r"(BraTS19_\w+)_\d+",
    description="",
    licence="for research, with citation; see the reference",
    citation=(
        "B. H. Menze, A. Jakab, S. Bauer, et al., The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS), "
        "IEEE Transactions on Medical Imaging 34(10), 1993-2024, 2015, doi:10.1109/TMI.2014.2377694; S. Bakas, H. "
        "Akbari, A. Sotiras, et al., Advancing The Cancer Genome Atlas glioma MRI collections with expert segmentation "
        "labels and radiomic features, Scientific Data 4, 170117, 2017, doi:10.1038/sdata.2017.117; S. Bakas, M. "
        "Reyes, A. Jakab, et al., Identifying the Best Machine Learning Algorithms for Brain Tumor Segmentation, "
        "arXiv:1811.02629"
    ),
    reference="https://www.med.upenn.edu/cbica/brats2019/data.html",
)


def convert(source: Path, target: Target, modalities: str = "flair", task: str = "whole") -> Path:
    """Write BraTS 2019 as an nnU-Net raw dataset.

    Args:
        source: The folder that holds `HGG/` and `LGG/`, or the one above it.
        target: Where to.
        modalities: "flair" or "all".
        task: "whole" or "regions".

    Returns:
        The dataset's folder.

    Raises:
        CollabError: If source or target must be refused; nothing has been written then.
    """
    root = root_folder(source, (".", "MICCAI_BraTS_2019_Data_Training"), GRADES)
    sequences = ["flair"] if modalities == "flair" else list(SEQUENCES)
    cases: list[Case] = []
    problems: list[str] = []
    groups: dict[str, str] = {}
    for grade in GRADES:
        folders = [path for path in sorted((root / grade).iterdir()) if re.fullmatch(r"BraTS19_\w+_\d+", path.name)]
        for folder in folders:
            if case := _case(folder, sequences, problems):
                cases.append(case)
                groups[INFO.patient_of(case.name)] = grade
    refuse_nothing_found(cases, problems, root / "HGG", "one folder per patient, BraTS19_2013_10_1 and so on")
    roles = held_out(groups, PUBLISHED, groups=groups)
    info, rules = _whole_tumor() if task == "whole" else _regions()
    dataset = RawDataset(
        replace(info, channel_names={str(number): SEQUENCES[name] for number, name in enumerate(sequences)}),
        rules,
        train=[case for case in cases if INFO.patient_of(case.name) not in roles["test"]],
        test=[case for case in cases if INFO.patient_of(case.name) in roles["test"]],
        groups=groups,
        problems=problems,
        validation=roles["validation"],
        split=(
            "Drawn at random with a fixed seed, balanced over HGG and LGG: 250 training, 25 validation and 60 test "
            "patients of 335 as in the papers, whose lists of names are not used."
        ),
    )
    return write_raw_dataset(dataset, target)


def _case(folder: Path, sequences: list[str], problems: list[str]) -> Case | None:
    """The case in a folder; None, and lines in `problems`, if files are missing. Uncompressed files are fine."""
    found: dict[str, Path] = {}
    for name in (*sequences, "seg"):
        paths = [folder / f"{folder.name}_{name}{ending}" for ending in (".nii.gz", ".nii")]
        if path := next((path for path in paths if path.is_file()), None):
            found[name] = path
        else:
            problems.append(f"{paths[0]}: this file is missing. Copy it again, or remove the folder.")
    if len(found) <= len(sequences):
        return None
    return Case(folder.name, tuple(found[name] for name in sequences), found["seg"])


def _whole_tumor() -> tuple[DatasetInfo, SourceRules]:
    info = replace(INFO, labels={"background": 0, "whole_tumor": 1}, description="Whole glioma in brain MRI")
    return info, SourceRules(label_values={0: 0, 1: 1, 2: 1, 4: 1})


def _regions() -> tuple[DatasetInfo, SourceRules]:
    """Values in nnU-Net: 1 oedema, 2 necrotic core, 3 enhancing tumour, so that each region contains the next."""
    info = replace(
        INFO,
        labels={"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": [3]},
        description="Whole tumour, tumour core and enhancing tumour of gliomas in brain MRI, as regions",
        extra={"regions_class_order": [1, 2, 3]},
    )
    return info, SourceRules(label_values={0: 0, 1: 2, 2: 1, 4: 3})


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
