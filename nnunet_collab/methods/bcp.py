"""BCP: labeled and unlabeled images are pasted into each other, both ways, and the averaged student labels them.

Source: Bai et al., "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation" (CVPR 2023), and its
released code. M is 0 in a box of two thirds of each side, one box per batch, and 1 around it. First the student learns
from labeled images pasted into each other. Then, with pseudo labels Y of the teacher (equations 3 to 8),

    X_in  = M * X_labeled   + (1 - M) * X_unlabeled
    X_out = M * X_unlabeled + (1 - M) * X_labeled
    L = sum over both of L_seg over the labeled voxels + alpha L_seg over the unlabeled voxels.

L_seg is nnU-Net's Dice + cross-entropy. The sum of the two ways is a mean here, as in the released code, whose L_seg is
(Dice + CE) / 2. There every image is pasted one way. Here each pair is, by default, pasted both ways, so that every
labeled voxel of nnU-Net's batch counts once per step.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import refuse_unused, setting
from nnunet_collab.core.types import Term, Truth
from nnunet_collab.training.copy_paste import as_many, draw_inside, halves, largest_components
from nnunet_collab.training.cutmix import draw_partners, mix
from nnunet_collab.training.ema_trainer import TeacherSettings
from nnunet_collab.training.hard_labels import HardLabelTrainer
from nnunet_collab.training.semi_supervised import SemiSupervisedBatch
from nnunet_collab.training.settings import CNN, StudentSettings
from nnunet_collab.training.student_outputs import at_size, split_output


class BCPSettings(TeacherSettings):
    """Settings of BCP."""

    students: tuple[StudentSettings, ...] = (CNN,)
    start: float = setting(
        0.25,
        "When the unlabeled images join: a value below 1 is a share of the run, a value of 1 or more a number of "
        "epochs. Until then the students learn from labeled images pasted into each other.",
        source="BCP's code for ACDC",
    )
    unlabeled_weight: float = setting(
        0.5, "alpha, weight of the unlabeled voxels of a mixed image beside 1 of the labeled ones.", ge=0, source="BCP"
    )
    box: float = setting(
        2 / 3, "beta, side of the box that is pasted.", unit="share of the patch's side", gt=0, lt=1, source="BCP"
    )
    labeled_copy_paste: bool = setting(
        True,
        "Whether labeled images are pasted into each other until start. Without it, that part of the training equals "
        "SupervisedTrainer bit for bit.",
        source="BCP",
    )
    both_ways: bool = setting(
        True,
        "Whether each pair is pasted both ways, which takes twice as many images per step. Published: no; one half of "
        "the batch is pasted each way, so half of the labeled voxels count.",
        source="ours",
    )
    largest_component: bool = setting(
        True,
        "Whether of each class (or region) of a pseudo label only the largest connected component stays; the rest "
        "becomes background. Switch it off for classes with several parts.",
        source="BCP",
    )
    component_neighbors: Literal["faces", "edges", "corners"] = setting(
        "corners", "Which voxels are connected: those that share faces, also edges, or also corners.", source="BCP"
    )
    ramp_up: float = setting(
        0.0, "Time after start over which alpha rises. 0: none.", unit="share of the run", ge=0, le=1, source="BCP"
    )

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        if not self.largest_component:
            refuse_unused(self, ("component_neighbors",), "without largest_component")


class Direction(NamedTuple):
    """One way of pasting.

    Attributes:
        labeled: Which labeled samples, `(N,)` int64.
        unlabeled: Which unlabeled ones.
        from_unlabeled: `(1, *S)` bool, True where the mixed images are unlabeled.
    """

    labeled: Tensor
    unlabeled: Tensor
    from_unlabeled: Tensor

    def truths(self, truth: Truth, pseudo: Truth) -> tuple[Truth, Truth]:
        """The labels and the pseudo labels of the mixed images, each with the voxels that are its own."""
        return _part(truth, self.labeled, ~self.from_unlabeled), _part(pseudo, self.unlabeled, self.from_unlabeled)


class BCPTrainer(HardLabelTrainer):
    """Copy-paste among labeled images, then between labeled and unlabeled ones."""

    settings: ClassVar[BCPSettings] = BCPSettings()

    def initialize(self) -> None:
        """Build everything, and say what a batch of one sample leaves to be pasted.

        Raises:
            CollabError: If half a batch is to be pasted each way, and there is one sample only.
        """
        super().initialize()
        s, least = self.settings, min(self.labeled_per_batch, self.unlabeled_per_batch)
        if not s.both_ways:
            self.kept_passes = 0.0  # type: ignore[misc]  # as many mixed images as labeled ones
            if least < 2 and s.unlabeled_weight > 0:
                raise CollabError(
                    f"{self.trainer_name}: with both_ways false, half of the labeled and of the unlabeled samples are "
                    f"pasted each way, so a process needs at least 2 of each; it has {self.labeled_per_batch} labeled "
                    f"and {self.unlabeled_per_batch} unlabeled. Set both_ways true, or raise batch_size."
                )
        self.pastes_labels = s.labeled_copy_paste and self.labeled_per_batch > 1
        if s.labeled_copy_paste and not self.pastes_labels:
            self.print_to_log_file("one labeled sample per batch: until 'start' there is no other to paste into it")

    def term_weights(self) -> dict[str, float]:
        """The published alpha."""
        return {"unlabeled": self.settings.unlabeled_weight * self.ramp_over(self.settings.ramp_up)}

    # ---------------------------------------------------------------- labels alone

    def labeled_terms(self, batch: dict[str, Any]) -> list[Term]:
        """nnU-Net's loss of labeled images pasted into each other."""
        return super().labeled_terms(self._paste_labels(batch) if self.pastes_labels else batch)

    def _paste_labels(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with a box of every image and of its labels from another image of the batch."""
        image, target, count = batch["data"], batch["target"], len(batch["data"])
        around, inside = (torch.arange(count), draw_partners(count)) if self.settings.both_ways else halves(count)
        inside = as_many(inside, len(around))
        box = draw_inside(image.shape[2:], self.settings.box, image.device)

        def paste(tensor: Tensor) -> Tensor:
            tensor = tensor.to(box.device, non_blocking=True)
            return mix(tensor[around], tensor[inside], at_size(box, tensor.shape[2:]))

        return {
            **batch,
            "data": paste(image),
            "target": [paste(one) for one in target] if isinstance(target, list) else paste(target),
        }

    # ---------------------------------------------------------------- labeled and unlabeled images

    def draw_directions(self, batch: SemiSupervisedBatch) -> tuple[Direction, Direction]:
        """The pairs and the box of a batch: inward (an unlabeled box in labeled images), and outward."""
        count = len(batch.image), len(batch.weak)
        if self.settings.both_ways:
            groups = [(torch.arange(count[0]), torch.arange(count[1]))] * 2
        else:
            groups = list(zip(halves(count[0]), halves(count[1]), strict=True))
        box = draw_inside(batch.image.shape[2:], self.settings.box, batch.image.device)
        inward, outward = (
            (as_many(labeled, number), as_many(unlabeled, number), from_unlabeled)
            for (labeled, unlabeled), from_unlabeled in zip(groups, (box, ~box), strict=True)
            for number in [max(len(labeled), len(unlabeled))]
        )
        return Direction(*inward), Direction(*outward)

    def semi_supervised_terms(self, batch: SemiSupervisedBatch) -> list[Term]:
        """The labeled and the unlabeled voxels of the mixed images."""
        alpha = self.weights()["unlabeled"]
        teacher = {name: output.logits for name, output in self.teacher(batch.weak).items()}
        ways = self.draw_directions(batch)
        mixed = [mix(batch.image[way.labeled], batch.weak[way.unlabeled], way.from_unlabeled) for way in ways]
        outputs = self.network(torch.cat(mixed))
        terms = []
        for name, output in outputs.items():
            pseudo = self.make_pseudo_truth(teacher[name], batch.keep)
            self.pseudo_label_curves.add(name, teacher[name], batch.keep, 0.0)
            views = split_output(output, [len(way.labeled) for way in ways])
            truths = [way.truths(batch.truth, pseudo) for way in ways]
            for term, weight, part in (("supervised", 1.0, 0), ("unlabeled", alpha, 1)):
                losses = [
                    self.hard_label_loss(view, truth[part], labeled=part == 0)
                    for view, truth in zip(views, truths, strict=True)
                ]
                terms.append(Term(name, term, weight, torch.stack(losses).mean()))
        return terms

    def make_pseudo_truth(self, logits: Tensor, keep: Tensor) -> Truth:
        """The teacher's labels, of each class or region only the largest component if the settings say so."""
        truth = self.pseudo_truth(logits, keep)
        if not self.settings.largest_component:
            return truth
        neighbors = self.settings.component_neighbors
        if truth.regions is not None:
            return truth._replace(regions=largest_components(truth.regions, neighbors))
        classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
        stays = largest_components(truth.labels.unsqueeze(1) == classes, neighbors).any(dim=1)
        return truth._replace(labels=truth.labels.masked_fill(~stays, 0))


def _part(truth: Truth, samples: Tensor, where: Tensor) -> Truth:
    """Some samples of a truth, of which only the voxels of `where` `(1, *S)` count."""
    regions = None if truth.regions is None else truth.regions[samples]
    return Truth(truth.labels[samples], truth.keep[samples] & where, regions)
