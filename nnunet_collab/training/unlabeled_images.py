"""The unlabeled images of a training, and batches that contain them.

Each batch has labeled samples from nnU-Net's loader and views of unlabeled samples. Unlabeled are

- the images of `imagesUn`, preprocessed by `nnunet_collab preprocess_unlabeled`,
- the cases that the split declares `unlabeled`; their labels are not opened,
- the voxels of the ignore label in the labeled cases, unless `unlabeled_voxels` is switched off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from nnunet_collab.core.distributed import world_size
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import RAW, SPLIT_FILE, UNLABELED
from nnunet_collab.core.patients import patient_rule
from nnunet_collab.data.loaders import BatchSource
from nnunet_collab.data.locations import located_cases, locations_folder, read_record
from nnunet_collab.data.two_streams import LabeledCrops, RandomCrops, TwoStreams
from nnunet_collab.data.unlabeled_dataset import UnlabeledDataset, has_image
from nnunet_collab.data.unlabeled_preprocessing import unlabeled_cases, unlabeled_folder
from nnunet_collab.data.views import WeakAndStrongViews
from nnunet_collab.splits.few_labels import check_roles, of_patients
from nnunet_collab.training import preflight
from nnunet_collab.training.case_files import check_unlabeled_images
from nnunet_collab.training.case_roles import refuse_missing
from nnunet_collab.training.semi_supervised_settings import SemiSupervisedSettings
from nnunet_collab.training.trainer import CollabTrainer


class UnlabeledImagesTrainer(CollabTrainer):
    """Trains with nnU-Net's labeled batch and additional unlabeled samples."""

    settings: ClassVar[SemiSupervisedSettings] = SemiSupervisedSettings()
    strong_views: ClassVar[int] = 0  # number of views of each unlabeled patch that the method needs
    kept_passes: ClassVar[float] = 1.0  # of each unlabeled patch whose activations are kept for the gradient

    def initialize(self) -> None:
        """Build everything, and divide the unlabeled samples among the processes.

        Raises:
            CollabError: If a process would have no unlabeled sample.
        """
        super().initialize()
        self.labeled_per_batch = self.batch_size
        self.unlabeled_per_batch = self._unlabeled_on_this_process()

    def _unlabeled_on_this_process(self) -> int:
        size = self.settings.unlabeled_batch_size
        if size is None:
            return int(self.batch_size)
        if size < world_size():
            raise CollabError(
                f"setting 'unlabeled_batch_size': {world_size()} processes share it, so it must be at least "
                f"{world_size()}; got {size}. Raise it, or train with fewer processes."
            )
        each, rest = divmod(size, world_size())
        return each + int(self.rank < rest)

    def training_source(self, data: Any, patch_size: Any, transforms: Any) -> BatchSource:
        """Labeled samples by nnU-Net's loader, unlabeled ones at random places, from one pool of workers."""
        labeled = self.labeled_source(data, self.labeled_per_batch, patch_size, transforms, LabeledCrops)
        unlabeled = self.unlabeled_dataset(data)
        n_l, n_u = self.labeled_per_batch, self.unlabeled_per_batch
        self.print_to_log_file(
            f"each batch on this process: {n_l} labeled samples of {len(data.identifiers)} cases, as nnU-Net has them, "
            f"and {n_u} unlabeled ones of {len(unlabeled.identifiers)}. A step keeps activations for about "
            f"{1 + self.kept_passes * n_u / n_l:.1f} times as many samples as nnU-Net's; if memory does not suffice, "
            f"lower unlabeled_batch_size."
        )
        crops = RandomCrops(
            unlabeled,
            self.unlabeled_crops_per_batch(),
            patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            transforms=self.unlabeled_views(transforms),
            centered_share=self.settings.centered_share if unlabeled.located else 0.0,
        )
        return TwoStreams(labeled, crops)

    def unlabeled_views(self, planned: Any) -> WeakAndStrongViews:
        """What makes the views of an unlabeled crop; `planned` are nnU-Net's transforms."""
        return WeakAndStrongViews(planned, self.strong_views)

    def unlabeled_crops_per_batch(self) -> int:
        """Number of unlabeled patches in a batch."""
        return self.unlabeled_per_batch

    def unlabeled_dataset(self, labeled: Any) -> UnlabeledDataset:
        """All unlabeled images of this fold.

        Args:
            labeled: nnU-Net's dataset of the labeled training cases.

        Raises:
            CollabError: If there is none, or those of imagesUn are not preprocessed as they must be.
        """
        own = Path(self.preprocessed_dataset_folder)
        base = Path(self.preprocessed_dataset_folder_base)
        splits = base / SPLIT_FILE
        raw = Path(os.environ[RAW], self.plans_manager.dataset_name)
        in_split = preflight.unlabeled_in_split(splits, self.fold)
        refuse_missing(f"{splits}, fold {self.fold}", [case for case in in_split if not has_image(own, case)], own)
        extra = self._without_validated(
            unlabeled_cases(base, self.plans_manager.plans, self.configuration_name, self.dataset_json, raw), in_split
        )
        folder = unlabeled_folder(base, self.configuration_manager.data_identifier)
        folders = {**dict.fromkeys(in_split, own), **dict.fromkeys(extra, folder)}
        check_unlabeled_images(folders)
        scribbles = self.label_manager.has_ignore_label and self.settings.unlabeled_voxels
        if not folders and not scribbles:
            raise CollabError(
                f"{self.trainer_name}: learns from unlabeled images, too, and found none: {raw / UNLABELED} has no "
                f"image CASE_0000{self.dataset_json['file_ending']} of a patient who is not validated on, {splits} "
                f"declares no case unlabeled in fold {self.fold}. Put images into {UNLABELED} and run "
                f"nnunet_collab preprocess_unlabeled, or declare cases unlabeled with nnunet_collab split."
            )
        self.case_roles.require_same_cases("unlabeled", folders)
        return UnlabeledDataset(
            folders,
            located=self._located(folders),
            partially_labeled=labeled if scribbles else None,
            ignore_label=self.label_manager.ignore_label,
        )

    def _located(self, cases: Iterable[str]) -> dict[str, Path]:
        """Folder with the positions of predicted foreground, by case; only cases that have them."""
        base = Path(self.preprocessed_dataset_folder_base)
        folder = locations_folder(base, self.configuration_manager.data_identifier)
        found = sorted(located_cases(folder) & {*cases}) if self.settings.centered_share > 0 else []
        self.case_roles.require_same_cases("located", found)
        if found:
            model = read_record(folder).get("model", "an unknown model")
            self.print_to_log_file(
                f"{self.settings.centered_share:.0%} of the crops of {len(found)} unlabeled cases are centered on the "
                f"foreground that {model} predicts"
            )
        return dict.fromkeys(found, folder)

    def _without_validated(self, extra: list[str], in_split: list[str]) -> list[str]:
        """The cases of imagesUn whose patient is not in the validation set."""
        train = self.case_roles.cases["train"]
        # For fold `all`, nnU-Net validates on the training cases.
        val = [] if self.fold == "all" else self.case_roles.cases["val"]
        roles = {"train": train, "val": val, "unlabeled": in_split, UNLABELED: extra}
        fix = f"Rename the case in {UNLABELED} or remove it."
        check_roles(f"{UNLABELED} and the split of fold {self.fold}", roles, str, fix)
        left_out = of_patients(extra, val, patient_rule(self.dataset_json, Path(self.preprocessed_dataset_folder_base)))
        if left_out:
            self.print_to_log_file(
                f"left out of {UNLABELED}, because their patient is validated on in this fold: {', '.join(left_out)}"
            )
        return sorted({*extra} - {*left_out})
