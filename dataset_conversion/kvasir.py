"""Kvasir-SEG (Jha et al., MMM 2020): color pictures of polyps, from the official layout.

The source, as downloaded (folder `Kvasir-SEG`):

    images/cju0qkwl35piu0993l0dewei2.jpg              image; the sizes differ
    masks/cju0qkwl35piu0993l0dewei2.jpg               its mask: white polyp; as a JPEG it is not exactly binary
    kavsir_bboxes.json                                not used

Images are converted to PNG, which nnU-Net reads as three channels. A pixel of a mask is polyp if its value is 128 or
more. A file with many gray pixels is not a mask and is refused. Run with
`nnunet_collab convert kvasir SOURCE -d ID` or `python dataset_conversion/kvasir.py SOURCE -d ID`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_collab.conversion.raw_dataset import DatasetInfo, RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone
from nnunet_collab.conversion.source_check import SourceRules
from nnunet_collab.conversion.source_files import by_name, paired, refuse_nothing_found, root_folder
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.image_io import read_image
from nnunet_collab.splits.patient_folds import held_out

DATASET_NAME = "KvasirSEG"

INFO = DatasetInfo(
    channel_names={"0": "R", "1": "G", "2": "B"},
    labels={"background": 0, "polyp": 1},
    file_ending=".png",
    patient_pattern=r"(\w+)",
    description="Polyps in colonoscopy pictures. The source does not say which pictures are of one patient.",
    license="for research and education, with citation; see the reference",
    citation=(
        "D. Jha, P. H. Smedsrud, M. A. Riegler, P. Halvorsen, T. de Lange, D. Johansen, H. D. Johansen, Kvasir-SEG: A "
        "Segmented Polyp Dataset, MultiMedia Modeling, LNCS 11962, 451-462, 2020, doi:10.1007/978-3-030-37734-2_37"
    ),
    reference="https://datasets.simula.no/kvasir-seg/",
)
THRESHOLD = 128
GRAY = (64, 192)  # JPEG moves the two values of a mask, but hardly ever so far
MOST_GRAY = 0.05  # share of pixels


def read_mask(path: Path) -> sitk.Image:
    """Read a mask: 1 where it is bright, 0 where it is dark.

    Raises:
        CollabError: If the file cannot be read, or is not a mask.
    """
    image = read_image(path)
    if image.GetNumberOfComponentsPerPixel() > 1:  # most are saved as gray in three equal channels
        image = sitk.VectorIndexSelectionCast(image, 0)
    pixels = sitk.GetArrayViewFromImage(image)
    gray = float(np.mean((pixels >= GRAY[0]) & (pixels < GRAY[1])))
    if gray > MOST_GRAY:
        raise CollabError(
            f"{path}: a mask must be black and white; {gray:.0%} of its pixels are gray. Copy the mask again, or leave "
            "this case out."
        )
    return image >= THRESHOLD


RULES = SourceRules(label_values={0: 0, 1: 1}, axes=2, components=3, read_label=read_mask)


def convert(source: Path, target: Target) -> Path:
    """Write Kvasir-SEG as an nnU-Net raw dataset.

    Args:
        source: The folder that holds `images/` and `masks/`, or its parent.
        target: The dataset to write.

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If source or target are refused. Nothing is written then.
    """
    root = root_folder(source, (".", "Kvasir-SEG"), ("images", "masks"))
    problems: list[str] = []
    pattern = r"(\w+)\.(?:jpg|jpeg|png)"
    images = by_name((root / "images").iterdir(), pattern, problems)
    masks = by_name((root / "masks").iterdir(), pattern, problems)
    cases = paired(images, masks, problems)
    refuse_nothing_found(cases, problems, root / "images", "pictures")
    roles = held_out([case.name for case in cases], {"train": 900, "test": 100})
    dataset = RawDataset(
        INFO,
        RULES,
        train=[case for case in cases if case.name in roles["train"]],
        test=[case for case in cases if case.name in roles["test"]],
        problems=problems,
        split="Drawn at random with a fixed seed: the paper gives only the numbers of images, 900 and 100.",
    )
    return write_raw_dataset(dataset, target)


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
