"""FixMatch and UniMatch: confident pseudo labels of a weak view teach strong views, and a view of perturbed features.

Sources: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence" (NeurIPS 2020);
Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation" (UniMatch, CVPR 2023),
with CutMix and the constants of its published code for medical images. With m = argmax p_w where max p_w >= tau,

    FixMatch:  (L_sup + L(p_s, m)) / 2
    UniMatch:  (L_sup + [L(p_s1, m) + L(p_s2, m)] / 4 + L(p_fp, m) / 2) / 2

p_s: strong views, CutMix between samples of the batch; p_fp: weak view, half of the channels dropped between encoder
and decoder. L is the Dice loss of all classes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nnunet_collab.core.settings import refuse_unused, setting
from nnunet_collab.core.types import Term
from nnunet_collab.losses.pseudo_labels import Criterion, pseudo_label_loss
from nnunet_collab.networks.perturbation import PerturbedPass
from nnunet_collab.training.mixing import MixingSettings, MixingTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch, slice_output
from nnunet_collab.training.settings import CNN, StudentSettings


class FixMatchSettings(MixingSettings):
    """Settings of both methods; where UniMatch differs, its trainer says so."""

    students: tuple[StudentSettings, ...] = (CNN,)
    tau: float = setting(0.95, "Confidence from which on a pseudo label is used.", gt=0, lt=1, source="both papers")
    criterion: Criterion = setting(
        "dice",
        "Distance from the pseudo label. FixMatch, which classifies, has ce; UniMatch's code for medical images Dice.",
        source="UniMatch's code",
    )
    strong_weight: float = setting(1.0, "Sum of the weights of all strong views.", ge=0, source="UniMatch's code")
    feature_weight: float = setting(0.0, "Weight of the view with dropped features. 0: there is none.", ge=0)
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


class FixMatchTrainer(MixingTrainer):
    """One strong view, taught by the student's own prediction of the weak view."""

    settings: ClassVar[FixMatchSettings] = FixMatchSettings()
    strong_views: ClassVar[int] = 1

    def add_heads(self) -> None:
        """Refuse a network in which features cannot be perturbed, if they are to be."""
        for student in self.group:
            if self.settings.feature_weight:
                student.require_encoder()

    def threshold(self) -> float:
        """Constant."""
        return self.settings.tau

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """All terms, from one forward; the weak images are part of it if features are dropped."""
        s = self.settings
        own, second = self.divide(batch)
        mixes = [self.draw_cutmix(own) for _ in own.strong]
        strong = [
            mix(view, second and second.strong[i]) for i, (mix, view) in enumerate(zip(mixes, own.strong, strict=True))
        ]
        sizes = [len(own.image), *[len(own.weak)] * len(strong)]
        images, perturbed_passes = [own.image, *strong], []
        if s.feature_weight:
            start = sum(sizes)
            images.append(own.weak)
            perturbed_passes.append(PerturbedPass(start, start + len(own.weak), s.feature_drop))
            sizes += [len(own.weak)] * 2
        outputs = self.network(torch.cat(images), perturbed_passes)
        # The weak views are in the batch already if features are dropped, unless the network drops some by itself.
        alone = not s.feature_weight or self.has_dropout
        clean = self.predict_without_perturbation(own.weak) if alone else {}
        filling = {} if second is None else self.predict_without_perturbation(second.weak)
        terms = self.supervised_terms(
            {name: slice_output(output, 0, sizes[0]) for name, output in outputs.items()}, own.target, share=0.5
        )
        for name in (student.name for student in s.students if not student.frozen):
            _, *logits = torch.split(outputs[name].logits, sizes)
            weak = clean[name] if alone else logits[-2].detach()
            self.pseudo_label_curves.add(name, weak, own.keep, s.tau)
            losses = [
                self._distance(student, mix(weak, filling.get(name)), mix(own.keep, second and second.keep))
                for student, mix in zip(logits, mixes, strict=False)
            ]
            terms.append(Term(name, "strong", 0.5 * s.strong_weight * self.ramp(), torch.stack(losses).mean()))
            if s.feature_weight:
                terms.append(
                    Term(
                        name,
                        "feature",
                        0.5 * s.feature_weight * self.ramp(),
                        self._distance(logits[-1], weak, own.keep),
                    )
                )
        return terms

    def _distance(self, student: Tensor, teacher: Tensor, keep: Tensor) -> Tensor:
        s = self.settings
        return pseudo_label_loss(
            student, teacher, keep, regions=self.label_manager.has_regions, criterion=s.criterion, threshold=s.tau
        )


class UniMatchTrainer(FixMatchTrainer):
    """Two strong views and one of dropped features."""

    settings: ClassVar[FixMatchSettings] = FixMatchSettings(strong_weight=0.5, feature_weight=0.5)
    strong_views: ClassVar[int] = 2
