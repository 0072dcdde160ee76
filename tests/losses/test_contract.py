"""What every loss promises, whatever it computes. A new loss without an entry in `LOSSES` fails here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nnunet_collab.losses as package
from nnunet_collab.core.types import Truth
from nnunet_collab.losses import boundary_contrast as boundaries
from nnunet_collab.losses import class_aware, class_aware_pair, collaborative_kl, collaborative_pair, duality
from nnunet_collab.losses.consistency import squared_difference
from nnunet_collab.losses.hard_labels import HardLabelForm, hard_label_loss
from nnunet_collab.losses.positive_supervision import Supervision, positive_supervision
from nnunet_collab.losses.pseudo_labels import pseudo_label_loss

BATCH, CLASSES, SIZE = 2, 3, (4, 6)
# Public functions that are no losses: parts of losses, checks, and what makes labels and targets.
OTHERS = {
    "class_aware": {"check_features", "check_spatial_axes", "common_grid", "sample_centers"},
    "collaborative_kl": {"as_two_classes", "check_options"},
    "collaborative_pair": {"compiled"},
    "collaborative_slab": {"slab_losses"},
    "dice": {"soft_dice"},
    "duality": {
        "activate", "augmented_lagrangian", "class_fractions", "size_band", "teacher_target",
    },
    "late_gradient": {"chunks", "sum_over_cells", "teach"},
    "pseudo_labels": {"pseudo_labels"},
    "rectified": {"rectify"},
}  # fmt: skip


class Batch(NamedTuple):
    """Two samples of one student and its peer or teacher."""

    student: Tensor  # (B, C, *S); receives the gradient
    peer: Tensor  # (B, C, *S); asks for a gradient and gets none
    labels: Tensor  # (B, *S) int64
    keep: Tensor  # (B, *S) bool

    @property
    def truth(self):
        return Truth(self.labels, self.keep)

    @property
    def regions(self):
        return F.one_hot(self.labels, CLASSES).movedim(-1, 1).bool()


@dataclass(frozen=True)
class Loss:
    """How a loss is called on a `Batch`, and which of the promises are not its own.

    Attributes:
        of: The loss of a batch.
        mask: Its name for the voxels that count, None where it knows none.
        one_batch: Whether two ranks compute what one process computes with the whole batch.
    """

    of: Callable[[Batch], Tensor]
    mask: str | None = "keep"
    one_batch: bool = True


def vectors(features):
    return F.normalize(features.double().flatten(1), dim=1).to(features.dtype)


def weights(channels, like):
    return torch.full((channels,), 1 / channels, dtype=like.dtype)


class Itself:
    """A projection that leaves the features as they are."""

    def at(self, features, voxels):
        return features.float()[(voxels[:, 0], slice(None), *voxels[:, 1:].T)]

    def fixed(self, features):
        return ItselfFixed(self, features.detach())

    def parameters(self):
        return iter(())


class ItselfFixed:
    def __init__(self, projection, features):
        self.projection, self.features = projection, features

    def at(self, voxels):
        return self.projection.at(self.features, voxels)

    def mean_of(self, members):
        of_members = members.flatten(2).float().transpose(0, 1).flatten(1)
        rows = self.features.float().flatten(2).transpose(0, 1).flatten(1)
        return of_members @ rows.T / of_members.sum(dim=1, keepdim=True)


def supervised_positives(b):
    torch.manual_seed(0)
    known = Supervision(b.labels, b.keep, b.peer.detach().float().softmax(1))
    options = {"tau": 1.0, "xi": 0.5, "temperature": 0.5, "positives": "mean", "anchors": 4, "negatives": 3}
    return positive_supervision(Itself(), b.student, None, known, **options)


def pair_of_features(b, **options):
    return class_aware_pair.class_aware_pair([b.student], [b.peer], b.truth, num_classes=CLASSES, **options)[0]


def against_target(loss, activation, classes, **options):
    """A loss of duality on the peer's probabilities."""

    def of(b):
        target = duality.activate(b.peer, activation)
        return loss(b.student, target, b.keep, activation=activation, class_weights=weights(classes, target), **options)

    return Loss(of)


def taught(criterion, regions):
    return Loss(lambda b: pseudo_label_loss(b.student, b.peer, b.keep, regions=regions, criterion=criterion))


def taught_hard(form, *, regions=False):
    """Against the peer's hard labels."""

    def of(b):
        labels = b.peer.detach().argmax(1)
        return hard_label_loss(b.student, Truth(labels, b.keep, b.peer.detach() > 0 if regions else None), form)

    return Loss(of)


KL = collaborative_kl
CRITERIA = ("dice", "dice_foreground", "dice_nnunet", "ce", "dice_ce", "kl")
# module.function -> variant -> how to call it
LOSSES: dict[str, dict[str, Loss]] = {
    "boundary_contrast.boundary_contrast": {
        "": Loss(lambda b: boundaries.boundary_contrast(vectors(b.student), vectors(b.peer)), mask=None),
    },
    "boundary_contrast.diagonal_contrast": {
        # Its pairs are those of one process, as released.
        "": Loss(lambda b: boundaries.diagonal_contrast(b.student, b.peer), mask=None, one_batch=False),
    },
    "boundary_contrast.distance_error": {
        "": Loss(lambda b: boundaries.distance_error(b.student, b.peer.detach().float().sigmoid(), b.keep)),
    },
    "class_aware.class_aware_kl": {
        order: Loss(
            lambda b, order=order: class_aware.class_aware_kl(
                b.student, b.peer, b.truth, num_classes=CLASSES, order=order
            )
        )
        for order in ("target_first", "student_first")
    },
    "class_aware.region_class_aware_kl": {
        "": Loss(lambda b: class_aware.region_class_aware_kl(b.student, b.peer, b.regions, b.keep)),
    },
    "class_aware_pair.class_aware_pair": {
        "first": Loss(lambda b: pair_of_features(b)[0]),
        "second": Loss(lambda b: pair_of_features(b._replace(student=b.peer, peer=b.student))[1]),
    },
    "collaborative_kl.mutual_kl": {"": Loss(lambda b: KL.mutual_kl(b.student, b.peer, b.truth))},
    "collaborative_kl.ensemble_kl": {"": Loss(lambda b: KL.ensemble_kl(b.student, b.peer, b.truth))},
    "collaborative_kl.selective_kl": {"": Loss(lambda b: KL.selective_kl(b.student, b.peer, b.truth))},
    "collaborative_kl.rectified_kl": {
        "": Loss(lambda b: KL.rectified_kl(b.student, b.peer, b.truth)),
        "skip": Loss(lambda b: KL.rectified_kl(b.student, b.peer, b.truth, unsure_peer="skip")),
        "student_first": Loss(lambda b: KL.rectified_kl(b.student, b.peer, b.truth, order="student_first")),
    },
    "collaborative_pair.collaborative_pair": {
        "first": Loss(lambda b: collaborative_pair.collaborative_pair(b.student, b.peer, b.truth)[0]),
        "second": Loss(lambda b: collaborative_pair.collaborative_pair(b.peer, b.student, b.truth)[1]),
        "regions": Loss(
            lambda b: collaborative_pair.collaborative_pair(b.student, b.peer, Truth(b.labels, b.keep, b.regions))[0]
        ),
    },
    "consistency.squared_difference": {
        "classes": Loss(lambda b: squared_difference(b.student, b.peer, b.keep, regions=False)),
        "regions": Loss(lambda b: squared_difference(b.student, b.peer, b.keep, regions=True)),
    },
    "duality.consistency_loss": {
        "softmax": against_target(duality.consistency_loss, "softmax", CLASSES - 1),
        "sigmoid": against_target(duality.consistency_loss, "sigmoid", CLASSES),
        "released": against_target(
            duality.consistency_loss, "sigmoid", CLASSES - 1, mse_on="logit", dice_per_sample=True
        ),
    },
    "duality.paper_equation_2": {
        "softmax": against_target(duality.paper_equation_2, "softmax", CLASSES - 1),
        "sigmoid": against_target(duality.paper_equation_2, "sigmoid", CLASSES),
    },
    "duality.mean_excess": {
        # All ranks have the whole batch's value, which the Lagrangian squares.
        "": Loss(lambda b: duality.mean_excess(b.student.sigmoid(), b.peer.sigmoid(), b.keep)),
    },
    "duality.logit_excess": {"": Loss(lambda b: duality.logit_excess(b.student, 0.5), mask=None)},
    "hard_labels.hard_label_loss": {
        "": taught_hard(HardLabelForm()),
        "per sample": taught_hard(HardLabelForm(batch_dice=False)),
        "cross-entropy": taught_hard(HardLabelForm(dice=False)),
        "regions": taught_hard(HardLabelForm(), regions=True),
        "regions, summed": taught_hard(HardLabelForm(sum_regions=True), regions=True),
    },
    "positive_supervision.positive_supervision": {
        # Every rank draws for itself; tests/losses/test_positive_supervision_ranks.py compares the ranks.
        "": Loss(supervised_positives, mask="reliable", one_batch=False),
    },
    "pseudo_labels.pseudo_label_loss": {
        f"{criterion} {'regions' if regions else 'classes'}": taught(criterion, regions)
        for criterion in CRITERIA
        for regions in (False, True)
    },
}
VARIANTS = [(name.split(".")[1], loss) for name, variants in LOSSES.items() for loss in variants.values()]
IDS = [f"{name}-{variant}".strip("-") for name, variants in LOSSES.items() for variant in variants]
every_loss = pytest.mark.parametrize(("name", "loss"), VARIANTS, ids=IDS)


def public_functions():
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                yield f"{info.name}.{name}"


def a_batch(dtype=torch.float32, scale=1.0, seed=3):
    generator = torch.Generator().manual_seed(seed)
    student, peer = (
        (torch.randn(BATCH, CLASSES, *SIZE, generator=generator) * scale).clamp(-1e4, 1e4).to(dtype).requires_grad_()
        for _ in range(2)
    )
    labels = torch.randint(CLASSES, (BATCH, *SIZE), generator=generator)
    return Batch(student, peer, labels, torch.ones(BATCH, *SIZE, dtype=torch.bool))


def some_ignored(batch):
    """Half of the second sample is ignored, the first is kept whole."""
    keep = batch.keep.clone()
    keep[1, : SIZE[0] // 2] = False
    return batch._replace(keep=keep)


def value_and_gradient(loss, batch):
    value = loss.of(batch)
    (gradient,) = torch.autograd.grad(value, batch.student)
    return value.detach(), gradient


def test_every_public_function_of_the_losses_is_in_the_table_or_known_to_be_no_loss():
    others = {f"{module}.{name}" for module, names in OTHERS.items() for name in names}
    assert not others & set(LOSSES)
    assert set(public_functions()) == others | set(LOSSES)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_finite_scalar_of_float32_at_least_with_a_gradient_in_the_dtype_of_the_logits(name, loss, dtype):
    batch = a_batch(dtype)
    value, gradient = value_and_gradient(loss, batch)
    assert value.shape == ()
    in_float32 = name == "positive_supervision"
    assert value.dtype is (torch.float64 if dtype is torch.float64 and not in_float32 else torch.float32)
    assert gradient.dtype is dtype
    assert gradient.shape == batch.student.shape
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_autocast_change_nothing_but_the_rounding_of_the_logits(name, loss, dtype):
    low = a_batch(dtype)
    same = low._replace(student=low.student.detach().double().requires_grad_(), peer=low.peer.detach().double())
    want, _ = value_and_gradient(loss, same)
    with torch.autocast("cpu", dtype=dtype):
        value, gradient = value_and_gradient(loss, low)
    assert value.dtype is torch.float32
    # Vectors and probabilities that a test hands over in half precision are rounded themselves.
    rounded = name in ("boundary_contrast", "mean_excess")
    tolerance = 2 * torch.finfo(dtype).eps if rounded else 1e-5
    torch.testing.assert_close(value.double(), want.double(), rtol=tolerance, atol=tolerance)
    assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_extreme_logits_stay_finite(name, loss, dtype):
    value, gradient = value_and_gradient(loss, a_batch(dtype, scale=1e7))  # all of them +-1e4
    assert value.isfinite()
    assert gradient.isfinite().all()


@every_loss
def test_only_the_student_gets_a_gradient(name, loss):
    batch = a_batch()
    _, to_peer = torch.autograd.grad(loss.of(batch), [batch.student, batch.peer], allow_unused=True)
    assert to_peer is None or not to_peer.any()


@every_loss
@pytest.mark.parametrize("absent", range(CLASSES))
def test_a_class_may_be_absent(name, loss, absent):
    batch = a_batch()
    labels = torch.where(batch.labels == absent, (absent + 1) % CLASSES, batch.labels)
    value, gradient = value_and_gradient(loss, batch._replace(labels=labels))
    assert value.isfinite()
    assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("scale", [1.0, 1e7], ids=["usual", "extreme"])
def test_where_all_is_ignored_it_is_exactly_zero_with_zero_gradient(name, loss, scale):
    if loss.mask is None:
        assert "keep" not in inspect.signature(function_of(name)).parameters
        return
    batch = a_batch(scale=scale)
    value, gradient = value_and_gradient(loss, batch._replace(keep=torch.zeros_like(batch.keep)))
    assert value == 0
    assert not gradient.any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32], ids=str)
def test_a_mask_that_is_not_boolean_is_refused_by_name(name, loss, dtype):
    if loss.mask is None:
        assert "keep" not in inspect.signature(function_of(name)).parameters
        return
    batch = a_batch()
    with pytest.raises(TypeError, match=rf"^{name}: {loss.mask} must be torch\.bool .*; got {dtype}\.$"):
        loss.of(batch._replace(keep=batch.keep.to(dtype)))


@every_loss
@pytest.mark.parametrize("which", ["one sample less", "an axis more"])
def test_a_mask_of_another_shape_is_refused_by_name(name, loss, which):
    if loss.mask is None:
        assert "keep" not in inspect.signature(function_of(name)).parameters
        return
    batch = a_batch()
    keep = batch.keep[:1] if which == "one sample less" else batch.keep.unsqueeze(1)
    with pytest.raises(ValueError, match=rf"^{name}: {loss.mask} has one value per voxel"):
        loss.of(batch._replace(keep=keep))


@every_loss
def test_samples_of_the_peer_that_are_not_the_students_are_refused_by_name(name, loss):
    if name in ("logit_excess",):  # it has no peer
        return
    batch = a_batch()
    with pytest.raises(ValueError, match=rf"^{name}: "):
        loss.of(batch._replace(peer=batch.peer[:1]))


@every_loss
def test_two_ranks_have_the_value_and_the_gradient_of_one_process(name, loss, on_every_rank):
    if not loss.one_batch:
        return
    batch = some_ignored(a_batch(torch.float64))
    want, want_gradient = value_and_gradient(loss, batch)

    def of_rank(rank):
        mine = Batch(*(tensor[rank : rank + 1].detach() for tensor in batch))
        return value_and_gradient(loss, mine._replace(student=mine.student.requires_grad_()))

    values, gradients = zip(*on_every_rank(of_rank), strict=True)
    torch.testing.assert_close(sum(values) / len(values), want)
    torch.testing.assert_close(torch.cat(gradients) / len(gradients), want_gradient)


def function_of(name):
    (path,) = (path for path in LOSSES if path.endswith(f".{name}"))
    module, function = path.split(".")
    return getattr(importlib.import_module(f"{package.__name__}.{module}"), function)
