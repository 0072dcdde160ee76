"""Common base of FixMatch, UniMatch and CrossMatch: a student that teaches itself.

Its own confident predictions on weak views, or those of its average, are the pseudo labels of strong views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from nnunet_collab.core.settings import refuse_unused, setting
from nnunet_collab.networks.perturbation import PerturbedPass
from nnunet_collab.training.ema_trainer import TeacherSettings, TeacherTrainer
from nnunet_collab.training.mixing import MixingSettings, MixingTrainer


class SelfTaughtSettings(MixingSettings, TeacherSettings):
    """Settings of every method whose student teaches itself."""

    teacher: Literal["student", "average"] = setting(
        "student", "What makes the pseudo labels: the student itself, as published, or its average."
    )
    weigh_dice_by_share: bool = setting(
        True,
        "Whether Dice on pseudo labels is multiplied by the share of the voxels that are confident. Published: no; "
        "then the first few confident voxels, all background, push as strongly as a whole patch.",
    )

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        if self.teacher == "student":
            refuse_unused(self, ("ema_decay", "deploy"), "with the teacher 'student'")


class SelfTaughtTrainer(MixingTrainer, TeacherTrainer):
    """Base of the three methods."""

    settings: ClassVar[SelfTaughtSettings] = SelfTaughtSettings()

    def averages(self, settings: SelfTaughtSettings) -> bool:  # type: ignore[override]
        """Whether the average is the teacher, as the settings say."""
        return settings.teacher == "average"

    def teaching_logits(self, image: Tensor, perturbed_passes: Sequence[PerturbedPass] = ()) -> dict[str, Tensor]:
        """Logits of the student or of its average, by student, without gradient and without the network's dropout."""
        if self.has_teacher:
            return {name: output.logits for name, output in self.teacher(image, perturbed_passes).items()}
        return self.predict_without_perturbation(image, perturbed_passes=perturbed_passes)
