"""Cross Teaching and cross pseudo supervision: two students, each taught by the other's hard pseudo labels.

Sources: Luo et al., "Semi-Supervised Medical Image Segmentation via Cross Teaching between CNN and Transformer" (MIDL
2022), with the loss of its published code; Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo
Supervision" (CVPR 2021), with the settings of the same code base. With h_i = argmax p_i on unlabeled images, as
constants, and w rising over the whole run, each student i with its peer j minimizes

    CE + Dice on labeled images  +  w(t) D(p_i, h_j) on unlabeled ones.

Both see the same weak view, in the same forward pass as the labeled images. The paper deploys the CNN; we publish both.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import setting
from nnunet_collab.core.types import StudentOutput, Term
from nnunet_collab.losses.pseudo_labels import Criterion, pseudo_label_loss
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch, SemiSupervisedTrainer
from nnunet_collab.training.semi_supervised_settings import SemiSupervisedSettings
from nnunet_collab.training.settings import CNN, StudentSettings


class CrossTeachingSettings(SemiSupervisedSettings):
    """Settings of both methods; the defaults are those of Cross Teaching."""

    pseudo_loss: Criterion = setting(
        "dice", "Distance from the peer's pseudo label: Dice of all classes alone; CPS has ce.", source="published code"
    )
    pseudo_weight: float = setting(
        0.2,
        "w, weight of the unlabeled images at the end of its ramp. Published: 0.1 beside (CE + Dice) / 2, which is 0.2 "
        "beside nnU-Net's CE + Dice.",
        ge=0,
        source="published code",
    )
    ramp_up: float = setting(
        1.0,
        "Time after start over which w rises. 0: no ramp.",
        unit="share of the run",
        ge=0,
        le=1,
        source="published code",
    )
    threshold: float = setting(
        0.0, "Pseudo labels with a lower confidence are not used. 0: all are used.", ge=0, lt=1, source="published code"
    )


class CrossTeachingTrainer(SemiSupervisedTrainer):
    """A CNN and a Transformer, see the module's docstring."""

    settings: ClassVar[CrossTeachingSettings] = CrossTeachingSettings()

    def check(self, settings: CrossTeachingSettings) -> None:  # type: ignore[override]
        """Refuse anything but two students."""
        if len(settings.students) != 2:
            raise CollabError(
                f"{self.trainer_name}: two students teach each other, so 'students' must have 2 entries; got "
                f"{len(settings.students)}. Name two students."
            )

    def threshold(self) -> float:
        """Constant."""
        return self.settings.threshold

    def pseudo_labelers(self, image: Tensor, outputs: dict[str, StudentOutput]) -> dict[str, StudentOutput]:
        """The peer."""
        first, second = self.settings.students
        pairs = ((first, second), (second, first))
        return {student.name: outputs[peer.name] for student, peer in pairs if not student.frozen}

    def term_weights(self) -> dict[str, float]:
        """w(t); in the published code it rises in 200 steps over 30 000 iterations."""
        return {"pseudo": self.settings.pseudo_weight * self.ramp_over(self.settings.ramp_up, steps=200)}

    def unsupervised_terms(self, outputs: dict[str, StudentOutput], batch: SemiSupervisedBatch) -> list[Term]:
        """Each student's distance from its peer's pseudo labels."""
        s = self.settings
        weight = self.weights()["pseudo"]
        loss = partial(
            pseudo_label_loss, regions=self.label_manager.has_regions, criterion=s.pseudo_loss, threshold=s.threshold
        )
        terms = []
        first, second = s.students
        for student, peer in ((first, second), (second, first)):
            if student.frozen:
                continue
            teacher = outputs[peer.name].logits.detach()
            value = self.through_heads(loss, outputs[student.name], teacher, batch.keep)
            terms.append(Term(student.name, "pseudo", weight, value))
            self.pseudo_label_curves.add(student.name, teacher, batch.keep, s.threshold)
        return terms


# Two networks of the same kind from different random weights.
CPS_STUDENTS: tuple[StudentSettings, ...] = (replace(CNN, name="CNN1"), replace(CNN, name="CNN2"))


class CPSTrainer(CrossTeachingTrainer):
    """Cross pseudo supervision: two networks of the same kind, cross-entropy on hard labels."""

    settings: ClassVar[CrossTeachingSettings] = CrossTeachingSettings(students=CPS_STUDENTS, pseudo_loss="ce")
