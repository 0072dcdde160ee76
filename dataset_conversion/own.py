"""Your own folders of images and labels, DICOM among them.

SOURCE holds some of these folders; other names are given by options:

    images/         images with labels: a file per case, or for DICOM a folder per case or any tree of studies
    labels/         their labels, named like the images; DICOM-SEG is also found by the series to which it refers
    unlabeled/      images without labels
    test_images/    images for the final evaluation; they are never trained on
    test_labels/    their labels

Volumes are NIfTI, NRRD, MetaImage or DICOM, and become NIfTI. Pictures are PNG, TIFF, JPEG or BMP, and become PNG.
Cases get numbers instead of names, no tag or comment of a file goes along, and the table that tells which scan became
which case is written only where --key says. Run with
`nnunet_collab convert own SOURCE -d ID` or `python dataset_conversion/own.py SOURCE -d ID`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_collab.conversion.own.conversion import convert_own
from nnunet_collab.conversion.own.options import OwnOptions
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.scripts import run_alone

DATASET_NAME = "Own"
OPTIONS = {
    "--images": {"metavar": "FOLDER", "help": "folder of the images with labels, in SOURCE (default: images)"},
    "--labels": {"metavar": "FOLDER", "help": "folder of their labels (default: labels)"},
    "--unlabeled": {"metavar": "FOLDER", "help": "folder of the images without labels (default: unlabeled)"},
    "--test_images": {"metavar": "FOLDER", "help": "folder of the test images (default: test_images)"},
    "--test_labels": {"metavar": "FOLDER", "help": "folder of their labels (default: test_labels)"},
    "--rest_unlabeled": {
        "action": "store_true",
        "help": "images in the folder of images that have no label are unlabeled images, not a fault",
    },
    "--channels": {
        "metavar": "NAMES",
        "help": "names of the channels in order, e.g. CT or T1,FLAIR; the files are CASE_T1 and CASE_FLAIR, or lie in "
        "folders of these names (default: files CASE_0000, CASE_0001 are channels; else there is one)",
    },
    "--series": {
        "metavar": "WORD",
        "help": "which DICOM series of a study: a word or regular expression in its description or UID, or `most` for "
        "the one with the most slices",
    },
    "--classes": {
        "metavar": "TABLE",
        "help": 'names of the classes: "1=liver,2=tumor", or a CSV file with the columns value and name (default: what '
        "is found)",
    },
    "--patients": {
        "metavar": "FILE.csv",
        "help": "table with the columns case and patient, for patients with several cases (default: DICOM's PatientID)",
    },
    "--patient_pattern": {
        "metavar": "REGEX",
        "help": "regular expression that matches the whole names of the cases in SOURCE; group 1 is the patient",
    },
    "--keep_names": {"action": "store_true", "help": "cases keep their names; they must not name people"},
    "--key": {
        "metavar": "FILE.csv",
        "help": "write the table of cases and sources; a table that is there already keeps its numbers",
    },
}


def convert(source: Path, target: Target, **options: Any) -> Path:
    """Write the folders of a user as an nnU-Net raw dataset.

    Args:
        source: The folder that holds `images/` and so on.
        target: The dataset to write.
        options: Fields of `OwnOptions`.

    Returns:
        Folder of the dataset.

    Raises:
        CollabError: If options, source or target are refused. Nothing is written then.
    """
    files = {name: Path(options.pop(name)) for name in ("patients", "key") if name in options}
    return convert_own(source, target, OwnOptions(**options, **files))


if __name__ == "__main__":
    raise SystemExit(run_alone(Path(__file__)))
