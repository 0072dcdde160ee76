"""What all methods share that learn from labeled and unlabeled images: their terms and their curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunet_collab.core.distributed import gather_objects
from nnunet_collab.core.types import StudentOutput, Term, Truth
from nnunet_collab.losses.pseudo_labels import pseudo_labels
from nnunet_collab.training.metrics import dice, overlap_counts, predicted_masks, true_masks
from nnunet_collab.training.pseudo_label_curves import PseudoLabelCurves, collapsed
from nnunet_collab.training.student_outputs import at_size, slice_output
from nnunet_collab.training.unlabeled_images import UnlabeledImagesTrainer


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


class SemiSupervisedTrainer(UnlabeledImagesTrainer):
    """Base of the methods with unlabeled images; they override `unsupervised_terms` or `semi_supervised_terms`."""

    def initialize(self) -> None:
        """Build everything, and the curves of pseudo labels."""
        super().initialize()
        self.pseudo_label_curves = PseudoLabelCurves(regions=self.label_manager.has_regions)

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

    def through_heads(
        self, loss: Callable[..., Tensor], student: StudentOutput, *maps: Tensor, labeled: bool = False
    ) -> Tensor:
        """A loss on pseudo labels at every output of a student, with nnU-Net's weights of deep supervision.

        What the student is compared with is sampled at the nearest voxels, as nnU-Net samples labels.

        Args:
            loss: Of a student's logits and the maps, all at one resolution.
            student: With auxiliary logits of falling resolution, or none.
            maps: `(B, C, *S)` logits or masks, or `(B, *S)` masks.
            labeled: Whether the maps are true labels, which teach all outputs whatever the settings say.
        """
        if not (student.auxiliary and (labeled or self.settings.unlabeled_deep_supervision)):
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
