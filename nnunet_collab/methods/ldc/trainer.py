"""LDC: a teacher to agree with, sizes to keep within bounds, and boundaries to tell apart.

Source: Zheng et al., "Lagrange Duality and Compound Multi-Attention Transformer for Semi-Supervised Medical Image
Segmentation", and its released code, which does not compute what the paper says. `losses.duality` says what is built
instead, `methods.ldc_settings` how to have the paper's equation 2 or the released code. The student minimizes

    supervised(x_l, y) + mean (SDM(x_l) - SDM(y))^2            labeled images
      + consistency(student(strong x_u), teacher(weak x_u))    unlabeled ones
      + constraints + contrast(SDM of student, SDM of teacher)

while the multipliers of the constraints ascend after each of its steps. They are a training device and certify
nothing: a network's loss is not convex, so duality is weak.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nnunet_collab.core.distributed import all_reduce_sum
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import StudentOutput, Term, Truth
from nnunet_collab.data.loaders import BatchSource
from nnunet_collab.data.two_streams import CENTERED
from nnunet_collab.losses.boundary_contrast import boundary_contrast, diagonal_contrast, distance_error
from nnunet_collab.losses.duality import class_fractions, teacher_target
from nnunet_collab.methods.ldc.checks import (
    check_crops_at_random_places,
    check_every_class_is_labeled,
    check_no_ignore_label,
    check_pairs,
)
from nnunet_collab.methods.ldc.constraints import Constraints
from nnunet_collab.methods.ldc.distance_head import DistanceHead, SliceProjection
from nnunet_collab.methods.ldc.objective import objective
from nnunet_collab.methods.ldc.settings import LDCSettings
from nnunet_collab.methods.ldc.signed_distance import KEY, WithSignedDistances, class_masks, signed_distances
from nnunet_collab.training.ema_trainer import TeacherTrainer
from nnunet_collab.training.metrics import true_masks
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch
from nnunet_collab.training.student_outputs import split_output


class LDCTrainer(TeacherTrainer):
    """One student with its teacher; see the module's docstring."""

    settings: ClassVar[LDCSettings] = LDCSettings()
    strong_views: ClassVar[int] = 1
    feature_levels: ClassVar[tuple[str, ...]] = ("decoder",)

    def initialize(self) -> None:
        """Build everything, and the constraints.

        Raises:
            CollabError: If weights, contrast or sizes do not fit the dataset or the batch.
        """
        s = self.settings
        self.regions = bool(self.label_manager.has_regions)
        self.recipe = s.recipe(regions=self.regions)
        self.official = s.formulation == "official"
        if self.official:
            self.enable_deep_supervision = False  # its loss has one resolution
        self.first = 0 if self.regions else 1  # channel of the foreground
        classes = int(self.label_manager.num_segmentation_heads) - self.first
        self.class_weights = torch.tensor(s.dice_weights(classes), device=self.device)
        self.learns_distances = s.distance_weight > 0 and not self.official
        self.contrasts_slices = self.recipe.contrast == "slices" and self.recipe.contrast_weight > 0
        super().initialize()
        self.constraints = Constraints(s, self.recipe, classes, self.first, self.device)
        if self.recipe.contrast == "official_diagonal":
            check_pairs(self.labeled_per_batch, self.unlabeled_per_batch)
        if self.recipe.constraint == "size_bands" and s.size_source == "labeled":
            check_no_ignore_label(self.label_manager)
            if not self.official:  # there the truth of the same crops is compared
                self._check_crops_at_random_places()
        if self.recipe.constraint == "global_mean" and self.recipe.activation == "softmax":
            self.print_to_log_file(
                "WARNING: with softmax the mean over all classes is 1 / C whatever is predicted: the constraint "
                "'global_mean' does nothing. Set activation to 'sigmoid', or constraint to 'size_bands'."
            )

    def add_heads(self) -> None:
        """Add the heads of signed distance maps."""
        if not (self.contrasts_slices or self.learns_distances):
            return
        (student,) = self.group
        patch = tuple(self.configuration_manager.patch_size)
        features = student.probe(torch.zeros(1, self.num_input_channels, *patch, device=self.device)).decoder
        if features is None:
            raise CollabError(
                f"student {student.name!r}: signed distance maps come from the last features of the decoder, and "
                f"{type(student.network).__name__} names none. Set decoder_tap, or distance_weight to 0 and contrast "
                f"to 'off'."
            )
        maps, size = len(self.class_weights), tuple(features.shape[2:])
        student.heads["distance"] = DistanceHead(len(patch), features.shape[1], maps).to(self.device)
        if self.contrasts_slices:
            # Slices are cut along the axis of the thickest spacing; an image is one slice.
            axis = int(np.argmax(self.configuration_manager.spacing)) if len(patch) == 3 else None
            self.slices = 1 if axis is None else size[axis]
            student.heads["projection"] = SliceProjection(maps, axis, size).to(self.device)

    def _check_crops_at_random_places(self) -> None:
        share = 1 - float(self.oversample_foreground_percent)
        at_random = share if self.probabilistic_oversampling else round(self.labeled_per_batch * share)
        everywhere = all_reduce_sum(torch.tensor(float(at_random), device=self.device))
        check_crops_at_random_places(float(everywhere), self.labeled_per_batch)

    def _measures_sizes(self) -> bool:
        wanted = self.recipe.constraint == "size_bands" and self.settings.size_source == "labeled"
        return wanted and not self.official  # there the truth of the same crops is compared

    # ---------------------------------------------------------------- data

    def training_source(self, data: Any, patch_size: Any, transforms: Any) -> BatchSource:
        """Signed distance maps of the truth, too, if they are learned.

        Raises:
            CollabError: If sizes are wanted of a class that no labeled case has.
        """
        if self._measures_sizes():
            wanted = self.label_manager.foreground_regions if self.regions else self.label_manager.foreground_labels
            check_every_class_is_labeled(data, wanted)
        source = super().training_source(data, patch_size, transforms)
        in_loader = self.learns_distances and self.device.type != "cuda"
        return self.with_signed_distances(source) if in_loader else source

    def with_signed_distances(self, source: BatchSource) -> WithSignedDistances:
        """The source, its batches completed by the maps of this dataset's classes or regions."""
        return WithSignedDistances(
            source,
            self.configuration_manager.spacing,
            classes=[] if self.regions else self.label_manager.foreground_labels,
            regions=len(self.class_weights) if self.regions else 0,
        )

    # ---------------------------------------------------------------- terms

    def term_weights(self) -> dict[str, float]:
        """Of the formulation's parts; consistency and contrast rise over `ramp_up`."""
        s, ramp = self.settings, self.ramp_over(self.recipe.ramp_up)
        return {
            "consistency": 0.0 if self.official else ramp * s.consistency_weight,
            "constraints": s.constraint_weight if self.constraints.multipliers.names else 0.0,
            "distance": s.distance_weight if self.learns_distances else 0.0,
            "contrast": 0.0 if self.recipe.contrast == "off" else ramp * self.recipe.contrast_weight,
        }

    def labeled_terms(self, batch: dict[str, Any]) -> list[Term]:
        """nnU-Net's loss, or the released code's own."""
        if not self.official:
            return super().labeled_terms(batch)
        image, _, truth = self._to_device(batch)
        name = self.settings.students[0].name
        logits = self.network(image)[name].logits
        return [Term(name, "supervised", 1.0, self._objective(logits, self._target(truth, logits), truth.keep))]

    def all_terms(self, batch: dict[str, Any]) -> list[Term]:
        """All terms; if signed distance maps are learned, `batch` has those of its labeled samples."""
        ours = self.read_batch(batch)
        if self.official:
            return self._official_terms(ours)
        distances = self._signed_distances(batch, ours.target) if self.learns_distances else None
        return self._terms(ours, distances, batch[CENTERED].to(self.device, non_blocking=True))

    def _signed_distances(self, batch: dict[str, Any], target: Tensor | list[Tensor]) -> Tensor:
        """The loader's maps, or, on a GPU, made here: there they cost next to nothing, in the loader as much again."""
        if KEY in batch:
            maps: Tensor = batch[KEY].to(self.device, non_blocking=True)
            return maps
        labels = [] if self.regions else self.label_manager.foreground_labels
        masks = class_masks(target, labels, len(self.class_weights))
        return signed_distances(masks, self.configuration_manager.spacing)

    def threshold(self) -> float:
        """Constant."""
        return self.settings.threshold

    def _terms(self, batch: SemiSupervisedBatch, distances: Tensor | None, centered: Tensor) -> list[Term]:
        """Those of `sound` and `paper_eq2`."""
        s, recipe, weights = self.settings, self.recipe, self.weights()
        name, count = s.students[0].name, len(batch.image)
        output: StudentOutput = self.network(torch.cat([batch.image, batch.strong[0]]))[name]
        teacher = self.teacher(batch.weak)[name]
        self.pseudo_label_curves.add(name, teacher.logits, batch.keep, s.threshold)
        labeled, unlabeled = split_output(output, [count, len(batch.weak)])
        terms = self.supervised_terms({name: labeled}, batch.target)
        if "consistency" in weights:
            target, used = teacher_target(
                teacher.logits, activation=recipe.activation, hard=s.hard_target, threshold=s.threshold
            )
            value = self.through_heads(self._objective, unlabeled, target, batch.keep, used)
            terms.append(Term(name, "consistency", weights["consistency"], value))
        if self._measures_sizes():
            self.constraints.measure_sizes(true_masks(batch.truth, output.logits.shape[1]), ~centered)
        sizes = self.constraints.sizes.value
        if s.size_source == "teacher":
            with torch.no_grad():
                sizes = self.constraints.fractions(teacher.logits)
        terms += self._constraint_terms(name, unlabeled.logits, sizes, labeled.logits, batch.truth)
        if "distance" in self.group[name].heads:
            own = self.group[name].heads["distance"](output.decoder)
            if distances is not None and "distance" in weights:
                error = distance_error(own[:count], distances, batch.truth.keep)
                terms.append(Term(name, "distance", weights["distance"], error))
            if self.contrasts_slices:
                loss = self._slice_contrast(name, own[count:], teacher)
                terms.append(Term(name, "contrast", weights["contrast"], loss))
        if recipe.contrast == "official_diagonal" and "contrast" in weights:
            loss = diagonal_contrast(labeled.logits, unlabeled.logits, temperature=s.temperature)
            terms.append(Term(name, "contrast", weights["contrast"], loss))
        return terms

    def _official_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """Those of the released code."""
        s, weights = self.settings, self.weights()
        name, truth = s.students[0].name, batch.truth
        logits = self.network(batch.image)[name].logits
        loss = self._objective(logits, self._target(truth, logits), truth.keep)
        terms = [Term(name, "supervised", 1.0, loss)]
        sizes = class_fractions(true_masks(truth, logits.shape[1]).float())
        terms += self._constraint_terms(name, logits, sizes, logits, truth)
        if "contrast" in weights:
            with torch.no_grad():
                unlabeled = self.group(batch.weak)[name].logits
            contrast = diagonal_contrast(logits, unlabeled, temperature=s.temperature)
            terms.append(Term(name, "contrast", weights["contrast"], contrast))
        return terms

    def _objective(self, logits: Tensor, target: Tensor, keep: Tensor, used: Tensor | None = None) -> Tensor:
        return objective(self.settings, self.recipe, self.class_weights)(logits, target, keep, used=used)

    def _constraint_terms(self, name: str, logits: Tensor, sizes: Tensor, labeled: Tensor, truth: Truth) -> list[Term]:
        weight = self.weights().get("constraints")
        if weight is None:
            return []
        value = self.constraints.value(
            logits,
            sizes=sizes,
            labeled=(labeled, self._target(truth, labeled), truth.keep),
            weights=[p for p in self.group[name].network.parameters() if p.requires_grad],
            ramp=self.ramp_over(self.recipe.ramp_up),
        )
        return [Term(name, "constraints", weight, value)]

    def _target(self, truth: Truth, logits: Tensor) -> Tensor:
        """The truth as `(B, C, *S)` of 0 and 1, background included if it has a channel."""
        masks = true_masks(truth, logits.shape[1])
        return (masks if self.regions else torch.cat([~masks.any(dim=1, keepdim=True), masks], dim=1)).float()

    def _slice_contrast(self, name: str, own: Tensor, teacher: StudentOutput) -> Tensor:
        heads = self.group[name].heads
        with torch.no_grad():
            theirs = self.teacher.group[name].heads
            fixed = theirs["projection"](theirs["distance"](teacher.decoder))
        s = self.settings
        return boundary_contrast(
            heads["projection"](own), fixed, slices=self.slices, gap=s.slice_gap, temperature=s.temperature
        )

    # ---------------------------------------------------------------- multipliers

    def must_be_finite(self) -> dict[str, Tensor]:
        """The residuals, too, which the multipliers follow."""
        residuals = self.constraints.residuals
        return {**super().must_be_finite(), **({} if residuals is None else {"the residuals": residuals})}

    def after_step(self) -> None:
        """The multipliers' step, too."""
        super().after_step()
        self.constraints.after_step()

    def on_train_epoch_start(self) -> None:
        """As the released code, forget the multipliers if the settings say so."""
        super().on_train_epoch_start()
        if self.recipe.reset_each_epoch:
            self.constraints.multipliers.reset()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log multipliers, distances from the KKT conditions, and sizes."""
        super().on_train_epoch_end(train_outputs)
        self.curves.log_variables(self.constraints.curves(), self.current_epoch)

    def method_state(self) -> dict[str, Any]:
        """Multipliers and running means, too."""
        return {**super().method_state(), "constraints": self.constraints.state_dict()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        super().load_method_state(state)
        self.constraints.load_state_dict(state["constraints"])
