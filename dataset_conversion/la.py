"""Left Atrium (Atrial Segmentation Challenge, MICCAI 2018): late gadolinium MRI, from the official layout.

The source, as downloaded:

    Training Set/06SR5RBREL16DQ6M8LWS/lgemri.nrrd     image
    Training Set/06SR5RBREL16DQ6M8LWS/laendo.nrrd     its label: 0 background, 255 left atrium with its veins

If all 100 training scans are present, the test cases are the 20 that semi-supervised papers use since UA-MT (Yu et al.,
MICCAI 2019), by name. Their labeled cases are the first ones in alphabetical order, so `--labeled 8` selects the eight
of the papers. With other scans both are drawn at random, and one fifth of the scans are test cases. Run with
`nnunet_collab convert la SOURCE -d ID` or `python dataset_conversion/la.py SOURCE -d ID`.
"""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_collab.conversion.labeled_protocol import PublishedOrder
from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone
from nnunet_collab.conversion.source_check import SourceRules
from nnunet_collab.conversion.source_files import paired, refuse_nothing_found, root_folder
from nnunet_collab.splits.patient_folds import held_out

DATASET_NAME = "LeftAtrium"

INFO = DatasetInfo(
    channel_names={"0": "LGE-MRI"},
    labels={"background": 0, "left_atrium": 1},
    file_ending=".nii.gz",
    patient_pattern=r"(\w+)",
    description="Left atrium with pulmonary veins in late gadolinium enhanced MRI",
    license="for research, with citation; see the reference",
    citation=(
        "Z. Xiong, Q. Xia, Z. Hu, N. Huang, et al., A global benchmark of algorithms for segmenting the left atrium "
        "from late gadolinium-enhanced cardiac magnetic resonance imaging, Medical Image Analysis 67, 101832, 2021, "
        "doi:10.1016/j.media.2020.101832"
    ),
    reference="https://www.cardiacatlas.org/atriaseg2018-challenge/",
)
RULES = SourceRules(label_values={0: 0, 255: 1})
TEST = (
    "UPT6DX9IQY9JAZ7HJKA7", "UTBUJIWZMKP64E3N73YC", "ULHWPWKKLTE921LQLH1P", "V0MZOWJ6MU3RMRCV9EXR",
    "VDOF02M8ZHEAADFMS6NP", "VG4C826RAAKVMV9BQLVD", "VIXBEFTNVHZWKAKURJBN", "VQ2L3WM8KEVF6L44E6G9",
    "WBG9WYZ1B25WDT5WAT8T", "WMDG2EFA6L2SNDZXIRU0", "WNPKE0W404QE9AELX1LR", "WSJB9P4JCXUVHBOYFVWL",
    "WW8F5CO4S4K5IM5Z7EXX", "X18LU5AOBNNDMLTA0JZL", "XYDLYJ5CS19FDBVLJIPI", "Y7ZU0B2APPF54WG6PDMF",
    "YDKD1HVHSME6NVMA8I39", "Z9GMG63CJLL0VW893BB1", "ZIJLJAVQV3FJ6JSQOH1E", "ZQPMJ4XEC5A4BISD45P1",
)  # fmt: skip
TOTAL = 100


def convert(source: Path, target: Target) -> Path:
    """Write the Left Atrium dataset as an nnU-Net raw dataset.

    Args:
        source: The folder that holds `Training Set/`.
        target: The dataset to write.

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If source or target are refused. Nothing is written then.
    """
    place = root_folder(source, (".", "2018_UTAH_MICCAI"), ("Training Set",)) / "Training Set"
    folders = [path for path in place.iterdir() if path.is_dir() and re.fullmatch(r"\w+", path.name)]
    images, labels = (
        {folder.name: folder / name for folder in folders if (folder / name).is_file()}
        for name in ("lgemri.nrrd", "laendo.nrrd")
    )
    problems = [
        f"{folder}: there is neither lgemri.nrrd nor laendo.nrrd. Copy the scan again, or remove the folder."
        for folder in sorted(folders)
        if folder.name not in images.keys() | labels.keys()
    ]
    cases = paired(images, labels, problems)
    refuse_nothing_found(cases, problems, place, "one folder per scan with lgemri.nrrd and laendo.nrrd")
    names = [case.name for case in cases]
    published = len(names) == TOTAL and set(names) >= set(TEST)
    test = TEST if published else held_out(names, {"train": 80, "test": 20})["test"]
    train = [case for case in cases if case.name not in test]
    dataset = RawDataset(
        INFO,
        RULES,
        train=train,
        test=[case for case in cases if case.name in test],
        problems=problems,
        split=(
            "The 80 and 20 scans of the public list of UA-MT, by name."
            if published
            else f"Drawn at random with a fixed seed, 80 to 20: the public list needs all of its {TOTAL} scans."
        ),
        order=PublishedOrder(
            sorted(case.name for case in train), "the public list of UA-MT (alphabetical)", TOTAL - len(TEST)
        )
        if published
        else None,
    )
    return write_raw_dataset(dataset, target)


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
