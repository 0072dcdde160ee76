"""Mean Teacher and its uncertainty-aware form: a student, and a teacher that averages its weights.

Sources: Tarvainen and Valpola, "Mean teachers are better role models" (NeurIPS 2017); Yu et al., "Uncertainty-aware
Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation" (MICCAI 2019); constants as in the code base of
Cross Teaching, which both methods share there. On unlabeled images the student minimizes

    CE + Dice on labeled images  +  w(t) mean (p_student - p_teacher)^2 on unlabeled ones,

where the teacher sees the image with separate noise. UA-MT counts only voxels where the entropy of the teacher's
mean prediction over eight noisy passes is low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_collab.core.settings import COUNT, setting
from nnunet_collab.core.types import StudentOutput, Term
from nnunet_collab.losses.consistency import MeanProbability, squared_difference
from nnunet_collab.training.ema_trainer import TeacherSettings, TeacherTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch
from nnunet_collab.training.settings import CNN, StudentSettings


class MeanTeacherSettings(TeacherSettings):
    """Settings of Mean Teacher."""

    students: tuple[StudentSettings, ...] = (CNN,)
    consistency_weight: float = setting(
        0.2,
        "w, weight of the consistency at the end of its ramp. Published: 0.1 beside (CE + Dice) / 2, which is 0.2 "
        "beside nnU-Net's CE + Dice.",
        ge=0,
        source="code of Cross Teaching",
    )
    ramp_up: float = setting(
        1.0,
        "Time after start over which w rises. 0: no ramp.",
        unit="share of the run",
        ge=0,
        le=1,
        source="code of Cross Teaching",
    )
    noise: float = setting(
        0.1,
        "Standard deviation of the teacher's input noise, clipped at twice that value. Intensities have about 1.",
        ge=0,
        source="code of Cross Teaching",
    )


class UAMTSettings(MeanTeacherSettings):
    """Settings of UA-MT."""

    mc_passes: int = setting(8, "Noisy passes of the teacher.", unit="passes", source="UA-MT", **COUNT)
    entropy_threshold_start: float = setting(
        0.75,
        "Entropy threshold at the start. It rises to 1 over the whole run.",
        unit="share of the largest possible entropy",
        gt=0,
        le=1,
        source="UA-MT",
    )


class MeanTeacherTrainer(TeacherTrainer):
    """One or more students, each with its average as teacher."""

    settings: ClassVar[MeanTeacherSettings] = MeanTeacherSettings()

    def term_weights(self) -> dict[str, float]:
        """w(t); in the published code it rises in 200 steps."""
        return {"consistency": self.settings.consistency_weight * self.ramp_over(self.settings.ramp_up, steps=200)}

    def unsupervised_terms(self, outputs: dict[str, StudentOutput], batch: SemiSupervisedBatch) -> list[Term]:
        """Each student's consistency with its teacher."""
        weight = self.weights()["consistency"]
        regions = self.label_manager.has_regions

        def loss(student: Tensor, teacher: Tensor, keep: Tensor, used: Tensor | None = None) -> Tensor:
            return squared_difference(student, teacher, keep, regions=regions, used=used)

        teacher = {name: output.logits for name, output in self.teacher(self._with_noise(batch.weak)).items()}
        certain = self._certain_voxels(batch.weak)
        terms = []
        for name, output in outputs.items():
            maps = [teacher[name], batch.keep, *([certain[name]] if name in certain else [])]
            terms.append(Term(name, "consistency", weight, self.through_heads(loss, output, *maps)))
            self.pseudo_label_curves.add(name, teacher[name], batch.keep, 0.0)
        return terms

    def _with_noise(self, image: Tensor) -> Tensor:
        noise = self.settings.noise
        return image + torch.clamp(torch.randn_like(image) * noise, -2 * noise, 2 * noise)

    def _certain_voxels(self, image: Tensor) -> dict[str, Tensor]:
        """Voxels that count, `(B_u, P, *S)` bool by student; all voxels for a student without an entry."""
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
        """A separate function, so that the memory of one pass is free before the next one starts."""
        for name, output in self.teacher(self._with_noise(image)).items():
            means[name].add(output.logits)
