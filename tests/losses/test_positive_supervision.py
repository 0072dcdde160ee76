"""CPS beside equations 9 to 14, with the voxels it drew, one anchor and one negative at a time in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from drawing import class_by_class

import nnunet_collab.losses.positive_supervision as module
from nnunet_collab.losses.positive_supervision import Supervision, positive_supervision
from nnunet_collab.methods.crln.projection import VoxelProjection

CLASSES, CHANNELS, WIDTH = 3, 4, 5
SHAPES = [(2, 5, 6), (2, 3, 4, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
CHOICE = {"tau": 0.5, "xi": 0.6, "temperature": 0.5, "positives": "both", "anchors": 4, "negatives": 3}


class Pointwise(torch.nn.Module):
    """r = W f without neighbors: what reaches which voxel is plain to see."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def at(self, features, voxels):
        rows = [self.weight @ features[(b, slice(None), *v)] for b, *v in voxels.tolist()]
        return torch.stack(rows) if rows else features.new_zeros(0, len(self.weight))

    def fixed(self, features):
        return Constants(lambda voxels: self.at(features, voxels))


class Constants:
    """Features of voxels by a function, without gradient."""

    def __init__(self, at):
        self.at = torch.no_grad()(at)

    def mean_of(self, members):
        voxels = [members[:, c].nonzero() for c in range(members.shape[1])]
        nothing = self.at(torch.zeros_like(voxels[0][:0])).sum(0) * math.nan
        return torch.stack([self.at(v).mean(0) if len(v) else nothing for v in voxels])


class Drawing:
    """Draws class by class, and remembers from what and what."""

    def __init__(self):
        self.calls = []
        self.generator = torch.Generator().manual_seed(8)

    def __call__(self, voxels, count):
        chosen = voxels[torch.randint(len(voxels), (count,), generator=self.generator)]
        self.calls.append((voxels.tolist(), chosen.tolist()))
        return chosen


@pytest.fixture
def drawing(monkeypatch):
    drawing = Drawing()
    monkeypatch.setattr(module, "_draw", class_by_class(drawing))
    return drawing


def make(shape=SHAPES[0], seed=0):
    """Projection, features, prototypes and what is known, all in double precision's values of float32."""
    torch.manual_seed(seed)
    projection = Pointwise(torch.randn(WIDTH, CHANNELS))
    features = torch.randn(shape[0], CHANNELS, *shape[1:], requires_grad=True)
    prototypes = torch.randn(CLASSES, 6, WIDTH, requires_grad=True)
    known = Supervision(
        labels=torch.randint(CLASSES, shape),
        reliable=torch.rand(shape) < 0.7,
        confidence=torch.rand(shape[0], CLASSES, *shape[1:]),
    )
    return projection, features, prototypes, known


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def sets(known, tau):
    """Per class its members, uncertain members, and the reliable voxels of other classes (equations 9 to 12)."""
    labels, reliable, confidence = (t.numpy() for t in known)
    found = [([], [], []) for _ in range(CLASSES)]
    for b, *v in np.ndindex(*labels.shape):
        voxel = [b, *v]
        if not reliable[tuple(voxel)]:
            continue
        for c in range(CLASSES):
            if labels[tuple(voxel)] == c:
                found[c][0].append(voxel)
                if confidence[(b, c, *v)] < tau:
                    found[c][1].append(voxel)
            else:
                found[c][2].append(voxel)
    return found


def projected(projection, features, voxel):
    b, *v = voxel
    weight, features = projection.weight.detach().double().numpy(), features.detach().double().numpy()
    return weight @ features[(b, slice(None), *v)]


def reference(projection, features, prototypes, known, calls, *, tau, xi, temperature, positives, anchors, negatives):
    """Equation 14 with the voxels of the calls: per class of the anchors and of the negatives, in turn."""
    prototypes = prototypes.detach().double().numpy()
    calls = iter(calls)
    per_class = []
    for c, (members, uncertain, others) in enumerate(sets(known, tau)):
        if not uncertain:
            continue
        (pool, drawn), (pool_of_negatives, drawn_negatives) = next(calls), next(calls)
        assert sorted(pool) == uncertain
        assert sorted(pool_of_negatives) == others
        assert (len(drawn), len(drawn_negatives)) == (anchors, anchors * negatives)
        mean = np.mean([projected(projection, features, v) for v in members], axis=0)
        learned = np.mean(prototypes[c], axis=0)
        positive = {"mean": mean, "learned": learned, "both": (mean + xi * learned) / (1 + xi)}[positives]
        total = 0.0
        for i, voxel in enumerate(drawn):
            anchor = projected(projection, features, voxel)
            own = math.exp(cosine(anchor, positive) / temperature)
            other = sum(
                math.exp(cosine(anchor, projected(projection, features, n)) / temperature)
                for n in drawn_negatives[i * negatives : (i + 1) * negatives]
            )
            total -= math.log(own / (own + other))
        per_class.append(total / anchors)
    assert next(calls, None) is None
    return sum(per_class) / len(per_class)


# ---------------------------------------------------------------- the value


@pytest.mark.parametrize("positives", ["mean", "learned", "both"])
@each_shape
def test_value_equals_the_equation(shape, positives, drawing):
    case, choice = make(shape), {**CHOICE, "positives": positives}
    value = positive_supervision(*case, **choice)
    assert (value.shape, value.dtype) == ((), torch.float32)
    assert len(drawing.calls) == 2 * CLASSES
    assert value.item() == pytest.approx(reference(*case, drawing.calls, **choice), rel=1e-5)


@pytest.mark.parametrize("change", [{"xi": 0.0}, {"xi": 2.0}, {"temperature": 0.1}, {"tau": 0.2}, {"negatives": 7}])
def test_every_setting_is_that_of_the_equation(change, drawing):
    case, choice = make(), {**CHOICE, **change}
    value = positive_supervision(*case, **choice)
    assert value.item() == pytest.approx(reference(*case, drawing.calls, **choice), rel=1e-5)


@pytest.mark.parametrize("at_a_time", [1, 7])
def test_negatives_in_parts_give_the_same_value_and_gradients(at_a_time, monkeypatch):
    projection, features, prototypes, known = make()
    found = []
    for number in (module.AT_A_TIME, at_a_time):
        monkeypatch.setattr(module, "AT_A_TIME", number)
        torch.manual_seed(1)
        value = positive_supervision(projection, features, prototypes, known, **CHOICE)
        found.append([value, *torch.autograd.grad(value, [features, projection.weight])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def by_hand(features, labels, prototypes, monkeypatch, *, uncertain, **choice):
    """Two channels, an identity as projection; the voxels of `uncertain` alone are anchors; draws go round."""
    monkeypatch.setattr(
        module, "_draw", class_by_class(lambda voxels, count: voxels[torch.arange(count) % len(voxels)])
    )
    features = torch.tensor(features).t().reshape(1, 2, -1, 1).requires_grad_()
    labels = torch.tensor(labels).reshape(1, -1, 1)
    confidence = torch.ones(1, 2, *labels.shape[1:])
    confidence[:, :, uncertain] = 0.1
    known = Supervision(labels, torch.ones_like(labels, dtype=torch.bool), confidence)
    return positive_supervision(
        Pointwise(torch.eye(2)), features, torch.tensor(prototypes), known, tau=0.97, temperature=0.5, **choice
    )


def test_a_hand_sized_case_of_info_nce(monkeypatch):
    value = by_hand(
        [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]],
        [0, 1, 1],
        [[[9.0, 9.0]], [[9.0, 9.0]]],
        monkeypatch,
        uncertain=[0],
        xi=0.6,
        positives="mean",
        anchors=1,
        negatives=2,
    )
    assert value.item() == pytest.approx(0.1429316, abs=1e-7)


def test_a_hand_sized_case_of_the_positive(monkeypatch):
    # r_m = (1, 0) and P = {(0, 1), (0, 3)} make (.625, .75); the anchor is (1, 0), its negative (0, 1).
    value = by_hand(
        [[1.0, 0.0], [0.0, 1.0]],
        [0, 1],
        [[[0.0, 1.0], [0.0, 3.0]], [[7.0, 7.0], [7.0, 7.0]]],
        monkeypatch,
        uncertain=[0],
        xi=0.6,
        positives="both",
        anchors=2,
        negatives=3,
    )
    own = 0.625 / math.hypot(0.625, 0.75)
    assert value.item() == pytest.approx(math.log(1 + 3 * math.exp(-own / 0.5)), rel=1e-6)


def test_the_positive_of_the_hand_sized_case():
    case = torch.tensor([[[1.0]], [[0.0]]]).view(1, 2, 1, 1)
    members = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    prototypes = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]])
    found = module._positives(Pointwise(torch.eye(2)).fixed(case), prototypes, members, 0.6, "both")
    assert found.tolist() == [pytest.approx([0.625, 0.75])]


@each_shape
def test_it_works_the_same_through_the_projection_of_some_voxels(shape):
    _, features, prototypes, known = make(shape)
    projection = VoxelProjection(len(shape) - 1, CHANNELS, WIDTH)

    class Whole:
        """Reads from the whole projected map."""

        parameters = projection.parameters

        def at(self, features, voxels):
            return projection(features)[(voxels[:, 0], slice(None), *voxels[:, 1:].unbind(1))]

        def fixed(self, features):
            return Constants(lambda voxels: self.at(features, voxels))

    inputs = [features, *projection.parameters()]
    found = []
    for one in (projection, Whole()):
        torch.manual_seed(1)
        value = positive_supervision(one, features, prototypes, known, **CHOICE)
        found.append([value, *torch.autograd.grad(value, inputs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- gradients


def constant_but_anchors(projection, features, prototypes, calls, known):
    """Equation 14 for autograd, with positives and negatives as plain numbers."""
    losses, calls = [], iter(calls)
    for c, (members, uncertain, _) in enumerate(sets(known, CHOICE["tau"])):
        if not uncertain:
            continue
        (_, drawn), (_, drawn_negatives) = next(calls), next(calls)
        mean = np.mean([projected(projection, features, v) for v in members], axis=0)
        learned = prototypes.detach().double().numpy()[c].mean(axis=0)
        positive = (mean + CHOICE["xi"] * learned) / (1 + CHOICE["xi"])
        total, m = 0.0, CHOICE["negatives"]
        for i, voxel in enumerate(drawn):
            anchor = projection.at(features, torch.tensor([voxel]))[0].double()
            others = [projected(projection, features, n) for n in drawn_negatives[i * m : (i + 1) * m]]
            near = [
                (anchor @ torch.from_numpy(r) / (anchor.norm() * np.linalg.norm(r)) / CHOICE["temperature"]).exp()
                for r in (positive, *others)
            ]
            total = total - (near[0] / sum(near)).log()
        losses.append(total / len(drawn))
    return sum(losses) / len(losses)


@each_shape
def test_only_the_anchors_carry_a_gradient(shape, drawing):
    projection, features, prototypes, known = make(shape)
    value = positive_supervision(projection, features, prototypes, known, **CHOICE)
    found = torch.autograd.grad(value, [features, projection.weight])
    want = torch.autograd.grad(
        constant_but_anchors(projection, features, prototypes, drawing.calls, known), [features, projection.weight]
    )
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    drawn = {tuple(voxel) for _, chosen in drawing.calls[::2] for voxel in chosen}
    moved = {tuple(voxel) for voxel in found[0].abs().sum(1).nonzero().tolist()}
    assert moved == drawn
    assert len(drawn) < known.labels.numel() / 2


def test_prototypes_and_confidences_learn_nothing():
    projection, features, prototypes, known = make()
    confidence = known.confidence.clone().requires_grad_()
    positive_supervision(projection, features, prototypes, known._replace(confidence=confidence), **CHOICE).backward()
    assert prototypes.grad is None
    assert confidence.grad is None


def test_a_step_downhill_draws_the_anchors_to_their_class():
    projection, features, prototypes, known = make()
    values = []
    for _ in range(5):
        torch.manual_seed(2)
        value = positive_supervision(projection, features, prototypes, known, **CHOICE)
        values.append(value.item())
        (gradient,) = torch.autograd.grad(value, [features])
        features = (features - 2.0 * gradient).detach().requires_grad_()
    assert values == sorted(values, reverse=True)


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize(
    "what", ["one class", "one reliable class", "nothing reliable", "nothing uncertain", "confidence of tau"]
)
def test_without_two_classes_or_without_anchors_it_is_zero_with_zero_gradient(what):
    projection, features, prototypes, known = make()
    known = {
        "one class": known._replace(labels=torch.ones_like(known.labels)),
        "one reliable class": known._replace(reliable=known.labels == 2),
        "nothing reliable": known._replace(reliable=torch.zeros_like(known.reliable)),
        "nothing uncertain": known._replace(confidence=torch.ones_like(known.confidence)),
        "confidence of tau": known._replace(confidence=torch.full_like(known.confidence, CHOICE["tau"])),
    }[what]
    value = positive_supervision(projection, features, prototypes, known, **CHOICE)
    assert (value.item(), value.shape, value.dtype) == (0.0, (), torch.float32)
    value.backward()
    for gradient in (features.grad, projection.weight.grad):
        assert gradient is not None
        assert not gradient.any()


def test_a_class_without_anchors_is_skipped_and_still_gives_negatives(drawing):
    projection, features, prototypes, known = make()
    known.confidence[:, 1] = 0.99
    value = positive_supervision(projection, features, prototypes, known, **CHOICE)
    assert len(drawing.calls) == 4
    assert value.item() == pytest.approx(reference(*make_known(known), drawing.calls, **CHOICE), rel=1e-5)
    labels = {int(known.labels[tuple(v)]) for v in drawing.calls[1][0]}
    assert labels == {1, 2}


def make_known(known):
    return (*make()[:3], known)


def test_a_class_that_is_absent_does_not_spoil_the_others(drawing):
    projection, features, prototypes, known = make()
    known = known._replace(labels=known.labels.clamp(max=1))
    value = positive_supervision(projection, features, prototypes, known, **CHOICE)
    assert value.isfinite()
    assert len(drawing.calls) == 4
    assert value.item() == pytest.approx(reference(*make_known(known), drawing.calls, **CHOICE), rel=1e-5)


def test_background_is_a_class_like_any_other(drawing):
    projection, features, prototypes, known = make()
    positive_supervision(projection, features, prototypes, known, **CHOICE)
    assert {int(known.labels[tuple(v)]) for v in drawing.calls[0][0]} == {0}


def test_the_seed_determines_the_draws():
    case = make()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(positive_supervision(*case, **CHOICE).item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("what", ["all", "a class without anchors", "a class that is absent"])
@each_shape
def test_draws_are_uniform_with_replacement_from_the_sets_of_the_equations(shape, what):
    known = make(shape)[3]
    if what == "a class without anchors":
        known.confidence[:, 1] = 0.99
    if what == "a class that is absent":
        known = known._replace(labels=known.labels.clamp(max=1))
    count, m = 4000, 2
    drawn = module._draw(known, 0.5, count, m)
    assert drawn.of_class.tolist() == [c for c in range(CLASSES) for _ in range(count)]
    anchors, negatives = drawn.anchors.view(CLASSES, count, -1), drawn.negatives.view(CLASSES, count * m, -1)
    for c, (_, uncertain, others) in enumerate(sets(known, 0.5)):
        for pool, chosen in ((uncertain, anchors[c]), (others if uncertain else [], negatives[c])):
            if pool:
                found, times = chosen.unique(dim=0, return_counts=True)
                assert found.tolist() == sorted(pool)
                expected = len(chosen) / len(pool)
                assert (times - expected).abs().max() < 6 * math.sqrt(expected)


def test_the_lengths_of_features_do_not_matter(drawing):
    projection, features, prototypes, known = make()
    choice = {**CHOICE, "positives": "learned"}
    values = []
    for scale in (1.0, 100.0):
        drawing.generator.manual_seed(0)
        values.append(positive_supervision(projection, features * scale, prototypes * scale, known, **choice).item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_autocast_changes_nothing():
    _, features, prototypes, known = make()
    projection = VoxelProjection(2, CHANNELS, WIDTH)
    values = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(positive_supervision(projection, features, prototypes, known, **CHOICE))
    assert values[1].dtype is torch.float32
    assert torch.equal(*values)
