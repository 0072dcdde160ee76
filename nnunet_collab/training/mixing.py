"""Common base of the methods with CutMix: boxes are filled from the same batch or from a second batch."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

from nnunet_collab.core.settings import setting
from nnunet_collab.training.cutmix import CutMix
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch, SemiSupervisedTrainer
from nnunet_collab.training.semi_supervised_settings import SemiSupervisedSettings


class MixingSettings(SemiSupervisedSettings):
    """Settings of every method with CutMix."""

    cutmix_probability: float = setting(
        0.5, "Probability that a strong view of a sample gets a box. 0: no CutMix.", ge=0, le=1, source="UniMatch"
    )
    mixing: Literal["batch", "second_batch"] = setting(
        "batch",
        "What fills the box: another sample of the batch, whose pseudo label exists already; or, as published, a "
        "second batch of unlabeled images, which costs a pass without gradient.",
    )
    ramp_up: float = setting(
        0.0,
        "Time after start over which the weights of the unlabeled images rise. 0: none, as published for long runs. In "
        "a short run the first confident pseudo labels are all background and hold the network there.",
        unit="share of the run",
        ge=0,
        le=1,
    )


class MixingTrainer(SemiSupervisedTrainer):
    """Base of the methods with CutMix."""

    settings: ClassVar[MixingSettings] = MixingSettings()

    def initialize(self) -> None:
        """Build everything, and choose the source that fills the boxes."""
        super().initialize()
        alone = self.unlabeled_per_batch == 1
        self.mixes = self.settings.cutmix_probability > 0
        self.mixes_second_batch = self.mixes and (self.settings.mixing == "second_batch" or alone)
        if self.mixes_second_batch and self.settings.mixing == "batch":
            self.print_to_log_file("one unlabeled sample per batch: CutMix needs a second image for each")

    @cached_property
    def has_dropout(self) -> bool:
        """Whether a student has dropout of its own, so that pseudo labels need a separate pass."""
        return any(student.has_dropout for student in self.group)

    def ramp(self) -> float:
        """Factor of the weights of all terms on unlabeled images at this iteration."""
        return self.ramp_over(self.settings.ramp_up)

    def unlabeled_crops_per_batch(self) -> int:
        """Number of crops; twice as many with a second batch of images."""
        return self.unlabeled_per_batch * (2 if self.mixes_second_batch else 1)

    def divide(self, batch: SemiSupervisedBatch) -> tuple[SemiSupervisedBatch, SemiSupervisedBatch | None]:
        """The batch to learn from, and the second batch that fills the boxes, or None."""
        if not self.mixes_second_batch:
            return batch, None
        count = self.unlabeled_per_batch
        own, second = (
            batch._replace(weak=batch.weak[s], strong=tuple(view[s] for view in batch.strong), keep=batch.keep[s])
            for s in (slice(None, count), slice(count, None))
        )
        return own, second

    def draw_cutmix(self, batch: SemiSupervisedBatch) -> CutMix:
        """Boxes for one strong view of every unlabeled sample."""
        return CutMix(
            len(batch.weak),
            batch.weak.shape[2:],
            probability=self.settings.cutmix_probability,
            device=batch.weak.device,
            within_batch=not self.mixes_second_batch,
        )
