"""FixMatch and UniMatch: confident pseudo labels of a weak view teach strong views, and a view of perturbed features.

Sources: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence" (NeurIPS 2020);
Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation" (UniMatch, CVPR 2023),
with CutMix and the constants of its published code for medical images. With m = argmax p_w where max p_w >= tau,

    FixMatch:  L_sup + L(p_s, m)
    UniMatch:  L_sup + [L(p_s1, m) + L(p_s2, m)] / 4 + L(p_fp, m) / 2

p_s: strong views, CutMix between samples of the batch; p_fp: weak view, half of the channels dropped between encoder
and decoder. L is the Dice loss of all classes, and L_sup nnU-Net's whole loss (the published code halves both, and has
(CE + Dice) / 2 as L_sup).
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_collab.core.settings import refuse_unused, setting
from nnunet_collab.core.types import StudentOutput, Term
from nnunet_collab.losses.pseudo_labels import Criterion, pseudo_label_loss
from nnunet_collab.networks.perturbation import OnlyTeaching, PerturbedPass
from nnunet_collab.training.self_taught import SelfTaughtSettings, SelfTaughtTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch
from nnunet_collab.training.settings import CNN, StudentSettings
from nnunet_collab.training.student_outputs import split_output


class FixMatchSettings(SelfTaughtSettings):
    """Settings of both methods; the trainer of UniMatch changes some defaults."""

    students: tuple[StudentSettings, ...] = (CNN,)
    tau: float = setting(0.95, "Lowest confidence of a pseudo label that is used.", gt=0, lt=1, source="both papers")
    criterion: Criterion = setting(
        "dice",
        "Distance from the pseudo label. FixMatch (classification) uses ce; UniMatch's code for medical images, Dice.",
        source="UniMatch's code",
    )
    strong_weight: float = setting(1.0, "Sum of the weights of all strong views.", ge=0, source="UniMatch's code")
    feature_weight: float = setting(0.0, "Weight of the view with dropped features. 0: no such view.", ge=0)
    feature_drop: float = setting(
        0.5, "Channels that are dropped between encoder and decoder.", unit="share", ge=0, lt=1, source="UniMatch"
    )

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        if not self.feature_weight:
            refuse_unused(self, ("feature_drop",), "with feature_weight 0")


class FixMatchTrainer(SelfTaughtTrainer):
    """One strong view, taught by the student's own prediction of the weak view."""

    settings: ClassVar[FixMatchSettings] = FixMatchSettings()
    strong_views: ClassVar[int] = 1

    def add_heads(self) -> None:
        """Refuse a network in which features cannot be perturbed, if the settings ask for it."""
        for student in self.group:
            if self.settings.feature_weight:
                student.require_encoder()

    def threshold(self) -> float:
        """Constant."""
        return self.settings.tau

    def term_weights(self) -> dict[str, float]:
        """Weights of all strong views together, and of the view with dropped features."""
        s, ramp = self.settings, self.ramp()
        return {"strong": ramp * s.strong_weight, "feature": ramp * s.feature_weight}

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """All terms, from one forward pass, which includes the weak images if features are dropped."""
        s, weights = self.settings, self.weights()
        own, second = self.divide(batch)
        mixes = [self.draw_cutmix(own) for _ in own.strong] if "strong" in weights else []
        strong = [
            mix(view, second and second.strong[i]) for i, (mix, view) in enumerate(zip(mixes, own.strong, strict=False))
        ]
        sizes = [len(own.image), *[len(own.weak)] * len(strong)]
        images, perturbed_passes, only_teaching = [own.image, *strong], [], None
        # The weak views are in the batch already if features are dropped; they teach by a pass of their own if the
        # teacher is the average, or if the network drops something by itself.
        alone = "feature" not in weights or self.has_dropout or self.has_teacher
        if "feature" in weights:
            start = sum(sizes)
            images.append(own.weak)
            perturbed_passes.append(PerturbedPass(start, start + len(own.weak), s.feature_drop))
            only_teaching = OnlyTeaching(start, start + len(own.weak), decoded=not alone)
            sizes.append(len(own.weak))
        outputs = self.network(torch.cat(images), perturbed_passes, only_teaching)
        clean = self.teaching_logits(own.weak) if alone else {}
        filling = {} if second is None else self.teaching_logits(second.weak)
        views = {name: split_output(output, sizes) for name, output in outputs.items()}
        terms = self.supervised_terms({name: parts[0] for name, parts in views.items()}, own.target)
        for name in (student.name for student in s.students if not student.frozen):
            parts = views[name][1:]
            weak = clean[name] if alone else outputs[name].teaching
            self.pseudo_label_curves.add(name, weak, own.keep, s.tau)
            if "strong" in weights:
                losses = [
                    self._distance(student, mix(weak, filling.get(name)), mix(own.keep, second and second.keep))
                    for student, mix in zip(parts, mixes, strict=False)
                ]
                terms.append(Term(name, "strong", weights["strong"], torch.stack(losses).mean()))
            if "feature" in weights:
                loss = self._distance(parts[-1], weak, own.keep)
                terms.append(Term(name, "feature", weights["feature"], loss))
        return terms

    def _distance(self, student: StudentOutput, teacher: Tensor, keep: Tensor) -> Tensor:
        s = self.settings
        loss = partial(
            pseudo_label_loss,
            regions=self.label_manager.has_regions,
            criterion=s.criterion,
            threshold=s.tau,
            by_share=s.weigh_dice_by_share,
        )
        return self.through_heads(loss, student, teacher, keep)


class UniMatchTrainer(FixMatchTrainer):
    """Two strong views, and one view with dropped features."""

    settings: ClassVar[FixMatchSettings] = FixMatchSettings(strong_weight=0.5, feature_weight=0.5)
    strong_views: ClassVar[int] = 2
    kept_passes: ClassVar[float] = 4.0  # two strong views, the weak view, and one more decoder pass of it
