"""BraTS 2019 (Brain Tumor Segmentation Challenge, MICCAI 2019): four MRI sequences, from the official layout.

The source, as downloaded:

    MICCAI_BraTS_2019_Data_Training/HGG/BraTS19_2013_10_1/BraTS19_2013_10_1_flair.nii.gz     also _t1, _t1ce, _t2
    MICCAI_BraTS_2019_Data_Training/HGG/BraTS19_2013_10_1/BraTS19_2013_10_1_seg.nii.gz       its label
    MICCAI_BraTS_2019_Data_Training/LGG/...                                                  the same
    name_mapping.csv, survival_data.csv                                                      not used

The labels of the source are 0 background, 1 necrotic core, 2 edema and 4 enhancing tumor. The default is FLAIR only and
the whole tumor, as in the semi-supervised papers. Options: all four sequences, and the three nested regions of the
challenge. Run with `nnunet_collab convert brats SOURCE -d ID` or `python dataset_conversion/brats.py SOURCE -d ID`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from nnunet_collab.conversion.labeled_protocol import PublishedOrder
from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone
from nnunet_collab.conversion.source_check import Case, SourceRules
from nnunet_collab.conversion.source_files import refuse_nothing_found, root_folder
from nnunet_collab.splits.patient_folds import held_out

DATASET_NAME = "BraTS2019"
OPTIONS = {
    "--modalities": {
        "choices": ["flair", "all"],
        "help": "flair: only FLAIR (default); all: FLAIR, T1, T1 with contrast, T2",
    },
    "--task": {
        "choices": ["whole", "regions"],
        "help": "whole: the whole tumor (default); regions: whole tumor, tumor core, enhancing tumor",
    },
}

SEQUENCES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}
PUBLISHED = {"train": 250, "validation": 25, "test": 60}
# The lists of SSL4MIS name 335 patients. Patients in neither of the first two lists are training patients. The names
# here are without "BraTS19_".
SSL4MIS_TEST = """
TCIA02_309 CBICA_AYA CBICA_AYG CBICA_ANV CBICA_BAN TCIA10_408 TCIA01_448 TCIA10_261 CBICA_ALU CBICA_AWH
TCIA10_420 2013_11 TCIA01_460 TCIA10_639 TCIA10_130 TCIA09_254 CBICA_BLJ TCIA01_390 2013_19 CBICA_BDK
TCIA13_630 TCIA02_430 TCIA06_165 CBICA_AOS CBICA_AZH CBICA_BGX TCIA02_455 TCIA10_330 TMC_12866 TCIA02_321
TCIA03_257 CBICA_AWI CBICA_AQZ TCIA10_152 TMC_27374 TCIA01_378 TCIA08_218 CBICA_ASY TCIA02_168 CBICA_BJY
2013_18 TCIA03_121 CBICA_BIC TCIA03_133 TCIA02_171 TMC_06290 TCIA10_175 CBICA_BGR TCIA10_276 TCIA09_402
TCIA10_442 CBICA_AUN 2013_20 TCIA10_490 TCIA06_409 TMC_21360 CBICA_AQQ TCIA10_307 TCIA04_437 CBICA_AQR
"""
SSL4MIS_VALIDATION = """
CBICA_AAP TCIA10_282 TCIA01_147 TCIA13_615 CBICA_AQA TCIA08_205 TCIA09_177 TCIA02_208 CBICA_AQN 2013_16
CBICA_BHQ TCIA02_135 CBICA_AVB TCIA10_644 CBICA_BKV TMC_15477 2013_1 CBICA_ARW TMC_11964 TCIA09_312
TCIA06_184 TMC_30014 TCIA10_103 CBICA_AOC CBICA_ABO
"""
SSL4MIS_FIRST = """
TCIA02_370 CBICA_ASA TCIA12_470 2013_8 TCIA01_429 TCIA08_234 TCIA10_266 TCIA13_633 TCIA03_199 TCIA10_629
CBICA_ATB CBICA_BCL TCIA08_469 TCIA04_343 CBICA_AOO CBICA_ASF TCIA13_618 CBICA_AVG TCIA09_255 TCIA08_280
2013_9 TCIA10_202 TCIA04_149 CBICA_AZD TCIA01_131 CBICA_BHZ TCIA02_179 CBICA_BEM TCIA02_300 CBICA_ARF
CBICA_ABY TCIA02_608 2013_17 CBICA_BHV TCIA02_117 TCIA12_249 TCIA08_162 TCIA03_498 TCIA01_235 2013_15
CBICA_AOP CBICA_AUA CBICA_AAB CBICA_BFB TCIA09_451 TCIA02_322 CBICA_ATV CBICA_BCF CBICA_AQJ CBICA_AVV
"""
GRADES = ("HGG", "LGG")
INFO = DatasetInfo(
    channel_names={},
    labels={},
    file_ending=".nii.gz",
    patient_pattern=r"(BraTS19_\w+)_\d+",
    description="",
    license="for research, with citation; see the reference",
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
        source: The folder that holds `HGG/` and `LGG/`, or its parent.
        target: The dataset to write.
        modalities: "flair" or "all".
        task: "whole" or "regions".

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If source or target are refused. Nothing is written then.
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
    roles, split, order = _roles(groups)
    info, rules = _whole_tumor() if task == "whole" else _regions()
    dataset = RawDataset(
        replace(info, channel_names={str(number): SEQUENCES[name] for number, name in enumerate(sequences)}),
        rules,
        train=[case for case in cases if INFO.patient_of(case.name) not in roles["test"]],
        test=[case for case in cases if INFO.patient_of(case.name) in roles["test"]],
        groups=groups,
        problems=problems,
        validation=roles["validation"],
        split=split,
        order=order,
    )
    return write_raw_dataset(dataset, target)


def _roles(groups: dict[str, str]) -> tuple[dict[str, list[str]], str, PublishedOrder | None]:
    """Test and validation patients, a description of the choice, and the order for few-label protocols.

    Args:
        groups: Patient -> HGG or LGG.
    """
    test, validation, first = (
        [f"BraTS19_{name}" for name in names.split()] for names in (SSL4MIS_TEST, SSL4MIS_VALIDATION, SSL4MIS_FIRST)
    )
    if len(groups) == sum(PUBLISHED.values()) and groups.keys() >= {*test, *validation, *first}:
        order = PublishedOrder(first, "the list train of SSL4MIS", PUBLISHED["train"])
        return (
            {"test": test, "validation": validation},
            "The lists of SSL4MIS: 250, 25 and 60 patients, by name.",
            order,
        )
    how = (
        "Drawn at random with a fixed seed, balanced over HGG and LGG, in the proportions of the public lists (250 "
        "training, 25 validation, 60 test patients), which need all 335 patients."
    )
    return held_out(groups, PUBLISHED, groups=groups), how, None


def _case(folder: Path, sequences: list[str], problems: list[str]) -> Case | None:
    """The case in a folder. If files are missing: None, and lines in `problems`. Files may be uncompressed."""
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
    """Values in nnU-Net: 1 edema, 2 necrotic core, 3 enhancing tumor, so that each region contains the next."""
    info = replace(
        INFO,
        labels={"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": [3]},
        description="Whole tumor, tumor core and enhancing tumor of gliomas in brain MRI, as regions",
        extra={"regions_class_order": [1, 2, 3]},
    )
    return info, SourceRules(label_values={0: 0, 1: 2, 2: 1, 4: 3})


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
