"""Common base of the methods that teach hard labels through nnU-Net's whole loss: BCP and self-training."""

from __future__ import annotations

from torch import Tensor

from nnunet_collab.core.types import StudentOutput, Truth
from nnunet_collab.losses.hard_labels import HardLabelForm, hard_label_loss
from nnunet_collab.losses.pseudo_labels import pseudo_labels
from nnunet_collab.training.ema_trainer import TeacherTrainer


class HardLabelTrainer(TeacherTrainer):
    """Pseudo labels as truths, and nnU-Net's loss of them at every output."""

    def initialize(self) -> None:
        """Build everything, and note the form of nnU-Net's loss for this dataset."""
        super().initialize()
        self.form = HardLabelForm(
            batch_dice=self.configuration_manager.batch_dice,
            dice=self.settings.seg_loss == "dc_ce",
            sum_regions=self.label_manager.has_regions and self.label_manager.has_ignore_label,
        )

    def pseudo_truth(self, logits: Tensor, keep: Tensor, threshold: float = 0.0) -> Truth:
        """Hard labels of a prediction.

        Args:
            logits: `(B, C, *S)`.
            keep: Voxels that may count, `(B, *S)` bool.
            threshold: Voxels with a lower confidence do not count; of regions, those where any region is below.
        """
        regions = self.label_manager.has_regions
        labels, confidence = pseudo_labels(logits, regions=regions)
        if threshold > 0:
            keep = keep & (confidence >= threshold).all(dim=1)
        if regions:
            return Truth(labels[:, 0] * 0, keep, labels.bool())
        return Truth(labels[:, 0], keep)

    def hard_label_loss(self, student: StudentOutput, truth: Truth, *, labeled: bool = False) -> Tensor:
        """nnU-Net's loss of a student on hard labels of full resolution, at all of its outputs.

        Args:
            student: Its outputs.
            truth: As many samples.
            labeled: Whether it is the true labels.
        """

        def loss(logits: Tensor, *maps: Tensor) -> Tensor:
            return hard_label_loss(logits, Truth(*maps), self.form)

        maps = [truth.labels, truth.keep, *([] if truth.regions is None else [truth.regions])]
        return self.through_heads(loss, student, *maps, labeled=labeled)
