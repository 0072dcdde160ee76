"""CTRCL: a CNN and a Transformer teach each other, with soft labels that the truth rectifies.

Source: Wu et al., "CNN-Transformer Rectified Collaborative Learning for Medical Image Segmentation" (2024). Each
student minimizes, with the other's tensors as constants (equation 17),

    L = L_seg + beta * L_rlcl + gamma1 * L_cfcl(encoder) + gamma2 * L_cfcl(decoder).

No code was published; where the paper is ambiguous, the comments beside the settings say which reading is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import refuse_unused, require, setting
from nnunet_collab.core.types import StudentOutput, Term, Truth, region_truth
from nnunet_collab.losses.class_aware import class_aware_kl, region_class_aware_kl
from nnunet_collab.losses.collaborative_kl import (
    as_two_classes,
    ensemble_kl,
    mutual_kl,
    rectified_kl,
    selective_kl,
)
from nnunet_collab.losses.rectified import ALL_FACTORS
from nnunet_collab.training.settings import CollaborativeSettings
from nnunet_collab.training.trainer import CollabTrainer


class CTRCLSettings(CollaborativeSettings):
    """Every switch of the paper's ablation tables."""

    beta: float = setting(3.0, "Weight of RLCL. 0 switches it off (table III).", ge=0, source="section IV.B, table VII")
    gamma_encoder: float = setting(
        1.0, "gamma1, weight of CFCL on the encoder's output. 0 switches it off.", ge=0, source="tables VI, VII"
    )
    gamma_decoder: float = setting(
        2.0, "gamma2, weight of CFCL on the decoder's output. 0 switches it off.", ge=0, source="tables VI, VII"
    )
    logit_mode: Literal["rlcl", "mutual", "ensemble", "selective"] = setting(
        "rlcl", "What the students learn from each other's logits: RLCL, ML, EL or BSD.", source="table IV"
    )
    lambda_factors: tuple[str, ...] = setting(
        ALL_FACTORS,
        "Factors of lambda: alignment, similarity, certainty. None of them: lambda = 1, which is mutual learning.",
        source="table V",
    )
    kl_order: Literal["target_first", "student_first"] = setting(
        "target_first",
        "Equations 12 and 16 print KL(student || target). The methods they follow compute KL(target || student).",
        source="equations 12, 16",
    )
    alpha: float = setting(20.0, "Scale of the similarities to the prototypes.", gt=0, source="equation 15")
    cfcl_classes: Literal["sample", "batch"] = setting(
        "sample", "Whose classes compete in the softmax: the sample's, or the batch's.", source="equation 15"
    )
    detach_prototypes: bool = setting(False, "Whether the gradient stops at the prototypes.", source="equation 14")
    ramp_up: float = setting(
        0.0,
        "Time after start over which beta and the gammas rise. 0: no ramp. The paper has none: its students start from "
        "ImageNet weights.",
        unit="share of the run",
        ge=0,
        le=1,
    )

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        known = set(self.lambda_factors) <= set(ALL_FACTORS)
        require(known, "lambda_factors", f"must be among {', '.join(ALL_FACTORS)}", self.lambda_factors)
        if self.logit_mode != "rlcl":
            refuse_unused(self, ("lambda_factors",), f"with logit_mode {self.logit_mode!r}")


class CTRCLTrainer(CollabTrainer):
    """Two students, all cases labeled; see the module's docstring."""

    settings: ClassVar[CTRCLSettings] = CTRCLSettings()
    feature_levels: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    def check(self, settings: CTRCLSettings) -> None:  # type: ignore[override]
        """Refuse anything but two students, unless nothing is shared between them."""
        shares = settings.beta or settings.gamma_encoder or settings.gamma_decoder
        if shares and len(settings.students) != 2:
            raise CollabError(
                f"CTRCLTrainer: two students teach each other; the setting 'students' has {len(settings.students)}. "
                f"Name two, or set beta, gamma_encoder and gamma_decoder to 0 to train them side by side."
            )

    def initialize(self) -> None:
        """Build everything, and refuse students without the feature maps that CFCL compares.

        Raises:
            CollabError: Naming the student and the tap it needs.
        """
        super().initialize()
        for level in ("encoder", "decoder"):
            weight = getattr(self.settings, f"gamma_{level}")
            for student in self.group:
                if weight and level not in student.taps:
                    raise CollabError(
                        f"student {student.name!r}: gamma_{level} is {weight}, so the {level}'s feature map is needed, "
                        f"but no layer is known to give it. Name one as '{level}_tap' in the student's settings, or "
                        f"set gamma_{level} to 0."
                    )

    def loss_terms(self, outputs: dict[str, StudentOutput], target: Tensor | list[Tensor], truth: Truth) -> list[Term]:
        """Equation 17 for every student that learns."""
        terms = super().loss_terms(outputs, target, truth)
        if len(outputs) == 2 and self._factor() > 0:
            for student, peer in self._pairs():
                terms += self._collaborative_terms(student, outputs[student], outputs[peer], truth)
        return terms

    def _factor(self) -> float:
        """Of beta and the gammas at this iteration."""
        return self.settings.ramp(self.iteration, self.settings.ramp_up)

    def _pairs(self) -> Iterator[tuple[str, str]]:
        """Each learning student with its peer; a frozen one only teaches (offline distillation, figure 10)."""
        first, second = self.settings.students
        for student, peer in ((first, second), (second, first)):
            if not student.frozen:
                yield student.name, peer.name

    def _collaborative_terms(self, name: str, own: StudentOutput, peer: StudentOutput, truth: Truth) -> list[Term]:
        s, factor = self.settings, self._factor()
        terms = []
        if s.beta:
            terms.append(Term(name, s.logit_mode, factor * s.beta, self._logit_loss(own.logits, peer.logits, truth)))
        levels = (("encoder", s.gamma_encoder), ("decoder", s.gamma_decoder))
        for level, weight in levels:
            if weight:
                value = self._feature_loss(getattr(own, level), getattr(peer, level), truth)
                terms.append(Term(name, f"cfcl_{level}", factor * weight, value))
        return terms

    def _logit_loss(self, own: Tensor, peer: Tensor, truth: Truth) -> Tensor:
        losses: dict[str, Callable[..., Tensor]] = {
            "rlcl": partial(rectified_kl, factors=self.settings.lambda_factors),
            "mutual": mutual_kl,
            "ensemble": ensemble_kl,
            "selective": selective_kl,
        }
        if truth.regions is not None:
            own, peer = as_two_classes(own), as_two_classes(peer)
            truth = region_truth(truth.regions, truth.keep)
        return losses[self.settings.logit_mode](own, peer, truth, order=self.settings.kl_order)

    def _feature_loss(self, own: Tensor, peer: Tensor, truth: Truth) -> Tensor:
        s = self.settings
        options = {
            "alpha": s.alpha,
            "order": s.kl_order,
            "classes": s.cfcl_classes,
            "detach_prototypes": s.detach_prototypes,
        }
        if truth.regions is not None:
            return region_class_aware_kl(own, peer, truth.regions, truth.keep, **options)  # type: ignore[arg-type]
        classes = self.label_manager.num_segmentation_heads
        return class_aware_kl(own, peer, truth, num_classes=classes, **options)  # type: ignore[arg-type]
