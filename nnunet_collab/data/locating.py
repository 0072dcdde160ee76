"""Find foreground in the unlabeled images with a model: the part of `preprocess_unlabeled` for `--locate MODEL`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import SPLIT_FILE, channel_names, read_split
from nnunet_collab.data.locations import (
    located_cases,
    locations_folder,
    read_record,
    sample_locations,
    save_locations,
    write_record,
)
from nnunet_collab.data.locator import Locator
from nnunet_collab.data.unlabeled_dataset import open_image
from nnunet_collab.data.unlabeled_preprocessing import preprocessing_fingerprint, unlabeled_folder


class Locating(NamedTuple):
    """A model that fits the dataset, and the paths of the dataset.

    Attributes:
        locator: The model.
        model: Folder of the model.
        preprocessed: Folder of the preprocessed dataset.
        identifier: Data identifier of the configuration.
        foreground: Foreground labels.
    """

    locator: Locator
    model: Path
    preprocessed: Path
    identifier: str
    foreground: list[int]

    def run(self, cases: Sequence[str], *, overwrite: bool) -> None:
        """Locate the cases of imagesUn and the unlabeled cases of a split. Cases that are done are skipped."""
        from tqdm import tqdm

        folder = locations_folder(self.preprocessed, self.identifier)
        own = self.preprocessed / self.identifier
        splits = self.preprocessed / SPLIT_FILE
        declared = (
            {case for fold in read_split(splits) for case in fold.get("unlabeled", ())} if splits.is_file() else ()
        )
        places = {**dict.fromkeys(sorted(declared), own)}
        places |= dict.fromkeys(cases, unlabeled_folder(self.preprocessed, self.identifier))
        record = {"model": str(self.model.resolve())}
        if overwrite or read_record(folder) != record:  # never mix the locations of two models
            for path in folder.glob("*.npz"):
                path.unlink()
        write_record(folder, record)
        todo = [case for case in places if case not in located_cases(folder)]
        for case in tqdm(todo, desc="Locating", unit="case", disable=None):
            segmentation = self.locator.segment(open_image(places[case], case))
            save_locations(folder, case, sample_locations(segmentation, self.foreground, zlib.crc32(case.encode())))
        print(f"located {len(todo)} cases with {self.model.name}, {len(places) - len(todo)} were done before: {folder}")


def prepare(
    model: Path,
    configurations: Sequence[str],
    preprocessed: Path,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    device: str,
) -> Locating:
    """Load the model and check that it fits the dataset.

    Raises:
        CollabError: If the folder holds no model, or if the model has another configuration, or other channels, classes
            or preprocessing.
    """
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if device == "cuda" and not torch.cuda.is_available():
        raise CollabError("-device: --locate needs a GPU for cuda; torch finds none. Write -device cpu.")
    locator = Locator(model, torch.device(device))
    configuration = model.resolve().name.split("__")[-1]
    if configuration not in configurations or configuration not in plans["configurations"]:
        raise CollabError(
            f"--locate: the configuration of the model must be in -c ({', '.join(configurations)}) and in the plans; "
            f"{model} is a model of {configuration}. Use another model, or add its configuration to -c."
        )
    theirs = locator.dataset_json
    for what, ours, other in (
        ("channels", channel_names(dataset_json), channel_names(theirs)),
        ("labels", dataset_json["labels"], theirs["labels"]),
    ):
        if ours != other:
            raise CollabError(
                f"--locate: the model must have the {what} of the dataset, {ours}; {model} has {other}. Use a model "
                f"that was trained on this dataset."
            )
    fingerprints = [
        preprocessing_fingerprint(p, configuration, d) for p, d in ((plans, dataset_json), (locator.plans, theirs))
    ]
    if fingerprints[0] != fingerprints[1]:
        raise CollabError(
            f"--locate: the model must have the preprocessing of these plans; that of {model} differs (in spacing, "
            f"normalization or reader). Use a model that was trained with the plans {plans['plans_name']}."
        )
    manager = PlansManager(plans)
    labels = manager.get_label_manager(dataset_json)
    foreground = [int(label) for label in labels.foreground_labels]
    identifier = manager.get_configuration(configuration).data_identifier
    return Locating(locator, model, preprocessed, identifier, foreground)
