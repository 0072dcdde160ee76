"""The options of `nnunet_collab convert own`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.names import name_fault


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """Options as on the command line; see `dataset_conversion/own.py`.

    Attributes:
        images: Folder of the images with labels, below SOURCE.
        labels: Folder of their labels.
        unlabeled: Folder of images without labels.
        test_images: Folder of the test images.
        test_labels: Folder of their labels.
        channels: Names of the channels in order, separated by commas; empty: found.
        series: Word or regular expression that the description or UID of a DICOM series must contain; "most": the
            series with the most slices; empty: refuse a folder with two series.
        classes: CSV file with the columns value and name, or "1=liver,2=tumor"; empty: found.
        patients: CSV file with the columns case and patient, or None.
        patient_pattern: Regular expression that matches the source's case names; its first group is the patient.
        keep_names: Whether cases keep their names.
        key: File of the key table, or None.
        rest_unlabeled: Whether images without a label are unlabeled images instead of a fault.
    """

    images: str = "images"
    labels: str = "labels"
    unlabeled: str = "unlabeled"
    test_images: str = "test_images"
    test_labels: str = "test_labels"
    channels: str = ""
    series: str = ""
    classes: str = ""
    patients: Path | None = None
    patient_pattern: str | None = None
    keep_names: bool = False
    key: Path | None = None
    rest_unlabeled: bool = False

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of the channels; empty if they are to be found.

        Raises:
            CollabError: If a name is empty, occurs twice, or cannot be part of a file name.
        """
        names = tuple(name.strip() for name in self.channels.split(",")) if self.channels else ()
        if any(name_fault(name) for name in names) or len({name.lower() for name in names}) < len(names):
            raise CollabError(
                f"--channels: it must name the channels in order, each once; got {self.channels!r}. Write e.g. "
                "T1,FLAIR."
            )
        return names
