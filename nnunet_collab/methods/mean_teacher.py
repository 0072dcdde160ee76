"""Mean Teacher and its uncertainty-aware form: a student, and a teacher that averages its weights.

Sources: Tarvainen and Valpola, "Mean teachers are better role models" (NeurIPS 2017); Yu et al., "Uncertainty-aware
Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation" (MICCAI 2019); constants as in the code base of
Cross Teaching, which both methods share there. On unlabeled images the student minimizes

    (CE + Dice) / 2 on labeled images  +  w(t) mean (p_student - p_teacher)^2 on unlabeled ones,

where the teacher sees the image with noise of its own. UA-MT counts only voxels where the entropy of the teacher's
mean prediction over eight noisy passes is low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_collab.core.settings import require
from nnunet_collab.core.types import Term
from nnunet_collab.losses.consistency import MeanProbability, squared_difference
from nnunet_collab.training.ema_trainer import TeacherSettings, TeacherTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch
from nnunet_collab.training.settings import CNN, StudentSettings


@dataclass(frozen=True)
class MeanTeacherSettings(TeacherSettings):
    """Settings of Mean Teacher."""

    students: tuple[StudentSettings, ...] = (CNN,)
    consistency_weight: float = 0.1  # w at the end of its ramp
    ramp_up: float = 1.0  # share of the run over which w rises; 0: no ramp
    # Standard deviation of the teacher's input noise, cut off at twice that; intensities have about 1.
    noise: float = 0.1

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        require(self.consistency_weight >= 0, "consistency_weight", "must be >= 0", self.consistency_weight)
        require(0 <= self.ramp_up <= 1, "ramp_up", "must be a share of the run, in [0, 1]", self.ramp_up)
        require(self.noise >= 0, "noise", "must be >= 0", self.noise)


@dataclass(frozen=True)
class UAMTSettings(MeanTeacherSettings):
    """Settings of UA-MT."""

    mc_passes: int = 8  # noisy passes of the teacher
    # Threshold of the entropy at the start, as a share of the largest possible; it rises to 1 over the whole run.
    entropy_threshold_start: float = 0.75

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        require(self.mc_passes >= 1, "mc_passes", "must be >= 1", self.mc_passes)
        require(
            0 < self.entropy_threshold_start <= 1,
            "entropy_threshold_start",
            "must be in (0, 1]",
            self.entropy_threshold_start,
        )


class MeanTeacherTrainer(TeacherTrainer):
    """One student or several, each with its average as teacher."""

    settings: ClassVar[MeanTeacherSettings] = MeanTeacherSettings()

    def unsupervised_terms(self, logits: dict[str, Tensor], batch: SemiSupervisedBatch) -> list[Term]:
        """Each student's consistency with its teacher."""
        s = self.settings
        ramp = self.ramp_over(s.ramp_up, steps=200)
        regions = self.label_manager.has_regions
        teacher = {name: output.logits for name, output in self.teacher(self._with_noise(batch.weak)).items()}
        certain = self._certain_voxels(batch.weak)
        terms = []
        for name in logits:
            loss = squared_difference(logits[name], teacher[name], batch.keep, regions=regions, used=certain.get(name))
            terms.append(Term(name, "consistency", s.consistency_weight * ramp, loss))
            self.pseudo_label_curves.add(name, teacher[name], batch.keep, 0.0)
        return terms

    def _with_noise(self, image: Tensor) -> Tensor:
        noise = self.settings.noise
        return image + torch.clamp(torch.randn_like(image) * noise, -2 * noise, 2 * noise)

    def _certain_voxels(self, image: Tensor) -> dict[str, Tensor]:
        """`(B_u, P, *S)` bool by student; without an entry all voxels count."""
        return {}


class UAMTTrainer(MeanTeacherTrainer):
    """Uncertainty-aware Mean Teacher."""

    settings: ClassVar[UAMTSettings] = UAMTSettings()

    def _certain_voxels(self, image: Tensor) -> dict[str, Tensor]:
        s, regions = self.settings, self.label_manager.has_regions
        means = {name: MeanProbability(regions=regions) for name in self.teacher.group.students}
        for _ in range(s.mc_passes):
            self._add_noisy_pass(image, means)
        classes = 2 if regions else self.label_manager.num_segmentation_heads
        # The paper's (3/4 + 1/4 ramp) log 2 is this share of the largest entropy of its two classes; its ramp lasts as
        # long as the run, however fast the weight rises.
        threshold = (s.entropy_threshold_start + (1 - s.entropy_threshold_start) * self.ramp_over(1.0)) * math.log(
            classes
        )
        return {name: mean.entropy() < threshold for name, mean in means.items()}

    def _add_noisy_pass(self, image: Tensor, means: Mapping[str, MeanProbability]) -> None:
        """In a function of its own, so that nothing of a pass is left when the next one begins."""
        for name, output in self.teacher(self._with_noise(image)).items():
            means[name].add(output.logits)
