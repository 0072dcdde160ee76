"""Self-training in one run: hard labels of a weak view teach a strong view through nnU-Net's whole loss.

    L = L_sup + w L(student(strong view), argmax teacher(weak view))

L is nnU-Net's Dice + cross-entropy at every output of deep supervision, for labeled and pseudo-labeled images alike.
Until `start` the students learn from labels alone, so that pseudo labels are those of a network that knows something.

Source: nnFilterMatch (released code, https://github.com/Ordi117/nnFilterMatch), which gained most of all published
methods on top of nnU-Net with few labels: weak view by nnU-Net's augmentation, strong view by quarter turns and flips,
no threshold, no ramp, no averaged teacher. There labeled and pseudo-labeled images are one batch of one loss, in which
each half has the weight 1/2, and every output is taught the labels of the same output.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nnunet_collab.core.distributed import global_share
from nnunet_collab.core.settings import setting
from nnunet_collab.core.types import StudentOutput, Term
from nnunet_collab.data.views import WeakAndStrongViews
from nnunet_collab.training.case_dropping import CaseDroppingSettings, CaseDroppingTrainer
from nnunet_collab.training.hard_labels import HardLabelTrainer
from nnunet_collab.training.self_taught import SelfTaughtSettings, SelfTaughtTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch
from nnunet_collab.training.settings import CNN, StudentSettings
from nnunet_collab.training.student_outputs import split_output
from nnunet_collab.training.symmetries import draw_symmetry


class SelfTrainingSettings(SelfTaughtSettings, CaseDroppingSettings):
    """Settings of self-training."""

    students: tuple[StudentSettings, ...] = (CNN,)
    start: float = setting(0.1, source="ours; nnFilterMatch: 20 of 300 epochs")
    teacher: Literal["student", "average"] = setting(
        "average", "What makes the pseudo labels: the student itself, as in nnFilterMatch, or its average."
    )
    unlabeled_weight: float = setting(1.0, "w, weight of the pseudo-labeled images.", ge=0, source="nnFilterMatch")
    as_one_batch: bool = setting(
        False,
        "Whether the weights of labeled and pseudo-labeled images are divided by 1 + w after start, so that they add "
        "up to 1, as where nnU-Net's loss takes them as one batch.",
        source="nnFilterMatch: true",
    )
    threshold: float = setting(
        0.0, "Lowest confidence of a pseudo label that is used. 0: all are.", ge=0, lt=1, source="nnFilterMatch"
    )
    weigh_dice_by_share: bool = setting(
        True,
        "Whether, with a threshold, the loss on pseudo labels is multiplied by the share of the voxels that are "
        "confident, so that a few of them do not push as strongly as a whole patch.",
    )
    strong_view: Literal["intensities", "turns", "both"] = setting(
        "intensities",
        "Strong changes of intensities; or quarter turns and flips, where the weak view has nnU-Net's whole "
        "augmentation; or both.",
        source="ours; nnFilterMatch: turns",
    )


class SelfTrainingTrainer(SelfTaughtTrainer, HardLabelTrainer, CaseDroppingTrainer):
    """One or more students, each taught by its own hard labels."""

    settings: ClassVar[SelfTrainingSettings] = SelfTrainingSettings()
    strong_views: ClassVar[int] = 1

    def initialize(self) -> None:
        """Build everything; turned views are made in the step and need no view of the loader."""
        super().initialize()
        if self.settings.strong_view == "turns":
            self.strong_views = 0  # type: ignore[misc]

    def unlabeled_views(self, planned: Any) -> WeakAndStrongViews:
        """With turns alone, nnU-Net's whole augmentation is the weak view."""
        whole = self.settings.strong_view == "turns"
        return WeakAndStrongViews(planned, self.strong_views, planned_intensities=whole)

    def threshold(self) -> float:
        """Constant."""
        return self.settings.threshold

    def term_weights(self) -> dict[str, float]:
        """The weight w."""
        return {"unlabeled": self.ramp() * self.settings.unlabeled_weight}

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """Both terms, from one forward pass of labeled images and strong views."""
        weight = self.weights()["unlabeled"]
        total = 1 + weight if self.settings.as_one_batch else 1.0
        own, second = self.divide(batch)
        turned = draw_symmetry(own.weak.shape[2:]) if self.settings.strong_view != "intensities" else _as_it_is
        mix = self.draw_cutmix(own)

        def changed(tensor: Tensor, further: Tensor | None) -> Tensor:
            return mix(turned(tensor), None if further is None else turned(further))

        strong = changed(_student_view(own), second and _student_view(second))
        keep = changed(own.keep, second and second.keep)
        outputs = self.network(torch.cat([own.image, strong]))
        clean = self.teaching_logits(own.weak)
        filling = {} if second is None else self.teaching_logits(second.weak)
        views = {name: split_output(output, [len(own.image), len(strong)]) for name, output in outputs.items()}
        labeled = self.supervised_terms({name: parts[0] for name, parts in views.items()}, own.target)
        terms = [term._replace(weight=term.weight / total) for term in labeled]
        for name in (student.name for student in self.settings.students if not student.frozen):
            self.pseudo_label_curves.add(name, clean[name], own.keep, self.settings.threshold)
            self.note_certainty(clean[name], own.keep)
            teacher = changed(clean[name], filling.get(name))
            terms.append(Term(name, "unlabeled", weight / total, self._loss(views[name][1], teacher, keep)))
        return terms

    def _loss(self, student: StudentOutput, teacher: Tensor, keep: Tensor) -> Tensor:
        truth = self.pseudo_truth(teacher, keep, self.settings.threshold)
        loss = self.hard_label_loss(student, truth)
        if self.settings.threshold > 0 and self.settings.weigh_dice_by_share:
            loss = loss * global_share(truth.keep.sum(), keep.sum())
        return loss


def _student_view(batch: SemiSupervisedBatch) -> Tensor:
    """The strong view of the loader, or, where it makes none, the weak one that is turned."""
    return batch.strong[0] if batch.strong else batch.weak


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
