"""Synapse multi-organ (BTCV, "Beyond the Cranial Vault", MICCAI 2015): abdominal CT, from the official layout.

The source, as the archive RawData.zip unpacks:

    RawData/Training/img/img0001.nii.gz               image (HU), numbers 1 to 10 and 21 to 40
    RawData/Training/label/label0001.nii.gz           its label: 0 background, 1 to 13 organs
    RawData/Testing/...                               not used, because its labels were never published

The default is the protocol of TransUNet (Chen et al., arXiv:2102.04306), which CTRCL and others use: eight organs in
its order. The other five become background. The test cases are the 12 cases of that protocol, by number. Run with
`nnunet_collab convert synapse SOURCE -d ID` or `python dataset_conversion/synapse.py SOURCE -d ID`.
"""

from __future__ import annotations

from pathlib import Path

from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone
from nnunet_collab.conversion.source_check import SourceRules
from nnunet_collab.conversion.source_files import by_name, paired, refuse_nothing_found, root_folder

DATASET_NAME = "Synapse"
OPTIONS = {
    "--organs": {
        "choices": ["8", "13"],
        "help": "8: the organs of TransUNet's protocol (default); 13: all labeled organs",
    }
}

ORGANS = (
    "spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_and_splenic_veins", "pancreas", "right_adrenal_gland", "left_adrenal_gland",
)  # fmt: skip  # values 1 to 13 in the source
EIGHT = (8, 4, 3, 2, 6, 11, 1, 7)  # values in the source of 1 to 8 in TransUNet's protocol
TEST = ("0008", "0022", "0038", "0036", "0032", "0002", "0029", "0003", "0001", "0004", "0025", "0035")


def convert(source: Path, target: Target, organs: str = "8") -> Path:
    """Write Synapse as an nnU-Net raw dataset.

    Args:
        source: The folder that holds `img/` and `label/`, or a folder above it in the unpacked archive.
        target: The dataset to write.
        organs: "8" or "13".

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If source or target are refused. Nothing is written then.
    """
    places = (".", "Training", "RawData/Training", "Abdomen/RawData/Training")
    root = root_folder(source, places, ("img", "label"))
    problems: list[str] = []
    images = by_name((root / "img").iterdir(), r"img(\d{4})\.nii(?:\.gz)?", problems)
    labels = by_name((root / "label").iterdir(), r"label(\d{4})\.nii(?:\.gz)?", problems)
    cases = paired(images, labels, problems, prefix="case")
    refuse_nothing_found(cases, problems, root / "img", "img0001.nii.gz and so on")
    values = EIGHT if organs == "8" else tuple(range(1, len(ORGANS) + 1))
    new_values = {value: number for number, value in enumerate(values, start=1)}
    dataset = RawDataset(
        _info(values),
        SourceRules(label_values={value: new_values.get(value, 0) for value in range(len(ORGANS) + 1)}),
        train=[case for case in cases if case.name.removeprefix("case") not in TEST],
        test=[case for case in cases if case.name.removeprefix("case") in TEST],
        problems=problems,
        split="The 18 and 12 cases of TransUNet's protocol, by number.",
    )
    return write_raw_dataset(dataset, target)


def _info(values: tuple[int, ...]) -> DatasetInfo:
    return DatasetInfo(
        channel_names={"0": "CT"},
        labels={"background": 0} | {ORGANS[value - 1]: number for number, value in enumerate(values, start=1)},
        file_ending=".nii.gz",
        patient_pattern=r"(case\d{4})",
        description=f"{len(values)} abdominal organs in portal venous contrast CT",
        license="terms of the challenge, for registered users; see the reference",
        citation=(
            "B. Landman, Z. Xu, J. E. Igelsias, M. Styner, T. R. Langerak, A. Klein, MICCAI Multi-Atlas Labeling "
            "Beyond the Cranial Vault - Workshop and Challenge, 2015, doi:10.7303/syn3193805"
        ),
        reference="https://www.synapse.org/Synapse:syn3193805",
        extra={"intensity_unit": "HU"},
    )


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
