"""CrossMatch: one network, with perturbed input and features, learns from its own clean predictions.

Source: Zhao et al., "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with Perturbation Strategies and
Knowledge Distillation" (2024), and its published code. With p_i_j the prediction for the weak (i = w) or a strong view
(i = s1, s2) with no, weak or strong channel dropout (j = n, w, s), and D(p, m) the distance of p from
the pseudo label of prediction m, in voxels where m is confident,

    L_ip  = [D(p_s1_n, p_w_n) + D(p_s2_n, p_w_n)] / 2
    L_tkd = [D(p_w_w, p_w_n) + D(p_w_s, p_w_n) + D(p_s2_w, p_w_n) + D(p_s2_s, p_w_n)] / 4          equation 10
    L_dkd = [D(p_s2_w, p_w_w) + D(p_s2_s, p_w_s)] / 2                                              equation 11
    L_kd  = (1 - eta) L_tkd + eta L_dkd

CutMix is applied to strong views and to the predictions that teach them. p_w_w and p_w_s learn from p_w_n and are
teaching assistants, each with its own confidence. One encoder pass and one decoder pass serve all perturbed passes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.schedules import sigmoid_ramp
from nnunet_collab.core.settings import COUNT, refuse_unused, setting
from nnunet_collab.core.types import StudentOutput, Term
from nnunet_collab.losses.pseudo_labels import Criterion, pseudo_label_loss
from nnunet_collab.networks.perturbation import OnlyTeaching, PerturbAt, PerturbedPass
from nnunet_collab.training.self_taught import SelfTaughtSettings, SelfTaughtTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch
from nnunet_collab.training.settings import CNN, StudentSettings
from nnunet_collab.training.student_outputs import split_output


class CrossMatchSettings(SelfTaughtSettings):
    """Settings for all variants of the paper and of the two published programs."""

    students: tuple[StudentSettings, ...] = (CNN,)
    tau: float = setting(
        0.95, "Lowest confidence of a pseudo label that is used. 0.85 for LA.", gt=0, lt=1, source="paper, ACDC"
    )
    tau_schedule: Literal["constant", "la_code"] = setting(
        "constant",
        "The code for LA lets tau rise to 1 and multiplies by log 2, left over from UA-MT's entropy: 0.590 to 0.624 "
        "for 0.85.",
        source="paper",
    )
    tau_ramp_iterations: int = setting(
        17000, "Length of the rise of tau in la_code, for any length of the run.", unit="iterations",
        source="code for LA", **COUNT,
    )  # fmt: skip
    eta: float = setting(0.3, "Share of the teaching assistants in L_kd.", ge=0, le=1, source="paper")
    performance_gap: float = setting(
        0.5, "Dropout rates are 0.5 - gap / 2 and 0.5 + gap / 2. 0: both 0.5.", ge=0, lt=1, source="paper"
    )
    perturb: PerturbAt = setting(
        "all", "Features that are perturbed: all encoder outputs, or only the bottleneck, as in the paper's text.",
        source="published code",
    )  # fmt: skip
    # Equation 12: L = L_sup + L_ip + L_kd, with nnU-Net's whole loss as L_sup. The published programs use other
    # weights; the presets contain them.
    image_weight: float = setting(1.0, "Weight of L_ip.", ge=0, source="equation 12")
    distillation_weight: float = setting(1.0, "Weight of L_kd.", ge=0, source="equation 12")
    criterion: Criterion = setting("dice", "Distance D. LA: dice_foreground.", source="code for ACDC")
    temperature: float = setting(1.0, "Temperature of the criterion kl.", gt=0, source="equations 2 and 3")
    smooth: float = setting(1e-4, "Smoothing of Dice. The code for LA has 1e-5.", gt=0, source="code for ACDC")

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        if self.criterion != "kl":
            refuse_unused(self, ("temperature",), f"with criterion {self.criterion!r}")
        if self.tau_schedule == "constant":
            refuse_unused(self, ("tau_ramp_iterations",), "with a constant tau")

    @property
    def drop_rates(self) -> tuple[float, float]:
        """Dropout rates of weak and strong feature perturbation."""
        return 0.5 - self.performance_gap / 2, 0.5 + self.performance_gap / 2


class CrossMatchTrainer(SelfTaughtTrainer):
    """One student; see the module's docstring."""

    settings: ClassVar[CrossMatchSettings] = CrossMatchSettings()
    strong_views: ClassVar[int] = 2
    kept_passes: ClassVar[float] = 7.0  # the weak view, two strong views, and four more decoder passes

    def check(self, settings: CrossMatchSettings) -> None:  # type: ignore[override]
        """Refuse anything but one student."""
        super().check(settings)
        if len(settings.students) != 1:
            raise CollabError(
                f"{self.trainer_name}: one network learns from itself, so 'students' must have 1 entry; got "
                f"{len(settings.students)}. Name one student."
            )

    def add_heads(self) -> None:
        """Refuse a network in which features cannot be perturbed."""
        for student in self.group:
            student.require_encoder()

    def threshold(self) -> float:
        """Tau, or the threshold that the code for LA computes from it."""
        s = self.settings
        if s.tau_schedule == "constant":
            return s.tau
        return (s.tau + (1 - s.tau) * sigmoid_ramp(self.iteration, s.tau_ramp_iterations)) * math.log(2)

    def term_weights(self) -> dict[str, float]:
        """Weights of L_ip and of the two parts of L_kd."""
        s, ramp = self.settings, self.ramp()
        distillation = ramp * s.distillation_weight
        return {
            "image": ramp * s.image_weight,
            "teacher": distillation * (1 - s.eta),
            "assistant": distillation * s.eta,
        }

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """All terms from one forward pass; each weight is the factor of the term in the total loss."""
        s, weights = self.settings, self.weights()
        own, second = self.divide(batch)
        n_l, n_u = len(own.image), len(own.weak)
        cut = [self.draw_cutmix(own) for _ in own.strong]
        strong = [cut[i](view, second and second.strong[i]) for i, view in enumerate(own.strong)]
        keep = [cut[i](own.keep, second and second.keep) for i in range(2)]
        # What teaches is never dropped by the network itself, only where the method drops it.
        alone = self.has_dropout or self.has_teacher
        (output,) = self.network(
            torch.cat([own.image, own.weak, *strong]),
            self._perturbed_passes(n_l, n_u),
            OnlyTeaching(n_l, n_l + n_u, decoded=not alone),
        ).values()
        labeled, s1, s2, w_w, w_s, s2_w, s2_s = split_output(output, [n_l, *[n_u] * 6])
        at_hand = (output.teaching, w_w.logits.detach(), w_s.logits.detach())
        clean, clean_w, clean_s = self._predictions(own) if alone else at_hand
        fill, fill_w, fill_s = self._predictions(second) if second else (None, None, None)
        teacher = [cut[0](clean, fill), cut[1](clean, fill)]
        name = s.students[0].name
        self.pseudo_label_curves.add(name, clean, own.keep, self.threshold())
        pairs = {
            "image": [(s1, teacher[0], keep[0]), (s2, teacher[1], keep[1])],
            "teacher": [
                (w_w, clean, own.keep),
                (w_s, clean, own.keep),
                (s2_w, teacher[1], keep[1]),
                (s2_s, teacher[1], keep[1]),
            ],
            "assistant": [(s2_w, cut[1](clean_w, fill_w), keep[1]), (s2_s, cut[1](clean_s, fill_s), keep[1])],
        }
        return self.supervised_terms({name: labeled}, own.target) + [
            Term(name, term, weight, torch.stack([self._distance(*pair) for pair in pairs[term]]).mean())
            for term, weight in weights.items()
        ]

    def _perturbed_passes(self, n_labeled: int, n_unlabeled: int) -> list[PerturbedPass]:
        """Passes of the weak view, then of the second strong view, each with weak and with strong dropout."""
        weak, second = n_labeled, n_labeled + 2 * n_unlabeled
        return [
            PerturbedPass(start, start + n_unlabeled, rate, self.settings.perturb)
            for start in (weak, second)
            for rate in self.settings.drop_rates
        ]

    def _predictions(self, batch: SemiSupervisedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The teaching network's logits of weak views: without, with weak and with strong feature dropout."""
        count = len(batch.weak)
        passes = [PerturbedPass(0, count, rate, self.settings.perturb) for rate in self.settings.drop_rates]
        (logits,) = self.teaching_logits(batch.weak, passes).values()
        clean, weak, strong = torch.split(logits, count)
        return clean, weak, strong

    def _distance(self, student: StudentOutput, teacher: Tensor, keep: Tensor) -> Tensor:
        s = self.settings
        loss = partial(
            pseudo_label_loss,
            regions=self.label_manager.has_regions,
            criterion=s.criterion,
            threshold=self.threshold(),
            temperature=s.temperature,
            smooth=s.smooth,
            by_share=s.weigh_dice_by_share,
        )
        return self.through_heads(loss, student, teacher, keep)
