"""CPS of two ranks with half a batch each beside one process with all of it, everything drawn."""

from __future__ import annotations

import pytest
import torch
from drawing import Everything, class_by_class

import nnunet_collab.losses.positive_supervision as module
from nnunet_collab.losses.positive_supervision import Supervision, positive_supervision
from nnunet_collab.methods.crln.projection import VoxelProjection

CHANNELS, WIDTH, CLASSES, SIZE = 4, 5, 3, (5, 6)
CHOICE = {"tau": 0.5, "xi": 0.6, "temperature": 0.5, "anchors": 4, "negatives": 3}
HALVES = (slice(0, 2), slice(2, 4))


@pytest.fixture(autouse=True)
def everything(monkeypatch):
    monkeypatch.setattr(module, "_draw", class_by_class(Everything(CHOICE["negatives"])))


def make():
    """Two images per half; the first are alike, so that both halves hold the same negatives, the second are not."""
    torch.manual_seed(0)
    projection = VoxelProjection(2, CHANNELS, WIDTH)
    features = torch.randn(4, CHANNELS, *SIZE)
    labels = torch.randint(CLASSES, (4, *SIZE))
    reliable = torch.rand(4, *SIZE) < 0.8
    confidence = torch.rand(4, CLASSES, *SIZE)
    features[3] += 2  # a mean of its own
    labels[3].clamp_(max=1)
    reliable[3, 2:] = False
    for values in (features, labels, reliable, confidence):
        values[2] = values[0]
    return projection, features, torch.randn(CLASSES, 6, WIDTH), Supervision(labels, reliable, confidence)


def value_and_gradients(projection, features, prototypes, known, **choice):
    features = features.clone().requires_grad_()
    value = positive_supervision(projection, features, prototypes, known, **{**CHOICE, "positives": "both", **choice})
    gradients = torch.autograd.grad(value, [features, *projection.parameters()])
    return [value.detach(), *gradients]


def shared(on_every_rank, projection, features, prototypes, known, **choice):
    """Means over the ranks, as DistributedDataParallel makes them."""

    def of_half(rank):
        half = HALVES[rank]
        own = Supervision(*(values[half] for values in known))
        return value_and_gradients(projection, features[half], prototypes, own, **choice)

    values, of_features, *of_weights = zip(*on_every_rank(of_half), strict=True)
    return [sum(values) / 2, torch.cat(of_features) / 2, *(sum(gradients) / 2 for gradients in of_weights)]


def certain_on_the_second(known, classes=slice(None)):
    confidence = known.confidence.clone()
    confidence[2:, classes] = 1.0
    return known._replace(confidence=confidence)


def unreliable(known, images):
    reliable = known.reliable.clone()
    reliable[images] = False
    return known._replace(reliable=reliable)


def one_class_on_the_second(known):
    labels = known.labels.clone()
    labels[2:] = 1
    return known._replace(labels=labels)


@pytest.mark.parametrize("positives", ["mean", "learned", "both"])
def test_two_ranks_have_the_value_and_the_gradients_of_one_process(on_every_rank, positives):
    case = make()
    want = value_and_gradients(*case, positives=positives)
    assert want[0] > 0.5
    for a, b in zip(shared(on_every_rank, *case, positives=positives), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        certain_on_the_second,
        lambda known: certain_on_the_second(known, 1),
        lambda known: unreliable(known, slice(2, 4)),
    ],
    ids=["anchors", "anchors of a class", "reliable voxels"],
)
def test_one_rank_alone_may_have(on_every_rank, change):
    projection, features, prototypes, known = make()
    case = projection, features, prototypes, change(known)
    for a, b in zip(shared(on_every_rank, *case), value_and_gradients(*case), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_rank_that_sees_a_single_class_has_no_negatives_but_a_part_in_the_positive(on_every_rank):
    projection, features, prototypes, known = make()
    known = one_class_on_the_second(known)
    found = shared(on_every_rank, projection, features, prototypes, known)
    want = value_and_gradients(projection, features, prototypes, certain_on_the_second(known))
    first = value_and_gradients(projection, features[:2], prototypes, Supervision(*(values[:2] for values in known)))
    assert want[0] != pytest.approx(first[0].item(), rel=1e-3)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["nothing reliable", "nothing uncertain", "a class per rank"])
def test_where_no_rank_has_anchors_and_negatives_it_is_zero_with_zero_gradient(on_every_rank, what):
    projection, features, prototypes, known = make()
    labels = torch.zeros_like(known.labels)
    labels[2:] = 1
    known = {
        "nothing reliable": unreliable(known, slice(None)),
        "nothing uncertain": known._replace(confidence=torch.ones_like(known.confidence)),
        "a class per rank": known._replace(labels=labels),
    }[what]
    assert not any(values.any() for values in shared(on_every_rank, projection, features, prototypes, known))
