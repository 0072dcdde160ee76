"""What all methods share that learn from labeled and unlabeled images.

Each batch holds labeled samples, as nnU-Net makes them, and views of unlabeled ones. Unlabeled are

- the images of `imagesUn`, preprocessed by `nnunet_collab preprocess_unlabeled`,
- the cases that the split declares `unlabeled`; their labels are not opened,
- the voxels of the ignore label in the labeled cases, unless `unlabeled_voxels` is switched off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunet_collab.core.distributed import gather_objects, world_size
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import RAW, SPLIT_FILE, UNLABELED
from nnunet_collab.core.schedules import sigmoid_ramp
from nnunet_collab.core.settings import require
from nnunet_collab.core.types import StudentOutput, Term, Truth
from nnunet_collab.data.loaders import BatchSource
from nnunet_collab.data.two_streams import LabeledCrops, RandomCrops, TwoStreams
from nnunet_collab.data.unlabeled_dataset import UnlabeledDataset, has_image
from nnunet_collab.data.unlabeled_preprocessing import unlabeled_cases, unlabeled_folder
from nnunet_collab.data.views import WeakAndStrongViews
from nnunet_collab.losses.pseudo_labels import pseudo_labels
from nnunet_collab.splits.few_labels import check_roles, of_patients
from nnunet_collab.training import preflight
from nnunet_collab.training.case_roles import refuse_missing
from nnunet_collab.training.metrics import dice, overlap_counts, predicted_masks, true_masks
from nnunet_collab.training.pseudo_label_curves import PseudoLabelCurves, collapsed
from nnunet_collab.training.settings import TrainingSettings
from nnunet_collab.training.trainer import CollabTrainer


@dataclass(frozen=True)
class SemiSupervisedSettings(TrainingSettings):
    """Of every method that learns from unlabeled images, too."""

    labeled_share: float = 0.5  # of each batch, on every rank; at least one sample of each kind
    # All public codes supervise with (CE + Dice) / 2; nnU-Net's loss is the sum.
    supervised_weight: float = 0.5
    unlabeled_voxels: bool = True  # the ignore label's voxels are unlabeled data, too

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        require(0 < self.labeled_share < 1, "labeled_share", "must be in (0, 1)", self.labeled_share)
        require(self.supervised_weight > 0, "supervised_weight", "must be > 0", self.supervised_weight)


class SemiSupervisedBatch(NamedTuple):
    """One batch on the device.

    Attributes:
        image: `(B_l, C, *S)` labeled images.
        target: Theirs, as nnU-Net's loader delivers it.
        truth: The same at full resolution.
        weak: `(B_u, C, *S)` weak views of unlabeled images.
        strong: Strong views of the same patches, `(B_u, C, *S)` each.
        keep: `(B_u, *S)` bool, False where unsupervised losses do not apply.
    """

    image: Tensor
    target: Tensor | list[Tensor]
    truth: Truth
    weak: Tensor
    strong: tuple[Tensor, ...]
    keep: Tensor


class SemiSupervisedTrainer(CollabTrainer):
    """Base of the methods with unlabeled images; they override `unsupervised_terms` or `semi_supervised_terms`."""

    settings: ClassVar[SemiSupervisedSettings] = SemiSupervisedSettings()
    strong_views: ClassVar[int] = 0  # that the method needs of each unlabeled patch

    def initialize(self) -> None:
        """Build everything, and divide the batch.

        Raises:
            CollabError: If the batch cannot hold a labeled and an unlabeled sample.
        """
        super().initialize()
        if self.batch_size < 2:
            raise CollabError(
                f"setting 'batch_size': each batch holds labeled and unlabeled samples, so {self.trainer_name} needs "
                f"two per process or more; there is {self.batch_size}. Set batch_size to {2 * world_size()} or more."
            )
        wanted = round(self.batch_size * self.settings.labeled_share)
        self.labeled_per_batch = min(max(1, wanted), self.batch_size - 1)
        self.unlabeled_per_batch = self.batch_size - self.labeled_per_batch
        self.pseudo_label_curves = PseudoLabelCurves(regions=self.label_manager.has_regions)

    # ---------------------------------------------------------------- data

    def _set_batch_size_and_oversample(self) -> None:
        """nnU-Net's, but that several processes all center the same share of their samples on foreground, by chance.

        nnU-Net centers the last third of the whole batch and deals its places to the processes. Where a part of every
        process's batch is unlabeled, that would be another share of the labeled samples.
        """
        share: float = self.oversample_foreground_percent  # type: ignore[has-type]
        super()._set_batch_size_and_oversample()
        if self.is_ddp:
            self.oversample_foreground_percent, self.probabilistic_oversampling = share, True

    def training_source(self, data: Any, patch_size: Any, transforms: Any) -> BatchSource:
        """Labeled samples by nnU-Net's loader, unlabeled ones at random places, from one pool of workers."""
        labeled = self.labeled_source(data, self.labeled_per_batch, patch_size, transforms, LabeledCrops)
        unlabeled = self.unlabeled_dataset(data)
        self.print_to_log_file(
            f"each batch on this process: {self.labeled_per_batch} labeled samples of {len(data.identifiers)} cases "
            f"and {self.unlabeled_per_batch} unlabeled ones of {len(unlabeled.identifiers)}"
        )
        crops = RandomCrops(
            unlabeled,
            self.unlabeled_crops_per_batch(),
            patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            transforms=WeakAndStrongViews(transforms, self.strong_views),
        )
        return TwoStreams(labeled, crops)

    def unlabeled_crops_per_batch(self) -> int:
        """How many unlabeled patches a batch draws."""
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
            partially_labeled=labeled if scribbles else None,
            ignore_label=self.label_manager.ignore_label,
        )

    def _without_validated(self, extra: list[str], in_split: list[str]) -> list[str]:
        """The cases of imagesUn that are of no patient who is validated on."""
        train = self.case_roles.cases["train"]
        val = [] if self.fold == "all" else self.case_roles.cases["val"]  # with all, nnU-Net validates on train
        roles = {"train": train, "val": val, "unlabeled": in_split, UNLABELED: extra}
        mend = f"Rename the case in {UNLABELED} or remove it."
        check_roles(f"{UNLABELED} and the split of fold {self.fold}", roles, str, mend)
        left_out = of_patients(extra, val, self.dataset_json.get("patient_pattern"))
        if left_out:
            self.print_to_log_file(
                f"left out of {UNLABELED}, because their patient is validated on in this fold: {', '.join(left_out)}"
            )
        return sorted({*extra} - {*left_out})

    def read_batch(self, batch: Mapping[str, Any]) -> SemiSupervisedBatch:
        """The batch on the device, its views apart."""
        image, target, truth = self._to_device(dict(batch))
        views = batch["views"].to(self.device, non_blocking=True).chunk(1 + self.strong_views, dim=1)
        keep = batch["learn_mask"].to(self.device, non_blocking=True)[:, 0] == 0
        return SemiSupervisedBatch(image, target, truth, views[0], views[1:], keep)

    # ---------------------------------------------------------------- training

    def batch_terms(self, batch: dict[str, Any]) -> list[Term]:
        """The method's terms on labeled and unlabeled samples."""
        return self.semi_supervised_terms(self.read_batch(batch))

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """Supervised terms on the labeled samples and `unsupervised_terms` on the weak views, from one forward."""
        outputs = self.network(torch.cat([batch.image, batch.weak]))
        count = len(batch.image)
        terms = self.supervised_terms(
            {name: slice_output(output, 0, count) for name, output in outputs.items()}, batch.target
        )
        return terms + self.unsupervised_terms({name: output.logits[count:] for name, output in outputs.items()}, batch)

    def unsupervised_terms(self, logits: dict[str, Tensor], batch: SemiSupervisedBatch) -> list[Term]:
        """What the students learn from the unlabeled samples; nothing in the base class.

        Args:
            logits: Of every student on the weak views, `(B_u, C, *S)`.
            batch: The samples.
        """
        return []

    def supervised_terms(
        self, outputs: Mapping[str, StudentOutput], target: Tensor | list[Tensor], *, share: float = 1.0
    ) -> list[Term]:
        """nnU-Net's loss of every learning student, with the weight of the settings times `share`."""
        weight = self.settings.supervised_weight * share
        return [
            Term(s.name, "supervised", weight, self.supervised(outputs[s.name], target))
            for s in self.settings.students
            if not s.frozen
        ]

    @torch.no_grad()
    def predict_without_perturbation(self, image: Tensor, **options: Any) -> dict[str, Tensor]:
        """Logits of the students in evaluation mode: no dropout, no gradient, no statistics updated."""
        was_training = self.group.training
        self.group.eval()
        try:
            return {name: output.logits for name, output in self.group(image, **options).items()}
        finally:
            self.group.train(was_training)

    def ramp_over(self, share: float, *, steps: int = 0) -> float:
        """Factor that rises over a share of the run, at this iteration; see `schedules.sigmoid_ramp`."""
        total = self.settings.epochs * self.settings.iterations_per_epoch
        return sigmoid_ramp(self.iteration, round(share * total), steps=steps)

    # ---------------------------------------------------------------- curves

    def threshold(self) -> float | Tensor:
        """Confidence from which on a pseudo label is used at this iteration."""
        return 0.0

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the pseudo labels of the epoch, too, and warn if they name one class only."""
        super().on_train_epoch_end(train_outputs)
        for student, values in self.pseudo_label_curves.finish_epoch().items():
            for name, value in values.items():
                self.curves.log(f"pseudo_{name.replace(' ', '_')}/{student}", value, self.current_epoch)
            only = collapsed(values)
            if only is not None:
                self.print_to_log_file(
                    f"WARNING: in this epoch all used pseudo labels for {student} were {only}: the unlabeled images "
                    f"teach nothing else. Early in a training this is common; if it stays, train longer before they "
                    f"count (a slower ramp, a higher threshold) or with more labeled samples per batch."
                )

    def validation_counts(self, image: Tensor, outputs: dict[str, StudentOutput], truth: Truth) -> dict[str, Any]:
        """Also count how good pseudo labels would be on this labeled batch."""
        result = super().validation_counts(image, outputs, truth)
        true = true_masks(truth, self.label_manager.num_segmentation_heads)
        result["pseudo_labels"] = {}
        with self._autocast():
            labelers = self.pseudo_labelers(image, outputs)
        for name, output in labelers.items():
            _, confidence = pseudo_labels(output.logits, regions=truth.regions is not None)
            used = confidence >= self.threshold()
            result["pseudo_labels"][name] = overlap_counts(predicted_masks(output.logits, truth) & used, true & used)
        return result

    def pseudo_labelers(self, image: Tensor, outputs: dict[str, StudentOutput]) -> dict[str, StudentOutput]:
        """Whose predictions teach each student: the deployed networks' own, or another's.

        Args:
            image: `(B, C, *S)`.
            outputs: Of the deployed networks on it.
        """
        return outputs

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the Dice of the pseudo labels that pass the threshold."""
        super().on_validation_epoch_end(val_outputs)
        outputs = [output for rank in gather_objects(val_outputs) for output in rank]
        for name in outputs[0]["pseudo_labels"]:
            per_class = dice(sum(o["pseudo_labels"][name] for o in outputs))
            value = float(np.nanmean(per_class)) if np.isfinite(per_class).any() else float("nan")
            self.curves.log(f"pseudo_quality/{name}", value, self.current_epoch)


def slice_output(output: StudentOutput, start: int, stop: int) -> StudentOutput:
    """The samples `start` to `stop` of a student's output, without its feature maps."""
    auxiliary = tuple(logits[start:stop] for logits in output.auxiliary)
    return StudentOutput(output.logits[start:stop], None, None, auxiliary)
