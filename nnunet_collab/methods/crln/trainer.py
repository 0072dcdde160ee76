"""CRLN: prototypes learned from the labeled images rectify the teacher's pseudo labels.

Source: Wang et al., "Leveraging labeled data knowledge: A cooperative rectification learning network for
semi-supervised 3D medical image segmentation" (Medical Image Analysis 2025). No code was published; what the paper
leaves open is said in `methods.crln_settings`. With the relationship map M of the dynamic interaction module (DIM,
`networks.interaction`),

    L = l_s(student(x_l), y) + l_s(M(x_l), y)                    labeled images             equation 15
      + l_u(student(strong x_u), y_r) + l_cp                     unlabeled ones; CPS (`losses.positive_supervision`)
    y_r = rectified prediction of the teacher, from iteration S on                           equation 8

and mu, which says how much M counts, minimizes l_s(rectified student(x_l), y) by an optimizer of its own (equation 16),
everything else being constant there. The teacher averages student, DIM and prototypes. Where neither the rectification
nor CPS uses M or the prototypes (table 5), there is no DIM and no l_s(M(x_l), y).
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import StudentOutput, Term
from nnunet_collab.losses.positive_supervision import Supervision, positive_supervision
from nnunet_collab.losses.pseudo_labels import pseudo_label_loss, pseudo_labels
from nnunet_collab.methods.crln.center_crop import context_of
from nnunet_collab.methods.crln.interaction import DynamicInteraction
from nnunet_collab.methods.crln.projection import VoxelProjection
from nnunet_collab.methods.crln.rectifier import Kind, Rectifier
from nnunet_collab.methods.crln.settings import CRLNSettings
from nnunet_collab.networks.blueprint import is_unet
from nnunet_collab.networks.student import Student
from nnunet_collab.training.ema_trainer import TeacherTrainer
from nnunet_collab.training.mixing import MixingTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch
from nnunet_collab.training.student_outputs import slice_output

STAGES = 3  # of the decoder that are tapped


class CRLNTrainer(MixingTrainer, TeacherTrainer):
    """One student with its teacher; see the module's docstring."""

    settings: ClassVar[CRLNSettings] = CRLNSettings()

    def initialize(self) -> None:
        """Build everything, and the rectifier's optimizer.

        Raises:
            CollabError: If the labels are regions, or the decoder has too few stages.
        """
        if self.label_manager.has_regions:
            raise CollabError(
                f"{self.trainer_name}: prototypes are of exclusive classes, and this dataset has overlapping regions. "
                f"Use CrossMatchTrainer or MeanTeacherTrainer, which treat every region by itself."
            )
        super().initialize()
        s = self.settings
        total = s.epochs * s.iterations_per_epoch
        if s.rectification != "none" and s.rectify_from_iteration >= total:
            self.print_to_log_file(
                f"WARNING: setting 'rectify_from_iteration' is {s.rectify_from_iteration}, the training has {total} "
                f"iterations: pseudo labels will never be rectified. Lower it."
            )
        learned = [] if self.rectifier is None else list(self.rectifier.parameters())
        self.rectifier_optimizer = torch.optim.Adam(learned, s.mu_lr) if learned else None

    def add_heads(self) -> None:
        """Tap the last three stages of the decoder, add DIM and the projection, and build the rectifier."""
        (student,) = self.group
        network = student.network
        stages = len(network.decoder.stages) if is_unet(network) else 0  # type: ignore[union-attr, arg-type]
        if stages < STAGES:
            raise CollabError(
                f"{self.trainer_name}: needs a UNet whose decoder has {STAGES} stages or more, so a network of "
                f"{STAGES + 1} resolutions; {type(network).__name__} of {self.configuration_name} has {stages}. Use "
                f"'plans' as the student's network, in a configuration with larger patches (3d_fullres rather than "
                f"3d_lowres, or 2d)."
            )
        student.tap_further([f"decoder.stages.{i}" for i in range(stages - STAGES, stages)])
        image = torch.zeros(1, self.num_input_channels, *self.configuration_manager.patch_size, device=self.device)
        coarse, fine, last = (m.shape[1] for m in student.probe(image).maps)
        dims, classes = image.ndim - 2, self.label_manager.num_segmentation_heads
        s = self.settings
        if s.interacts:
            student.heads["interaction"] = DynamicInteraction(
                dims, classes, s.prototypes, (coarse, fine), aggregation=s.aggregation
            ).to(self.device)
        if s.contrasts:
            student.heads["projection"] = VoxelProjection(dims, last, coarse).to(self.device)
        self.context = context_of(self.configuration_manager.patch_size, self.settings.context_crop, network)
        # Here, where every rank draws the same weights.
        self.rectifier: Rectifier | None = None
        if s.rectification != "none":
            kind: Kind = s.rectification
            rectifier = Rectifier(kind, space=s.rectification_space, tau=s.tau, num_classes=classes, dims=dims)
            self.rectifier = rectifier.to(self.device)

    # ---------------------------------------------------------------- terms

    def threshold(self) -> float | Tensor:
        """tau, for values that sum to 1; a scalar on the device where mu says what they sum to."""
        return self.settings.tau / self._mass()

    def _mass(self) -> float | Tensor:
        """What the values of one voxel's pseudo label sum to; tau and tau_weak are for these values."""
        if self.rectifier is None or self.iteration < self.settings.rectify_from_iteration:
            return 1.0
        return self.rectifier.mass.detach()

    def term_weights(self) -> dict[str, float]:
        """Equation 15; those of unlabeled images rise over `ramp_up`."""
        s, ramp = self.settings, self.ramp()
        return {
            "relations": s.relations_weight if s.interacts else 0.0,
            "pseudo": ramp * s.unlabeled_weight,
            "contrast": ramp * s.contrast_weight if s.contrasts else 0.0,
        }

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """Equation 15, and the gradient of equation 16 on the way."""
        s, weights = self.settings, self.weights()
        own, second = self.divide(batch)
        name, n_l = s.students[0].name, len(own.image)
        seen, seen_second = self._seen(own), None if second is None else self._seen(second)
        cut = self.draw_cutmix(seen)
        strong = cut(self._with_noise(seen.weak), None if seen_second is None else self._with_noise(seen_second.weak))
        output = self._look(own.image, strong, name)
        relations = self._relations(self.group[name], output, slice(None, n_l)) if s.interacts else None
        labeled = slice_output(output, 0, n_l)
        teacher = self.context.put_back(cut(*self._pseudo_labels(own, second, name)))
        keep = self.context.put_back(cut(seen.keep, None if seen_second is None else seen_second.keep))
        terms = self.supervised_terms({name: labeled}, own.target)
        if relations is not None:
            self._learn_to_rectify(labeled.logits, relations, own.target)
            if "relations" in weights:
                value = self.supervised(_logits(relations), own.target)
                terms.append(Term(name, "relations", weights["relations"], value))
        if "pseudo" in weights:
            # A student that sees the middle of a patch has no coarser outputs of the whole of it.
            unlabeled = slice_output(output, n_l, None)
            unlabeled = unlabeled if self.context.whole else unlabeled._replace(auxiliary=())
            value = self._unlabeled_loss(unlabeled, teacher, keep)
            terms.append(Term(name, "pseudo", weights["pseudo"], value))
        if "contrast" in weights:
            value = self._contrast(output, own, teacher, keep)
            terms.append(Term(name, "contrast", weights["contrast"], value))
        return terms

    def _seen(self, batch: SemiSupervisedBatch) -> SemiSupervisedBatch:
        """What the student is shown of the unlabeled images."""
        return batch._replace(weak=self.context.take(batch.weak), keep=self.context.take(batch.keep))

    def _look(self, labeled: Tensor, strong: Tensor, name: str) -> StudentOutput:
        """The student's output on both, in one pass if their sizes are equal.

        Else logits and f_4 of the unlabeled images are 0 where the student did not look, as at the border of an image,
        and all that only labeled images need is of them alone.
        """
        if self.context.whole:
            output: StudentOutput = self.network(torch.cat([labeled, strong]))[name]
            return output
        first, second = self.network(labeled)[name], self.network(strong)[name]
        logits = torch.cat([first.logits, self.context.put_back(second.logits)])
        last = torch.cat([first.maps[-1], self.context.put_back(second.maps[-1])])
        return StudentOutput(logits, None, None, first.auxiliary, (*first.maps[:-1], last))

    def _relations(self, student: Student, output: StudentOutput, samples: slice) -> Tensor:
        coarse, fine, _ = (m[samples] for m in output.maps)
        relations: Tensor = student.heads["interaction"](coarse, fine, output.logits.shape[2:])
        return relations

    @torch.no_grad()
    def _pseudo_labels(
        self, own: SemiSupervisedBatch, second: SemiSupervisedBatch | None, name: str
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the labels of both parts, rectified once that has begun."""
        count = len(own.weak)
        output = self.teacher(own.weak if second is None else torch.cat([own.weak, second.weak]))[name]
        before, after = map(self.context.take, self._before_and_after(output))
        keep = self.context.take(own.keep)
        self.pseudo_label_curves.add(f"{name} before", before[:count], keep, self.settings.tau)
        self.pseudo_label_curves.add(f"{name} after", after[:count], keep, self.threshold())
        used = after if self.iteration >= self.settings.rectify_from_iteration else before
        return used[:count], None if second is None else used[count:]

    def _before_and_after(self, output: StudentOutput) -> tuple[Tensor, Tensor]:
        """A teacher's prediction as it is, and rectified."""
        (teacher,) = self.teacher.group
        before = output.logits.float().log_softmax(dim=1)
        if self.rectifier is None:
            return before, before
        return before, self.rectifier(before, self._relations(teacher, output, slice(None)))

    def _unlabeled_loss(self, student: StudentOutput, teacher: Tensor, keep: Tensor) -> Tensor:
        criterion: Literal["kl", "ce"] = "kl" if self.settings.soft_target else "ce"
        loss = partial(pseudo_label_loss, regions=False, criterion=criterion, threshold=self.threshold())
        return self.through_heads(loss, student, teacher, keep)

    def _contrast(self, output: StudentOutput, own: SemiSupervisedBatch, teacher: Tensor, keep: Tensor) -> Tensor:
        s = self.settings
        (student,) = self.group
        hard = pseudo_labels(teacher, regions=False)
        truth = own.truth
        known = Supervision(
            labels=torch.cat([truth.labels, hard.labels[:, 0]]),
            reliable=torch.cat([truth.keep, keep & (hard.confidence[:, 0] > s.tau_weak / self._mass())]),
            confidence=output.logits.detach().float().softmax(dim=1),
        )
        assert s.positives != "none"  # then there is no projection
        return positive_supervision(
            student.heads["projection"],  # type: ignore[arg-type]
            output.maps[-1],
            student.heads["interaction"].prototypes if s.interacts else None,  # type: ignore[arg-type]
            known,
            tau=s.tau,
            xi=torch.rand((), device=teacher.device) if isinstance(s.xi, str) else s.xi,
            temperature=s.temperature,
            positives=s.positives,
            anchors=s.anchors,
            negatives=s.negatives,
        )

    def _with_noise(self, image: Tensor) -> Tensor:
        noise = self.settings.noise
        return image + torch.empty_like(image).uniform_(-noise, noise)

    # ---------------------------------------------------------------- mu

    def _learn_to_rectify(self, logits: Tensor, relations: Tensor, target: Tensor | list[Tensor]) -> None:
        """Equation 16: a gradient for the rectifier alone, which `after_step` follows."""
        if self.rectifier is None or self.rectifier_optimizer is None:
            return
        rectified = self.rectifier(logits.detach(), relations.detach())
        # The cross-entropy of values that sum to `mass`; the Dice is that of their shares.
        loss = self.supervised(_logits(rectified), target) - self.rectifier.mass.log()
        parameters = list(self.rectifier.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            if self.is_ddp:
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
            parameter.grad = gradient

    def must_be_finite(self) -> dict[str, Tensor]:
        """The rectifier's gradient, which no term of the student's loss shows."""
        learned = [] if self.rectifier_optimizer is None or self.rectifier is None else self.rectifier.parameters()
        gradients = [p.grad.flatten() for p in learned if p.grad is not None]
        rectification = {"the gradient of the rectification": torch.cat(gradients)} if gradients else {}
        return {**super().must_be_finite(), **rectification}

    def after_step(self) -> None:
        """The rectifier's step, and the teacher's."""
        super().after_step()
        if self.rectifier_optimizer is not None:
            self.rectifier_optimizer.step()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log mu, too (the paper's figure 11)."""
        super().on_train_epoch_end(train_outputs)
        if self.rectifier is not None and self.rectifier.kind == "learnable":
            self.curves.log_variables({"mu": float(self.rectifier.mu.detach())}, self.current_epoch)

    def method_state(self) -> dict[str, Any]:
        """Rectifier and its optimizer, too."""
        state = super().method_state()
        if self.rectifier is not None:
            state["rectifier"] = self.rectifier.state_dict()
        if self.rectifier_optimizer is not None:
            state["rectifier_optimizer"] = self.rectifier_optimizer.state_dict()
        return state

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        super().load_method_state(state)
        if self.rectifier is not None:
            self.rectifier.load_state_dict(state["rectifier"])
        if self.rectifier_optimizer is not None:
            self.rectifier_optimizer.load_state_dict(state["rectifier_optimizer"])

    def pseudo_labelers(self, image: Tensor, outputs: dict[str, StudentOutput]) -> dict[str, StudentOutput]:
        """The teacher before and after rectification (the paper's figure 1)."""
        (name, output), *_ = super().pseudo_labelers(image, outputs).items()
        before, after = self._before_and_after(output)
        return {f"{name} before": _logits(before), f"{name} after": _logits(after)}


def _logits(values: Tensor) -> StudentOutput:
    return StudentOutput(values, None, None)
