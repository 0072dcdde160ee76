"""The four logit losses of CTRCL's Table IV: mutual, rectified (RLCL, equation 12), ensemble and selective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference_ctrcl import factor_subsets, logit_case, logit_loss, logit_loss_fast
from torch import Tensor

from nnunet_collab.core.types import Truth, region_truth
from nnunet_collab.losses.collaborative_kl import as_two_classes, ensemble_kl, mutual_kl, rectified_kl, selective_kl
from nnunet_collab.losses.collaborative_pair import collaborative_pair

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mutual": mutual_kl,
    "rectified": rectified_kl,
    "ensemble": ensemble_kl,
    "selective": selective_kl,
}
ORDERS = ("target_first", "student_first")
SHAPES = [(2, 4, 5, 6), (2, 3, 3, 4, 5)]
each_loss = pytest.mark.parametrize("kind", LOSSES)
each_order = pytest.mark.parametrize("order", ORDERS)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def make(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = True
) -> tuple[Tensor, Tensor, Truth]:
    """Both students' logits and the truth; right and wrong peers, worse and better peers, kept and ignored."""
    student, peer, labels, keep = (torch.from_numpy(a) for a in logit_case(shape, seed))
    right = peer.argmax(1) == labels
    scores = [torch.nn.functional.cross_entropy(z, labels, reduction="none") for z in (student, peer)]
    better = scores[1] < scores[0]
    for group in (right & better, right & ~better, ~right & better, ~right & ~better):
        assert (group & keep).any()
    return student.to(dtype).requires_grad_(grad), peer.to(dtype), Truth(labels.masked_fill(~keep, 0), keep)


def arrays(student: Tensor, peer: Tensor, truth: Truth) -> tuple[np.ndarray, ...]:
    return (*(t.detach().double().numpy() for t in (student, peer)), truth.labels.numpy(), truth.keep.numpy())


def expected(kind: str, student: Tensor, peer: Tensor, truth: Truth, order: str) -> list[Tensor]:
    want, slope = logit_loss(kind, *arrays(student, peer, truth), order)
    return [torch.tensor(want, dtype=torch.float64), torch.from_numpy(slope)]


def value_and_grad(
    loss: Callable[..., Tensor], student: Tensor, *rest: object, autocast: bool = False, **settings: object
) -> list[Tensor]:
    leaf = student.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(leaf, *rest, **settings)
    return [value.detach(), *torch.autograd.grad(value, leaf)]


def same(a: list[Tensor], b: list[Tensor], rtol: float = 1e-12) -> None:
    for first, second in zip(a, b, strict=True):
        torch.testing.assert_close(first, second, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@each_shape
@each_order
@each_loss
def test_value_and_gradient_equal_the_equation(
    kind: str, order: str, shape: tuple[int, ...], dtype: torch.dtype, rtol: float
) -> None:
    student, peer, truth = make(shape, dtype=dtype)
    before = [t.detach().clone() for t in (student, peer, *truth[:2])]
    value = LOSSES[kind](student, peer, truth, order=order)
    value.backward()
    want, slope = logit_loss(kind, *arrays(student, peer, truth), order)
    assert value.shape == ()
    assert value.dtype is dtype
    assert want > 0.01
    assert value.item() == pytest.approx(want, rel=rtol)
    torch.testing.assert_close(student.grad.double(), torch.from_numpy(slope), rtol=rtol, atol=rtol * 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, (student, peer, *truth[:2]), strict=True))


@pytest.mark.parametrize("factors", factor_subsets())
@each_shape
@each_order
def test_rectified_with_every_subset_of_factors(order: str, shape: tuple[int, ...], factors: tuple[str, ...]) -> None:
    student, peer, truth = make(shape)
    got, slope = value_and_grad(rectified_kl, student, peer, truth, factors=factors, order=order)
    want, want_slope = logit_loss("rectified", *arrays(student, peer, truth), order, factors)
    assert got.item() == pytest.approx(want, rel=1e-9)
    torch.testing.assert_close(slope, torch.from_numpy(want_slope), rtol=1e-9, atol=1e-14)
    if not factors:
        same([got, slope], value_and_grad(mutual_kl, student, peer, truth, order=order))


@pytest.mark.parametrize("factors", factor_subsets())
@each_shape
@each_order
def test_an_unsure_peer_that_is_skipped_teaches_nothing(
    order: str, shape: tuple[int, ...], factors: tuple[str, ...]
) -> None:
    student, peer, truth = make(shape)
    voxels = arrays(student, peer, truth)
    want, want_slope = logit_loss("rectified", *voxels, order, factors, skip=True)
    without, _ = logit_loss("rectified", *voxels, order, factors)
    assert 0 < want < without
    got = value_and_grad(rectified_kl, student, peer, truth, factors=factors, order=order, unsure_peer="skip")
    both = collaborative_pair(student, peer, truth, factors=factors, order=order, unsure_peer="skip")
    for value, slope in (got, (both[0], *torch.autograd.grad(both[0], student))):
        assert value.item() == pytest.approx(want, rel=1e-9)
        torch.testing.assert_close(slope, torch.from_numpy(want_slope), rtol=1e-9, atol=1e-14)


def test_every_ingredient_matters_and_the_defaults_are_the_papers() -> None:
    student, peer, truth = make(SHAPES[0], grad=False)
    settings = [dict(order=o, factors=f) for o, f in itertools.product(ORDERS, factor_subsets())]
    values = sorted(rectified_kl(student, peer, truth, **s).item() for s in settings)
    assert min(b - a for a, b in itertools.pairwise(values)) > 1e-5
    assert rectified_kl(student, peer, truth).item() == pytest.approx(
        rectified_kl(student, peer, truth, order="target_first", factors=factor_subsets()[-1]).item(), rel=1e-12
    )
    others = sorted(loss(student, peer, truth, order=o).item() for loss in LOSSES.values() for o in ORDERS)
    assert min(b - a for a, b in itertools.pairwise(others)) > 1e-5


@pytest.mark.parametrize(
    ("loss", "student", "peer", "order", "want"),
    [
        (rectified_kl, (0.2, 0.5, 0.3), (0.6, 0.3, 0.1), "target_first", 0.4799795),
        (rectified_kl, (0.2, 0.5, 0.3), (0.6, 0.3, 0.1), "student_first", 0.9794677),
        (rectified_kl, (0.6, 0.3, 0.1), (0.2, 0.5, 0.3), "target_first", 0.3652740),  # the peer is right
        (rectified_kl, (0.6, 0.3, 0.1), (0.2, 0.5, 0.3), "student_first", 0.3960584),
        (mutual_kl, (0.6, 0.3, 0.1), (0.2, 0.5, 0.3), "target_first", 0.3652740),
        (mutual_kl, (0.6, 0.3, 0.1), (0.2, 0.5, 0.3), "student_first", 0.3960584),
        (selective_kl, (0.6, 0.3, 0.1), (0.2, 0.5, 0.3), "target_first", 0.3652740),  # the peer is better: .5 > .3
        (selective_kl, (0.2, 0.5, 0.3), (0.6, 0.3, 0.1), "target_first", 0.0),
        (ensemble_kl, (0.6, 0.3, 0.1), (0.2, 0.5, 0.3), "target_first", 0.0915162),  # .4 ln(.4/.6) + .4 ln(.4/.3) + ...
    ],
)
def test_hand_cases(
    loss: Callable[..., Tensor], student: tuple[float, ...], peer: tuple[float, ...], order: str, want: float
) -> None:
    z, t = (torch.tensor(p, dtype=torch.float64).log().reshape(1, 3, 1, 1) for p in (student, peer))
    truth = Truth(torch.ones(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, 1, dtype=torch.bool))
    assert loss(z, t, truth, order=order).item() == pytest.approx(want, abs=5e-7)


@each_shape
@each_order
@pytest.mark.parametrize("kind", ["mutual", "rectified", "selective"])  # the ensemble's frozen truth moves with s
def test_gradcheck(kind: str, order: str, shape: tuple[int, ...]) -> None:
    student, peer, truth = make(shape)
    loss = LOSSES[kind]
    assert torch.autograd.gradcheck(lambda s: loss(s, peer, truth, order=order), (student,), fast_mode=True)


@each_shape
@each_order
@each_loss
def test_each_direction_teaches_one_student(kind: str, order: str, shape: tuple[int, ...]) -> None:
    cnn, transformer, truth = make(shape)
    transformer.requires_grad_()
    loss = LOSSES[kind]
    loss(cnn, transformer, truth, order=order).backward()
    assert transformer.grad is None
    alone = cnn.grad.clone()
    cnn.grad = None
    (loss(cnn, transformer, truth, order=order) + 3.0 * loss(transformer, cnn, truth, order=order)).backward()
    other = value_and_grad(loss, transformer, cnn.detach(), truth, order=order)[1]
    same([cnn.grad, transformer.grad], [alone, 3.0 * other])
    assert (cnn.grad.abs().sum(1)[~truth.keep] == 0).all()
    if kind != "selective":
        assert (cnn.grad.abs().sum(1)[truth.keep] > 0).all()


@each_order
@each_loss
def test_batch_order_class_names_and_memory_layout_change_nothing(kind: str, order: str) -> None:
    student, peer, truth = make((3, 4, 6, 6))
    loss = LOSSES[kind]
    value, slope = value_and_grad(loss, student, peer, truth, order=order)
    flipped = value_and_grad(loss, student.flip(0), peer.flip(0), Truth(*(t.flip(0) for t in truth[:2])), order=order)
    same([value, slope.flip(0)], flipped)
    names = torch.tensor([2, 0, 3, 1])
    renamed = Truth(names.argsort()[truth.labels], truth.keep)
    same([value, slope[:, names]], value_and_grad(loss, student[:, names], peer[:, names], renamed, order=order))
    spread = [t.detach().permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1) for t in (student, peer)]
    turned = Truth(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in truth[:2]))
    assert not any(t.is_contiguous() for t in (*spread, *turned[:2]))
    same([value, slope], value_and_grad(loss, *spread, turned, order=order))


@each_order
@each_loss
def test_absent_classes_are_ordinary(kind: str, order: str) -> None:
    student, peer, (labels, keep, _) = make((2, 5, 5, 6))
    labels[labels == 4] = 0  # from the batch
    labels[0][labels[0] == 3] = 1  # from one sample
    truth = Truth(labels, keep)
    want = expected(kind, student, peer, truth, order)
    same(value_and_grad(LOSSES[kind], student, peer, truth, order=order), want, 1e-9)


@each_order
@pytest.mark.parametrize("wrong", [0, 1])
def test_all_right_and_all_wrong_peers(wrong: int, order: str) -> None:
    student, peer, (_, keep, _) = make(SHAPES[0])
    truth = Truth((peer.argmax(1) + wrong) % 4, keep)
    for kind, loss in LOSSES.items():
        want = expected(kind, student, peer, truth, order)
        same(value_and_grad(loss, student, peer, truth, order=order), want, 1e-9)
    ml, rlcl = (value_and_grad(f, student, peer, truth, order=order) for f in (mutual_kl, rectified_kl))
    assert torch.allclose(ml[0], rlcl[0], rtol=1e-12) is (wrong == 0)


@each_order
@each_loss
def test_agreement_costs_nothing(kind: str, order: str) -> None:
    student, _, (_, keep, _) = make(SHAPES[0])
    truth = Truth(student.detach().argmax(1), keep)
    value, slope = value_and_grad(LOSSES[kind], student, student.detach().clone(), truth, order=order)
    assert abs(value.item()) < 1e-12
    assert slope.abs().max() < 1e-12


@each_shape
@each_order
@each_loss
def test_nothing_kept_is_exactly_zero(kind: str, order: str, shape: tuple[int, ...]) -> None:
    student, peer, truth = make(shape)
    empty = Truth(truth.labels, torch.zeros_like(truth.keep))
    for poison in (0.0, math.nan, math.inf):
        value, slope = value_and_grad(LOSSES[kind], student + poison, peer + poison, empty, order=order)
        assert value.item() == 0.0
        assert torch.equal(slope, torch.zeros_like(slope))


@each_order
@each_loss
def test_one_kept_voxel_is_the_loss_of_that_voxel(kind: str, order: str) -> None:
    student, peer, (labels, *_) = make(SHAPES[1])
    total = 0.0
    for at in [(0, 1, 2, 3), (1, 0, 0, 0), (1, 2, 3, 4)]:
        keep = torch.zeros_like(labels, dtype=torch.bool)
        keep[at] = True
        want = expected(kind, student, peer, Truth(labels, keep), order)
        same(value_and_grad(LOSSES[kind], student, peer, Truth(labels, keep), order=order), want, 1e-9)
        total += want[0].item()
    assert total > 0


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan, 1e300])
@each_order
@each_loss
def test_ignored_voxels_cannot_leak(kind: str, order: str, poison: float) -> None:
    student, peer, truth = make(SHAPES[0])
    clean = value_and_grad(LOSSES[kind], student, peer, truth, order=order)
    drop = ~truth.keep[:, None]
    bad = [t.detach().masked_fill(drop, poison) for t in (student, peer)]
    one_bad = [t.detach().clone() for t in (student, peer)]
    for t in one_bad:
        t[:, 1:2][drop] = poison
    for pair in (bad, one_bad, [bad[0], peer], [student, bad[1]]):
        dirty = value_and_grad(LOSSES[kind], *pair, truth, order=order)
        same(dirty, clean)
        assert (dirty[1].abs().sum(1)[~truth.keep] == 0).all()


@pytest.mark.parametrize("size", [30.0, 100.0, 6e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@each_order
@each_loss
def test_extreme_logits_stay_finite_and_right(kind: str, order: str, dtype: torch.dtype, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(2, 2, 4, 6, 6, generator=generator).argsort(2)
    student, peer = torch.tensor([1.0, 0.5, -0.5, -1.0])[ranks] * size  # four levels: no ties
    student, peer = student.to(dtype), (0.9 * peer).to(dtype)
    labels = torch.randint(0, 4, (2, 6, 6), generator=generator)
    truth = Truth(labels, torch.rand(2, 6, 6, generator=generator) < 0.8)
    value, slope = value_and_grad(LOSSES[kind], student, peer, truth, order=order)
    assert value.dtype is torch.float32
    assert slope.dtype is dtype
    want, want_slope = logit_loss(kind, *arrays(student, peer, truth), order)
    assert value.item() == pytest.approx(want, rel=1e-4)
    assert want > 0.1
    torch.testing.assert_close(slope.double(), torch.from_numpy(want_slope), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_order
@each_loss
def test_half_precision_is_only_the_storage(kind: str, order: str, dtype: torch.dtype) -> None:
    student, peer, truth = make(SHAPES[0], dtype=dtype)
    want = value_and_grad(LOSSES[kind], student.float(), peer.float(), truth, order=order)
    for autocast in (False, True):
        got = value_and_grad(LOSSES[kind], student, peer, truth, order=order, autocast=autocast)
        same([got[0]], [want[0]], 1e-6)
        torch.testing.assert_close(got[1].float(), want[1], rtol=1e-2, atol=1e-5)
    wide = value_and_grad(LOSSES[kind], student.float(), peer.float(), truth, order=order, autocast=True)
    same(wide, want, 1e-6)


@pytest.mark.parametrize("shape", [(3, 5, 40, 41, 7), (2, 3, 130, 129), (1, 3, 70, 71, 72)])
@each_order
@each_loss
def test_large_volumes_equal_the_equation_on_whole_arrays(kind: str, order: str, shape: tuple[int, ...]) -> None:
    student, peer, truth = make(shape)
    got, slope = value_and_grad(LOSSES[kind], student, peer, truth, order=order)
    want, want_slope = logit_loss_fast(kind, *arrays(student, peer, truth), order)
    assert got.item() == pytest.approx(want, rel=1e-9)
    torch.testing.assert_close(slope, torch.from_numpy(want_slope), rtol=1e-8, atol=1e-14)


def test_selective_teaches_only_where_the_peer_is_strictly_better() -> None:
    # Both cross-entropies are exactly ln 2 for class 0, although the two predictions are far apart.
    tie = [torch.tensor(z).double().reshape(1, 3, 1, 1) for z in ([0.0, 0.0, -1000.0], [0.0, -1000.0, 0.0])]
    better = torch.tensor([2.0, 0.0, 0.0]).double().reshape(1, 3, 1, 1)
    student, peer = torch.cat([tie[0], tie[0]], 2), torch.cat([tie[1], better], 2)
    truth = Truth(torch.zeros(1, 2, 1, dtype=torch.int64), torch.ones(1, 2, 1, dtype=torch.bool))
    value, slope = value_and_grad(selective_kl, student, peer, truth, order="student_first")
    q = math.exp(2) / (math.exp(2) + 2)
    kl = 0.5 * math.log(0.5 / q) + 0.5 * math.log(1 / (1 - q))  # the other classes share 1 - q equally
    assert value.item() == pytest.approx(kl / 2, rel=1e-12)  # divided by both kept voxels
    assert (slope[:, :, 0] == 0).all()
    worse = Truth(peer.argmin(1), truth.keep)
    assert selective_kl(peer, student * 0, worse).item() > 0
    assert selective_kl(student * 0, peer, worse).item() == 0


@pytest.mark.parametrize("caller", ["peer", "labels", "keep", "channel axis", "batch", "classes"])
@each_loss
def test_shapes_must_agree(kind: str, caller: str) -> None:
    student, peer, (labels, keep, _) = make(SHAPES[0], grad=False)
    bad = {
        "peer": (student, peer[:, :, :4], labels, keep),
        "labels": (student, peer, labels[:, :4], keep),
        "keep": (student, peer, labels, keep[:, :4]),
        "channel axis": (student, peer, labels[:, None], keep),
        "batch": (student, peer, labels[:1], keep[:1]),
        "classes": (student, peer[:, :3], labels, keep),
    }[caller]
    with pytest.raises(ValueError, match=f"{kind}_kl") as caught:
        LOSSES[kind](bad[0], bad[1], Truth(*bad[2:]))
    message = str(caught.value)
    odd = [t for t, good in zip(bad, (student, peer, labels, keep), strict=True) if t.shape != good.shape]
    assert str(tuple(odd[0].shape)) in message
    assert any(str(tuple(t.shape)) in message for t in (student, labels))


@each_loss
def test_keep_must_be_boolean_and_order_known(kind: str) -> None:
    student, peer, (labels, keep, _) = make(SHAPES[0], grad=False)
    for dtype in (torch.uint8, torch.float32, torch.int64):
        with pytest.raises(TypeError, match=str(dtype)):
            LOSSES[kind](student, peer, Truth(labels, keep.to(dtype)))
    with pytest.raises(ValueError, match="backwards"):
        LOSSES[kind](student, peer, Truth(labels, keep), order="backwards")


def test_unknown_factor() -> None:
    student, peer, truth = make(SHAPES[0], grad=False)
    with pytest.raises(ValueError, match="certainity"):
        rectified_kl(student, peer, truth, factors=("certainity",))


@pytest.mark.parametrize("space", [(4, 5), (3, 4, 2)])
def test_regions_become_two_classes(space: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, *space, generator=generator, dtype=torch.float64)
    regions = torch.rand(2, 3, *space, generator=generator) < 0.4
    keep = torch.rand(2, *space, generator=generator) < 0.7
    pairs, truth = as_two_classes(logits), region_truth(regions, keep)
    assert pairs.shape == (6, 2, *space)
    assert truth.labels.shape == truth.keep.shape == (6, *space)
    assert truth.labels.dtype is torch.int64
    assert truth.keep.dtype is torch.bool
    for b, r in np.ndindex(2, 3):
        inside = logits[b, r].sigmoid()
        torch.testing.assert_close(pairs.softmax(1)[b * 3 + r], torch.stack([1 - inside, inside]))
        assert (pairs[b * 3 + r, 0] == 0).all()
        assert torch.equal(truth.keep[b * 3 + r], keep[b])
        assert torch.equal(truth.labels[b * 3 + r][keep[b]], regions[b, r].long()[keep[b]])
        assert (truth.labels[b * 3 + r][~keep[b]] == 0).all()


@each_order
@each_loss
def test_regions_are_independent_bernoulli_problems(kind: str, order: str) -> None:
    generator = torch.Generator().manual_seed(2)
    student, peer = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    regions = torch.rand(2, 3, 4, 5, generator=generator) < 0.4
    keep = torch.rand(2, 4, 5, generator=generator) < 0.7
    student.masked_fill_(~keep[:, None], math.nan)
    loss = LOSSES[kind]
    value, slope = value_and_grad(
        lambda s: loss(as_two_classes(s), as_two_classes(peer), region_truth(regions, keep), order=order), student
    )
    parts = []
    for b, r in np.ndindex(2, 3):
        two = [torch.stack([torch.zeros_like(z[b, r]), z[b, r]])[None] for z in (student, peer)]
        part, rise = logit_loss(kind, *arrays(*two, Truth(regions[b : b + 1, r].long(), keep[b : b + 1])), order)
        count = int(keep[b].sum())
        parts.append(part * count)
        torch.testing.assert_close(
            slope[b, r] * keep.sum() * 3, torch.from_numpy(rise)[0, 1] * count, rtol=1e-9, atol=0
        )
    assert value.item() == pytest.approx(sum(parts) / (3 * int(keep.sum())), rel=1e-9)
