"""CrossMatch: one network, perturbed in its input and in its features, distils from its clean self.

Source: Zhao et al., "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with Perturbation Strategies and
Knowledge Distillation" (2024), and its published code. With p_i_j the prediction for the weak (i = w) or a strong view
(i = s1, s2) with no, weak or strong channel dropout (j = n, w, s), and D(p, m) the distance from the pseudo label m of
a prediction, where that one is confident,

    L_ip  = [D(p_s1_n, p_w_n) + D(p_s2_n, p_w_n)] / 2
    L_tkd = [D(p_w_w, p_w_n) + D(p_w_s, p_w_n) + D(p_s2_w, p_w_n) + D(p_s2_s, p_w_n)] / 4          equation 10
    L_dkd = [D(p_s2_w, p_w_w) + D(p_s2_s, p_w_s)] / 2                                              equation 11
    L_kd  = (1 - eta) L_tkd + eta L_dkd

Strong views are CutMixed, and so are the predictions that teach them. p_w_w and p_w_s are students of p_w_n and
teaching assistants, each with its own confidence. One encoder pass and one decoder pass serve all perturbed_passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.schedules import sigmoid_ramp
from nnunet_collab.core.settings import refuse_unused, require
from nnunet_collab.core.types import Term
from nnunet_collab.losses.pseudo_labels import Criterion, pseudo_label_loss
from nnunet_collab.networks.perturbation import PerturbAt, PerturbedPass
from nnunet_collab.training.mixing import MixingSettings, MixingTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch, slice_output
from nnunet_collab.training.settings import CNN, StudentSettings

Total = Literal["paper_era", "paper", "acdc_code", "la_code"]

# Factors of L_sup, L_ip and L_kd. Equation 12 is their sum; the code at the time of publication divided it by 3; later
# the code for ACDC weighted like the paper's pseudo code, and that for LA took the whole of L_kd.
TOTALS: dict[Total, tuple[float, float, float]] = {
    "paper_era": (1 / 3, 1 / 3, 1 / 3),
    "paper": (1.0, 1.0, 1.0),
    "acdc_code": (1 / 2, 1 / 4, 1 / 4),
    "la_code": (1 / 2, 1 / 4, 1 / 2),
}


@dataclass(frozen=True)
class CrossMatchSettings(MixingSettings):
    """Every switch of the paper and of the two published programs."""

    students: tuple[StudentSettings, ...] = (CNN,)
    tau: float = 0.95  # confidence from which on a pseudo label is used; the paper has 0.95 for ACDC, 0.85 for LA
    # The code for LA rises from tau to 1 and multiplies by log 2, left over from UA-MT's entropy: 0.590 to 0.624 for
    # 0.85.
    tau_schedule: Literal["constant", "la_code"] = "constant"
    tau_ramp_iterations: int = 17000  # of la_code, whatever the length of the run
    eta: float = 0.3  # share of the teaching assistants in L_kd
    performance_gap: float = 0.5  # dropout rates are 0.5 - gap / 2 and 0.5 + gap / 2; 0: both 0.5
    perturb: PerturbAt = "all"  # all encoder outputs, as in the code, or the bottleneck, as the paper's text says
    total: Total = "paper_era"
    criterion: Criterion = "dice"  # LA: "dice_foreground"
    temperature: float = 1.0  # of the criterion "kl" (equations 2 and 3)
    smooth: float = 1e-4  # of Dice; the code for LA has 1e-5

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        require(0 < self.tau < 1, "tau", "must be in (0, 1)", self.tau)
        require(self.tau_ramp_iterations >= 1, "tau_ramp_iterations", "must be >= 1", self.tau_ramp_iterations)
        require(0 <= self.eta <= 1, "eta", "must be in [0, 1]", self.eta)
        require(0 <= self.performance_gap < 1, "performance_gap", "must be in [0, 1)", self.performance_gap)
        require(self.temperature > 0, "temperature", "must be > 0", self.temperature)
        require(self.smooth > 0, "smooth", "must be > 0", self.smooth)
        if self.criterion != "kl":
            refuse_unused(self, ("temperature",), f"with criterion {self.criterion!r}")
        if self.tau_schedule == "constant":
            refuse_unused(self, ("tau_ramp_iterations",), "with a constant tau")

    @property
    def drop_rates(self) -> tuple[float, float]:
        """Of weak and strong feature perturbation."""
        return 0.5 - self.performance_gap / 2, 0.5 + self.performance_gap / 2


class CrossMatchTrainer(MixingTrainer):
    """One student; see the module's docstring."""

    settings: ClassVar[CrossMatchSettings] = CrossMatchSettings()
    strong_views: ClassVar[int] = 2

    def check(self, settings: CrossMatchSettings) -> None:  # type: ignore[override]
        """Refuse anything but one student."""
        if len(settings.students) != 1:
            raise CollabError(
                f"{self.trainer_name}: one network distils from itself; the setting 'students' has "
                f"{len(settings.students)}. Name one."
            )

    def add_heads(self) -> None:
        """Refuse a network in which features cannot be perturbed."""
        for student in self.group:
            student.require_encoder()

    def threshold(self) -> float:
        """Tau, or what the code for LA makes of it."""
        s = self.settings
        if s.tau_schedule == "constant":
            return s.tau
        return (s.tau + (1 - s.tau) * sigmoid_ramp(self.iteration, s.tau_ramp_iterations)) * math.log(2)

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """All terms from one forward; each weight is its factor in the total."""
        s = self.settings
        of_sup, of_ip, of_kd = TOTALS[s.total]
        ramp = self.ramp()
        own, second = self.divide(batch)
        n_l, n_u = len(own.image), len(own.weak)
        cut = [self.draw_cutmix(own) for _ in own.strong]
        strong = [cut[i](view, second and second.strong[i]) for i, view in enumerate(own.strong)]
        keep = [cut[i](own.keep, second and second.keep) for i in range(2)]
        (output,) = self.network(torch.cat([own.image, own.weak, *strong]), self._perturbed_passes(n_l, n_u)).values()
        _, w, s1, s2, w_w, w_s, s2_w, s2_s = torch.split(output.logits, [n_l, *[n_u] * 7])
        # What teaches is never dropped by the network itself, only where the method drops it.
        at_hand = (w.detach(), w_w.detach(), w_s.detach())
        clean, clean_w, clean_s = self._predictions(own) if self.has_dropout else at_hand
        fill, fill_w, fill_s = self._predictions(second) if second else (None, None, None)
        teacher = [cut[0](clean, fill), cut[1](clean, fill)]
        image = [self._distance(s1, teacher[0], keep[0]), self._distance(s2, teacher[1], keep[1])]
        distilled = [
            self._distance(w_w, clean, own.keep),
            self._distance(w_s, clean, own.keep),
            self._distance(s2_w, teacher[1], keep[1]),
            self._distance(s2_s, teacher[1], keep[1]),
        ]
        assisted = [
            self._distance(s2_w, cut[1](clean_w, fill_w), keep[1]),
            self._distance(s2_s, cut[1](clean_s, fill_s), keep[1]),
        ]
        name = s.students[0].name
        self.pseudo_label_curves.add(name, clean, own.keep, self.threshold())
        return [
            *self.supervised_terms({name: slice_output(output, 0, n_l)}, own.target, share=of_sup),
            Term(name, "image", of_ip * ramp, torch.stack(image).mean()),
            Term(name, "teacher", of_kd * (1 - s.eta) * ramp, torch.stack(distilled).mean()),
            Term(name, "assistant", of_kd * s.eta * ramp, torch.stack(assisted).mean()),
        ]

    def _perturbed_passes(self, n_labeled: int, n_unlabeled: int) -> list[PerturbedPass]:
        """Weak view, then second strong view, each with weak and with strong dropout."""
        weak, second = n_labeled, n_labeled + 2 * n_unlabeled
        return [
            PerturbedPass(start, start + n_unlabeled, rate, self.settings.perturb)
            for start in (weak, second)
            for rate in self.settings.drop_rates
        ]

    def _predictions(self, batch: SemiSupervisedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Of weak views, in evaluation mode: clean, with weak and with strong dropout of features."""
        count = len(batch.weak)
        perturbed_passes = [PerturbedPass(0, count, rate, self.settings.perturb) for rate in self.settings.drop_rates]
        (logits,) = self.predict_without_perturbation(batch.weak, perturbed_passes=perturbed_passes).values()
        clean, weak, strong = torch.split(logits, count)
        return clean, weak, strong

    def _distance(self, student: Tensor, teacher: Tensor, keep: Tensor) -> Tensor:
        s = self.settings
        return pseudo_label_loss(
            student,
            teacher,
            keep,
            regions=self.label_manager.has_regions,
            criterion=s.criterion,
            threshold=self.threshold(),
            temperature=s.temperature,
            smooth=s.smooth,
        )
