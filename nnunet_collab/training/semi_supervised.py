"""What all methods share that learn from labeled and unlabeled images.

Each batch holds labeled samples, as nnU-Net makes them, and views of unlabeled ones. Unlabeled are

- the images of `imagesUn`, preprocessed by `nnunet_collab preprocess_unlabeled`,
- the cases that the split declares `unlabeled`; their labels are not opened,
- the voxels of the ignore label in the labeled cases, unless `unlabeled_voxels` is switched off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.core.distributed import gather_objects, world_size
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import RAW, SPLIT_FILE, UNLABELED
from nnunet_collab.core.settings import COUNT, setting
from nnunet_collab.core.types import StudentOutput, Term, Truth
from nnunet_collab.data.loaders import BatchSource
from nnunet_collab.data.locations import located_cases, locations_folder, read_record
from nnunet_collab.data.two_streams import LabeledCrops, RandomCrops, TwoStreams
from nnunet_collab.data.unlabeled_dataset import UnlabeledDataset, has_image
from nnunet_collab.data.unlabeled_preprocessing import unlabeled_cases, unlabeled_folder
from nnunet_collab.data.views import WeakAndStrongViews
from nnunet_collab.losses.pseudo_labels import pseudo_labels
from nnunet_collab.splits.few_labels import check_roles, of_patients
from nnunet_collab.training import preflight
from nnunet_collab.training.case_files import check_unlabeled_images
from nnunet_collab.training.case_roles import refuse_missing
from nnunet_collab.training.metrics import dice, overlap_counts, predicted_masks, true_masks
from nnunet_collab.training.pseudo_label_curves import PseudoLabelCurves, collapsed
from nnunet_collab.training.settings import CollaborativeSettings
from nnunet_collab.training.trainer import CollabTrainer


class SemiSupervisedSettings(CollaborativeSettings):
    """Of every method that learns from unlabeled images, too. Weights are relative to nnU-Net's whole loss, 1."""

    unlabeled_batch_size: int | None = setting(
        None,
        "Unlabeled samples per step, of all processes together, on top of nnU-Net's batch. null: as many as labeled "
        "ones. To train on labels alone, use SupervisedTrainer.",
        unit="samples",
        **COUNT,
    )
    loss_scale: float = setting(
        1.0,
        "Factor of the whole loss. Published programs weigh nnU-Net's loss with less than 1; presets repeat that.",
        gt=0,
    )
    centered_share: float = setting(
        1 / 3,
        "Unlabeled crops that are centered on predicted foreground, where nnunet_collab preprocess_unlabeled --locate "
        "has found it; all others lie at random places. 0: all do.",
        unit="share of the crops",
        ge=0,
        le=1,
        source="nnU-Net's share of labeled crops",
    )
    unlabeled_voxels: bool = setting(True, "Whether the voxels of the ignore label are unlabeled data, too.")
    unlabeled_deep_supervision: bool = setting(
        True,
        "Whether pseudo labels also teach the auxiliary outputs of lower resolution, with nnU-Net's weights, where a "
        "student has them.",
    )


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
    kept_passes: ClassVar[float] = 1.0  # of each unlabeled patch whose activations are kept for the gradient

    def initialize(self) -> None:
        """Build everything, and tell the unlabeled samples to the processes.

        Raises:
            CollabError: If a process would have no unlabeled sample.
        """
        super().initialize()
        self.labeled_per_batch = self.batch_size
        self.unlabeled_per_batch = self._unlabeled_on_this_process()
        self.pseudo_label_curves = PseudoLabelCurves(regions=self.label_manager.has_regions)

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
        return each + int(self.local_rank < rest)

    # ---------------------------------------------------------------- data

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
            transforms=WeakAndStrongViews(transforms, self.strong_views),
            centered_share=self.settings.centered_share if unlabeled.located else 0.0,
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
        """The folder with the places of predicted foreground of each case that has them."""
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

    def term_weights(self) -> dict[str, float]:
        """Weight of every term but the supervised ones at this iteration, by its name; none in the base class.

        Terms of weight 0 are not computed. Where all weights are 0, the unlabeled samples are not looked at, and the
        step is that of `SupervisedTrainer`.
        """
        return {}

    def weights(self) -> dict[str, float]:
        """The weights above 0."""
        started = self.iteration >= self.settings.start_iteration
        return {name: weight for name, weight in self.term_weights().items() if weight > 0} if started else {}

    def batch_terms(self, batch: dict[str, Any]) -> list[Term]:
        """The method's terms on labeled and unlabeled samples, scaled as a whole."""
        terms = self.all_terms(batch) if self.weights() else self.labeled_terms(batch)
        return [term._replace(weight=term.weight * self.settings.loss_scale) for term in terms]

    def all_terms(self, batch: dict[str, Any]) -> list[Term]:
        """Terms of the labeled and of the unlabeled samples."""
        return self.semi_supervised_terms(self.read_batch(batch))

    def labeled_terms(self, batch: dict[str, Any]) -> list[Term]:
        """Nothing but nnU-Net's loss of the labeled samples, with a forward of their own."""
        image, target, _ = self._to_device(batch)
        terms = self.supervised_terms(self.network(image), target)
        if self.is_ddp:  # which expects a gradient of every parameter, also of heads that nothing needs yet
            heads = [p.sum() for student in self.group for p in student.heads.parameters()]
            if heads:
                terms[0] = terms[0]._replace(value=terms[0].value + 0 * torch.stack(heads).sum())
        return terms

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """Supervised terms on the labeled samples and `unsupervised_terms` on the weak views, from one forward."""
        outputs = self.network(torch.cat([batch.image, batch.weak]))
        count = len(batch.image)
        labeled = {name: slice_output(output, 0, count) for name, output in outputs.items()}
        unlabeled = {name: slice_output(output, count, None) for name, output in outputs.items()}
        return self.supervised_terms(labeled, batch.target) + self.unsupervised_terms(unlabeled, batch)

    def unsupervised_terms(self, outputs: dict[str, StudentOutput], batch: SemiSupervisedBatch) -> list[Term]:
        """What the students learn from the unlabeled samples; nothing in the base class.

        Args:
            outputs: Of every student on the weak views.
            batch: The samples.
        """
        return []

    def supervised_terms(self, outputs: Mapping[str, StudentOutput], target: Tensor | list[Tensor]) -> list[Term]:
        """nnU-Net's loss of every learning student, with weight 1."""
        return [
            Term(s.name, "supervised", 1.0, self.supervised(outputs[s.name], target))
            for s in self.settings.students
            if not s.frozen
        ]

    def through_heads(self, loss: Callable[..., Tensor], student: StudentOutput, *maps: Tensor) -> Tensor:
        """A loss on pseudo labels at every output of a student, with nnU-Net's weights of deep supervision.

        What the student is compared with is sampled at the nearest voxels, as nnU-Net samples labels.

        Args:
            loss: Of a student's logits and the maps, all at one resolution.
            student: With auxiliary logits of falling resolution, or none.
            maps: `(B, C, *S)` logits or masks, or `(B, *S)` masks.
        """
        if not (self.settings.unlabeled_deep_supervision and student.auxiliary):
            return loss(student.logits, *maps)
        total = torch.zeros((), device=student.logits.device)
        factors: Sequence[float] = self.loss.weight_factors  # type: ignore[assignment]
        for weight, logits in zip(factors, (student.logits, *student.auxiliary), strict=True):
            if weight > 0:
                total = total + weight * loss(logits, *(at_size(m, logits.shape[2:]) for m in maps))
        return total

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
        """Factor that rises over a share of the run after `start`, at this iteration; see `CollaborativeSettings`."""
        return self.settings.ramp(self.iteration, share, steps=steps)

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


def slice_output(output: StudentOutput, start: int, stop: int | None) -> StudentOutput:
    """The samples `start` to `stop` of a student's output, without its feature maps."""
    auxiliary = tuple(logits[start:stop] for logits in output.auxiliary)
    return StudentOutput(output.logits[start:stop], None, None, auxiliary)


def split_output(output: StudentOutput, sizes: Sequence[int]) -> list[StudentOutput]:
    """The groups of samples of a student's output, one after the other, without their feature maps."""
    ends = list(accumulate(sizes))
    return [slice_output(output, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def at_size(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """`(B, C, *S)` or a mask `(B, *S)` sampled at the nearest voxels of a grid of another size."""
    if tuple(tensor.shape[-len(size) :]) == tuple(size):
        return tensor
    channels = tensor if tensor.ndim == len(size) + 2 else tensor.unsqueeze(1)
    values = channels if channels.is_floating_point() else channels.float()
    sampled = F.interpolate(values, size=tuple(size), mode="nearest-exact").to(tensor.dtype)
    return sampled if tensor.ndim == sampled.ndim else sampled[:, 0]
