"""LiTS (Liver Tumor Segmentation Challenge, 2017): CT of the liver, from the official layout.

The source, as downloaded, in one folder or in several (Training Batch 1, Training Batch 2):

    volume-0.nii                                      image (HU), numbers 0 to 130
    segmentation-0.nii                                its label: 0 background, 1 liver, 2 tumor
    test-volume-0.nii                                 not used, because its label was never published

The affines of some segmentations are slightly wrong. They may differ from that of the volume by 1 % of the spacing, by
one voxel (of the finest axis) in the origin and by 0.01 per direction cosine. Then the grid of the volume is used.
Larger differences are faults. Run with
`nnunet_collab convert lits SOURCE -d ID` or `python dataset_conversion/lits.py SOURCE -d ID`.
"""

from __future__ import annotations

from pathlib import Path

from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone
from nnunet_collab.conversion.source_check import SourceRules
from nnunet_collab.conversion.source_files import by_name, paired, refuse_nothing_found
from nnunet_collab.core.grid import GridTolerance
from nnunet_collab.splits.patient_folds import held_out

DATASET_NAME = "LiTS"

INFO = DatasetInfo(
    channel_names={"0": "CT"},
    labels={"background": 0, "liver": 1, "tumor": 2},
    file_ending=".nii.gz",
    patient_pattern=r"(lits_\d{3})",
    description="Liver and liver tumors in contrast enhanced CT",
    license="Creative Commons, not for commercial use; see the reference",
    citation=(
        "P. Bilic, P. Christ, H. B. Li, E. Vorontsov, et al., The Liver Tumor Segmentation Benchmark (LiTS), Medical "
        "Image Analysis 84, 102680, 2023, doi:10.1016/j.media.2022.102680"
    ),
    reference="https://competitions.codalab.org/competitions/17094",
    extra={"intensity_unit": "HU"},
)
RULES = SourceRules(label_values={0: 0, 1: 1, 2: 2}, label_grid=GridTolerance(spacing=1e-2, origin=1.0, direction=1e-2))


def convert(source: Path, target: Target) -> Path:
    """Write LiTS as an nnU-Net raw dataset.

    Args:
        source: A folder with the volumes and segmentations in it or below it.
        target: The dataset to write.

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If source or target are refused. Nothing is written then.
    """
    problems: list[str] = []
    images, labels = (
        {f"{int(number):03d}": path for number, path in found.items()}
        for found in (
            by_name(source.rglob(f"{kind}-*"), rf"{kind}-(\d+)\.nii(?:\.gz)?", problems)
            for kind in ("volume", "segmentation")
        )
    )
    cases = paired(images, labels, problems, prefix="lits_")
    refuse_nothing_found(cases, problems, source, "volume-0.nii, segmentation-0.nii and so on")
    roles = held_out([case.name for case in cases], {"train": 105, "test": 26})
    dataset = RawDataset(
        INFO,
        RULES,
        train=[case for case in cases if case.name in roles["train"]],
        test=[case for case in cases if case.name in roles["test"]],
        problems=problems,
        split=(
            "Drawn at random by patient with a fixed seed, 80 to 20. The paper divides slices, so that slices of one "
            "patient are in both parts; this is not repeated here."
        ),
    )
    return write_raw_dataset(dataset, target)


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
