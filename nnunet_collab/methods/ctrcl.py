"""CTRCL: a CNN and a Transformer teach each other with soft labels that are rectified by the truth.

Source: Wu et al., "CNN-Transformer Rectified Collaborative Learning for Medical Image Segmentation" (2024). Each
student minimizes, with the other's tensors as constants (equation 17),

    L = L_seg + beta * L_rlcl + gamma1 * L_cfcl(encoder) + gamma2 * L_cfcl(decoder).

No code was published. Where the paper is ambiguous, the settings say which reading is the default.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import refuse_unused, require, setting
from nnunet_collab.core.types import StudentOutput, Term, Truth
from nnunet_collab.losses.class_aware_pair import class_aware_pair
from nnunet_collab.losses.collaborative_pair import collaborative_pair, compiled
from nnunet_collab.losses.collaborative_slab import SlabFunction, slab_losses
from nnunet_collab.losses.rectified import ALL_FACTORS
from nnunet_collab.training.settings import CollaborativeSettings
from nnunet_collab.training.trainer import CollabTrainer


class CTRCLSettings(CollaborativeSettings):
    """Settings for all rows of the paper's ablation tables."""

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
        "Factors of lambda: alignment, similarity, certainty. Empty: lambda = 1, which is mutual learning.",
        source="table V",
    )
    unsure_peer: Literal["as_published", "skip"] = setting(
        "as_published",
        "Voxels where the peer is right but less sure than the student. as_published: the peer teaches there, which "
        "pulls the student back (equation 12). skip: such voxels do not teach that student; not in the paper.",
        source="equation 12",
    )
    kl_order: Literal["target_first", "student_first"] = setting(
        "target_first",
        "Equations 12 and 16 print KL(student || target). The methods they follow compute KL(target || student).",
        source="equations 12, 16",
    )
    alpha: float = setting(20.0, "Scale of the similarities to the prototypes.", gt=0, source="equation 15")
    cfcl_classes: Literal["sample", "batch"] = setting(
        "sample", "Classes in the softmax: those of the sample, or those of the batch.", source="equation 15"
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
            refuse_unused(self, ("lambda_factors", "unsure_peer"), f"with logit_mode {self.logit_mode!r}")


class CTRCLTrainer(CollabTrainer):
    """Two students, all cases labeled; see the module's docstring."""

    settings: ClassVar[CTRCLSettings] = CTRCLSettings()
    feature_levels: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    slab_function: SlabFunction = staticmethod(slab_losses)  # the arithmetic of the logit losses

    def check(self, settings: CTRCLSettings) -> None:  # type: ignore[override]
        """Refuse anything but two students, unless nothing is shared between them."""
        shares = settings.beta or settings.gamma_encoder or settings.gamma_decoder
        if shares and len(settings.students) != 2:
            raise CollabError(
                f"CTRCLTrainer: two students teach each other, so 'students' must have 2 entries; got "
                f"{len(settings.students)}. "
                f"Name two students, or set beta, gamma_encoder and gamma_decoder to 0 to train them separately."
            )

    def initialize(self) -> None:
        """Build everything, and refuse students without the feature maps that CFCL compares.

        Raises:
            CollabError: Naming the student and the tap it needs.
        """
        super().initialize()
        if self.device.type == "cuda" and self._do_i_compile():
            self.slab_function = compiled(self.print_to_log_file)
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
        # The backward pass runs in reverse order. These terms come first, so their gradients are computed when the
        # memory of the supervised losses is free again.
        factor = self.settings.ramp(self.iteration, self.settings.ramp_up)
        collaborative = self._collaborative_terms(outputs, truth, factor) if len(outputs) == 2 and factor > 0 else []
        return [*super().loss_terms(outputs, target, truth), *collaborative]

    def _collaborative_terms(self, outputs: dict[str, StudentOutput], truth: Truth, factor: float) -> list[Term]:
        """Collaborative terms of both students, weights times `factor`. A frozen student only teaches (figure 10)."""
        s = self.settings
        first, second = (outputs[student.name] for student in s.students)
        losses: dict[str, tuple[float, tuple[Tensor, Tensor]]] = {}
        if s.beta:
            losses[s.logit_mode] = s.beta, self._logit_losses(first.logits, second.logits, truth)
        weights = {"encoder": s.gamma_encoder, "decoder": s.gamma_decoder}
        levels = [level for level, weight in weights.items() if weight]
        if levels:
            maps = [[getattr(output, level) for level in levels] for output in (first, second)]
            for level, values in zip(levels, self._feature_losses(maps[0], maps[1], truth), strict=True):
                losses[f"cfcl_{level}"] = weights[level], values
        return [
            Term(student.name, name, factor * weight, values[i])
            for i, student in enumerate(s.students)
            if not student.frozen
            for name, (weight, values) in losses.items()
        ]

    def _logit_losses(self, first: Tensor, second: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        s = self.settings
        return collaborative_pair(
            first,
            second,
            truth,
            mode=s.logit_mode,
            factors=s.lambda_factors,
            order=s.kl_order,
            unsure_peer=s.unsure_peer,
            slab_function=self.slab_function,
        )

    def _feature_losses(self, first: list[Tensor], second: list[Tensor], truth: Truth) -> list[tuple[Tensor, Tensor]]:
        s = self.settings
        return class_aware_pair(
            first,
            second,
            truth,
            num_classes=self.label_manager.num_segmentation_heads,
            alpha=s.alpha,
            order=s.kl_order,
            classes=s.cfcl_classes,
            detach_prototypes=s.detach_prototypes,
        )
