"""Class-aware feature collaboration of CTRCL (CFCL): section III.C, equations 13 to 16."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from reference_ctrcl import class_aware_loss, nearest, pool, prototypes_of
from torch import Tensor

from nnunet_collab.core.types import Truth
from nnunet_collab.losses import class_aware
from nnunet_collab.losses.class_aware import class_aware_kl, region_class_aware_kl

ORDERS = ("target_first", "student_first")
CLASS_SETS = ("sample", "batch")


class Sizes(NamedTuple):
    student: tuple[int, ...]
    peer: tuple[int, ...]
    labels: tuple[int, ...]


SIZES = {
    "equal 2D": Sizes((2, 4, 3, 4), (2, 5, 3, 4), (2, 6, 8)),
    "finer student": Sizes((2, 3, 6, 6), (2, 4, 3, 3), (2, 12, 12)),
    "finer peer, 3D": Sizes((2, 4, 2, 2, 3), (2, 3, 4, 2, 6), (2, 5, 8, 6)),
    "each coarser along one axis": Sizes((2, 3, 4, 6), (2, 3, 6, 3), (2, 9, 12)),
    "full resolution": Sizes((2, 3, 4, 5), (2, 3, 4, 5), (2, 4, 5)),
}
each_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
each_order = pytest.mark.parametrize("order", ORDERS)
each_set = pytest.mark.parametrize("classes", CLASS_SETS)
K = 4  # class 3 is absent from every batch, class 2 from its first sample


def make(sizes: Sizes, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Truth]:
    """Features and truth in which, on the coarse grid, each sample has its classes and ignored cells."""
    size = np.minimum(sizes.student[2:], sizes.peer[2:])
    for seed in itertools.count():
        rng = np.random.default_rng(seed)
        student, peer = (torch.from_numpy(rng.normal(0.3, 1.0, s)).to(dtype) for s in sizes[:2])
        labels = torch.from_numpy(rng.integers(0, 3, sizes.labels))
        labels[0][labels[0] == 2] = 1
        keep = torch.from_numpy(rng.random(sizes.labels) < 0.75)
        seen = nearest(labels.masked_fill(~keep, -1).numpy(), size)
        if [np.unique(s).tolist() for s in seen] == [[-1, 0, 1], [-1, 0, 1, 2]]:
            break
    return student.requires_grad_(), peer, Truth(labels.masked_fill(~keep, 0), keep)


def reference(student: Tensor, peer: Tensor, truth: Truth, num_classes: int = K, **settings: object) -> float:
    s, t = (x.detach().double().numpy() for x in (student, peer))
    return class_aware_loss(s, t, truth.labels.numpy(), truth.keep.numpy(), num_classes, **settings)


def value_and_grad(
    student: Tensor, peer: Tensor, truth: Truth, *, autocast: bool = False, **settings: object
) -> list[Tensor]:
    leaf = student.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = class_aware_kl(leaf, peer, truth, **{"num_classes": K, **settings})
    return [value.detach(), *torch.autograd.grad(value, leaf)]


def same(a: list[Tensor], b: list[Tensor], rtol: float = 1e-10) -> None:
    for first, second in zip(a, b, strict=True):
        torch.testing.assert_close(first, second, rtol=rtol, atol=rtol * 1e-2)


def plain(labels: Tensor) -> Truth:
    return Truth(labels, torch.ones_like(labels, dtype=torch.bool))


def unit(*rows: tuple[float, ...]) -> Tensor:
    """One sample, one row of cells: `(1, D, 1, cells)` from one feature per cell."""
    return torch.tensor(rows, dtype=torch.float64).T[None, :, None].contiguous()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@each_set
@each_order
@each_size
def test_value_equals_the_equations(sizes: Sizes, order: str, classes: str, dtype: torch.dtype, rtol: float) -> None:
    student, peer, truth = make(sizes, dtype=dtype)
    before = [t.detach().clone() for t in (student, peer, *truth[:2])]
    got = class_aware_kl(student, peer, truth, num_classes=K, order=order, classes=classes)
    assert got.shape == ()
    assert got.dtype is dtype
    want = reference(student, peer, truth, order=order, classes=classes)
    assert want > 0.1
    assert got.item() == pytest.approx(want, rel=rtol)
    assert all(torch.equal(a, b) for a, b in zip(before, (student, peer, *truth[:2]), strict=True))


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 3, 7])
def test_features_are_read_in_slabs_of_any_size(samples: int, detach: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    student, peer = (torch.randn((7, d, 4, 5), generator=rng, dtype=torch.float64) for d in (6, 3))
    truth = plain(torch.randint(0, 3, (7, 8, 10), generator=rng))
    truth.keep[1, :3] = False
    settings = {"detach_prototypes": detach, "classes": "batch"}
    whole = value_and_grad(student, peer, truth, **settings)
    read = []
    monkeypatch.setattr(class_aware, "SLAB_ELEMENTS", samples * 6 * 4 * 5)
    slabs = class_aware._slabs
    monkeypatch.setattr(class_aware, "_slabs", lambda f, m: (read.append(len(s[1])) or s for s in slabs(f, m)))
    same(value_and_grad(student, peer, truth, **settings), whole)
    assert max(read) == min(7, 2 * samples)  # the peer has half as many channels
    assert samples in read


@each_set
@each_order
@each_size
def test_gradcheck(sizes: Sizes, order: str, classes: str) -> None:
    student, peer, truth = make(sizes)
    assert torch.autograd.gradcheck(
        lambda s: class_aware_kl(s, peer, truth, num_classes=K, order=order, classes=classes),
        (student,),
        fast_mode=True,
    )


@each_order
@pytest.mark.parametrize("name", ["equal 2D", "finer student"])
def test_detached_prototypes_change_the_gradient_only(name: str, order: str) -> None:
    student, peer, truth = make(SIZES[name])
    got = value_and_grad(student, peer, truth, order=order, detach_prototypes=True)
    free = value_and_grad(student, peer, truth, order=order)
    assert torch.equal(got[0], free[0])
    assert (got[1] - free[1]).abs().max() > 1e-3
    size = peer.shape[2:]
    labels, keep = (nearest(t.numpy(), size) for t in truth[:2])
    own = prototypes_of(pool(student.detach().numpy(), size), labels, keep, K)
    for seed in range(4):
        step = torch.from_numpy(np.random.default_rng(seed).normal(size=student.shape)) * 1e-5
        up, down = (reference(student + s * step, peer, truth, order=order, frozen=own) for s in (1, -1))
        assert ((got[1] * step).sum() * 2).item() == pytest.approx(up - down, rel=1e-4, abs=1e-9)


def test_every_ingredient_matters_and_the_defaults_are_the_papers() -> None:
    student, peer, truth = make(SIZES["equal 2D"])
    grid = itertools.product((5.0, 20.0), ORDERS, CLASS_SETS)
    values = {}
    for alpha, order, classes in grid:
        got = class_aware_kl(student, peer, truth, num_classes=K, alpha=alpha, order=order, classes=classes).item()
        assert got == pytest.approx(
            reference(student, peer, truth, alpha=alpha, order=order, classes=classes), rel=1e-9
        )
        values[alpha, order, classes] = got
    ranked = sorted(values.values())
    assert min(b - a for a, b in itertools.pairwise(ranked)) > 1e-4
    default = class_aware_kl(student, peer, truth, num_classes=K)
    assert default.item() == values[20.0, "target_first", "sample"]
    assert class_aware_kl(student, peer, truth, num_classes=9).item() == pytest.approx(default.item(), rel=1e-12)


@each_order
def test_hand_case(order: str) -> None:
    student, peer, truth = unit((1, 0), (0, 1)), unit((1, 1), (0, 1)), plain(torch.tensor([[[0, 1]]]))
    got = class_aware_kl(student, peer, truth, num_classes=3, order=order)
    assert got.item() == pytest.approx({"target_first": 0.0374405, "student_first": 0.0028532}[order], abs=1e-7)


def test_hand_case_of_the_response() -> None:
    # A peer whose cells are all alike answers (1/2, 1/2), so the loss reads the student's (sigma(20), sigma(-20)).
    student, peer, truth = unit((1, 0), (0, 1)), unit((1, 1), (1, 1)), plain(torch.tensor([[[0, 1]]]))
    away = 1 / (1 + math.exp(20))
    wants = (
        -math.log(2) - 0.5 * (math.log(away) + math.log1p(-away)),
        math.log(2) + (1 - away) * math.log1p(-away) + away * math.log(away),
    )
    for order, want in zip(ORDERS, wants, strict=True):
        got = class_aware_kl(student, peer, truth, num_classes=3, order=order)
        assert got.item() == pytest.approx(want, rel=1e-9)


@each_order
def test_no_floor_under_the_response(order: str) -> None:
    # One student answers (1/2, 1/2), the other is sure by 2 * alpha = 40 nats; a clamp of 1e-8 or 1e-12 would show.
    unsure, sure = unit((1, 1), (1, 1)), unit((1, 0), (-1, 0))
    student, peer = (sure, unsure) if order == "target_first" else (unsure, sure)
    got = class_aware_kl(student, peer, plain(torch.tensor([[[0, 1]]])), num_classes=2, order=order)
    assert got.item() == pytest.approx(20.0 - math.log(2), rel=1e-9)


@pytest.mark.parametrize("turn", range(3))
def test_a_feature_that_is_a_prototype_answers_to_that_class_most(turn: int) -> None:
    student, peer = unit(*[(1, 1, 1)] * 3), unit((1, 0, 0), (0, 1, 0), (0, 0, 1))
    truth = plain((torch.tensor([[[0, 1, 2]]]) + turn) % 3)
    got = class_aware_kl(student, peer, truth, num_classes=3)  # ln 3 minus the entropy of softmax(20, 0, 0)
    assert got.item() == pytest.approx(math.log(3), abs=1e-6)  # with the sign turned it would be ln 3 - ln 2


@each_order
@each_size
def test_each_direction_teaches_one_student(sizes: Sizes, order: str) -> None:
    cnn, transformer, truth = make(sizes)
    transformer.requires_grad_()
    settings = {"num_classes": K, "order": order}
    class_aware_kl(cnn, transformer, truth, **settings).backward()
    assert transformer.grad is None
    alone = cnn.grad.clone()
    cnn.grad = None
    (
        class_aware_kl(cnn, transformer, truth, **settings) + 3.0 * class_aware_kl(transformer, cnn, truth, **settings)
    ).backward()
    other = value_and_grad(transformer, cnn.detach(), truth, order=order)[1]
    same([cnn.grad, transformer.grad], [alone, 3.0 * other])


@each_set
@each_order
def test_ignored_cells_take_part_in_nothing(order: str, classes: str) -> None:
    for name in ("full resolution", "equal 2D", "finer student", "finer peer, 3D"):
        student, peer, truth = make(SIZES[name])
        size = np.minimum(student.shape[2:], peer.shape[2:])
        drop = ~torch.from_numpy(nearest(truth.keep.numpy(), size))[:, None]
        masks = []
        for f in (student, peer):  # a fine cell belongs to one coarse cell, because these sizes divide
            grown = drop
            for axis, (n, m) in enumerate(zip(f.shape[2:], size, strict=True), start=2):
                grown = grown.repeat_interleave(int(n // m), dim=axis)
            masks.append(grown)
        clean = value_and_grad(student, peer, truth, order=order, classes=classes)
        assert (clean[1].masked_select(masks[0]) == 0).all()
        for poison in (math.nan, math.inf, -math.inf, 1e150):
            bad = [f.detach().masked_fill(m, poison) for f, m in zip((student, peer), masks, strict=True)]
            for pair in (bad, [bad[0], peer], [student, bad[1]]):
                same(value_and_grad(*pair, truth, order=order, classes=classes), clean)
        # Their labels may be anything too, a class that nobody else has included.
        odd = Truth(truth.labels.masked_fill(~truth.keep, 3), truth.keep)
        same(value_and_grad(student, peer, odd, order=order, classes=classes), clean)


@each_set
@each_order
def test_empty_masks(order: str, classes: str) -> None:
    for sizes in SIZES.values():
        student, peer, (labels, keep, _) = make(sizes)
        none = Truth(labels, torch.zeros_like(keep))
        for poison in (0.0, math.nan, math.inf):
            value, slope = value_and_grad(student + poison, peer + poison, none, order=order, classes=classes)
            assert value.item() == 0.0
            assert torch.equal(slope, torch.zeros_like(slope))
        one = keep.clone()
        one[0] = False  # a whole sample
        value, slope = value_and_grad(student, peer, Truth(labels, one), order=order, classes=classes)
        want = reference(student, peer, Truth(labels, one), order=order, classes=classes)
        assert value.item() == pytest.approx(want, rel=1e-9)
        assert want > 0
        assert slope.isfinite().all()
        assert (slope[0] == 0).all()


@each_set
@each_order
def test_one_kept_cell_is_one_class_and_costs_nothing(order: str, classes: str) -> None:
    student, peer, (labels, keep, _) = make(SIZES["full resolution"])
    one = torch.zeros_like(keep)
    one[1, 2, 3] = True
    value, slope = value_and_grad(student, peer, Truth(labels, one), order=order, classes=classes)
    assert abs(value.item()) < 1e-12
    assert slope.isfinite().all()
    assert slope.abs().max() < 1e-9


@each_order
def test_a_sample_of_one_class_contributes_nothing(order: str) -> None:
    student, peer, (labels, keep, _) = make(SIZES["full resolution"])
    labels[0] = 1
    truth = Truth(labels, keep)
    got = value_and_grad(student, peer, truth, order=order, detach_prototypes=True)
    want = reference(student, peer, truth, order=order)
    assert got[0].item() == pytest.approx(want, rel=1e-9)
    assert want > 0.1
    assert got[1][0].abs().max() < 1e-12
    assert got[1][1].abs().max() > 1e-3
    labels[1] = 2  # now no sample has two classes, but the batch has
    value, slope = value_and_grad(student, peer, truth, order=order)
    assert abs(value.item()) < 1e-12
    assert slope.abs().max() < 1e-9
    assert value_and_grad(student, peer, truth, order=order, classes="batch")[0] > 0.01


@each_set
def test_what_down_sampling_does_not_see_is_absent(classes: str) -> None:
    student, peer, (labels, keep, _) = make(SIZES["finer student"])  # 12 -> 3: rows and columns 2, 6 and 10 are seen
    keep[1, 6, 6] = True
    want = value_and_grad(student, peer, Truth(labels, keep), classes=classes)
    tiny, holes = labels.clone(), keep.clone()
    tiny[:, 7:10, 3:6] = 3
    holes[:, 3:6, 7:10] = False
    same(value_and_grad(student, peer, Truth(tiny, keep), classes=classes), want)
    same(value_and_grad(student, peer, Truth(labels, holes), classes=classes), want)
    tiny[1, 6, 6], holes[1, 6, 6] = 3, False
    for seen in (Truth(tiny, keep), Truth(labels, holes)):
        assert (value_and_grad(student, peer, seen, classes=classes)[0] - want[0]).abs() > 1e-4


@pytest.mark.parametrize(("fine", "coarse"), [(26, 11), (52, 22), (62, 7), (76, 14), (129, 32)])
def test_labels_are_picked_at_the_exact_center(fine: int, coarse: int) -> None:
    # Sizes where floor((i + 1/2) * in / out) in float32 falls one short of the whole number it should be.
    sizes = Sizes((1, 3, coarse, 1), (1, 3, coarse, 1), (1, fine, 1))
    rng = np.random.default_rng(fine)
    student, peer = (torch.from_numpy(rng.normal(0.0, 1.0, s)) for s in sizes[:2])
    for offset in range(3):
        truth = plain(((torch.arange(fine) + offset) % 3).reshape(1, fine, 1))
        got = class_aware_kl(student, peer, truth, num_classes=3)
        assert got.item() == pytest.approx(reference(student, peer, truth, 3), rel=1e-9)


@each_set
@each_order
def test_batch_order_class_names_and_memory_layout_change_nothing(order: str, classes: str) -> None:
    settings = {"order": order, "classes": classes}
    student, peer, truth = make(SIZES["finer peer, 3D"])
    value, slope = value_and_grad(student, peer, truth, **settings)
    flipped = value_and_grad(student.flip(0), peer.flip(0), Truth(*(t.flip(0) for t in truth[:2])), **settings)
    same([value, slope.flip(0)], flipped)
    renamed = Truth(torch.tensor([3, 1, 0, 2])[truth.labels], truth.keep)
    same([value, slope], value_and_grad(student, peer, renamed, **settings))
    channels = value_and_grad(student.flip(1), peer.roll(1, 1), truth, **settings)
    same([value, slope.flip(1)], channels)
    spread = [t.detach().permute(4, 2, 3, 1, 0).contiguous().permute(4, 3, 1, 2, 0) for t in (student, peer)]
    turned = Truth(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in truth[:2]))
    assert not any(t.is_contiguous() for t in (*spread, *turned[:2]))
    same([value, slope], value_and_grad(*spread, turned, **settings))
    same([value], [value_and_grad(7.0 * student, 0.1 * peer, truth, **settings)[0]])  # the cosine has no scale


@each_order
def test_agreement_costs_nothing(order: str) -> None:
    student, _, truth = make(SIZES["full resolution"])
    value, slope = value_and_grad(student, student.detach() * 2, truth, order=order)
    assert abs(value.item()) < 1e-12
    assert slope.abs().max() < 1e-9


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_order
def test_vanishing_features_are_finite(order: str, dtype: torch.dtype, scale: float) -> None:
    student, peer, truth = make(SIZES["full resolution"], dtype=dtype)
    for small in ([(0, slice(None), 0, 0)], list(itertools.product((0, 1), [slice(None)]))):
        s, t = student.detach().clone(), peer.clone()
        for at in small:  # one cell, then whole maps with their prototypes
            s[at] *= scale
            t[at] *= scale
        value, slope = value_and_grad(s, t, truth, order=order)
        assert value.item() == pytest.approx(reference(s, t, truth, order=order), rel=1e-3, abs=1e-6)
        assert slope.isfinite().all()


@pytest.mark.parametrize("size", [30.0, 100.0, 6e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_set
@each_order
def test_half_precision_is_only_the_storage(order: str, classes: str, dtype: torch.dtype, size: float) -> None:
    for sizes in SIZES.values():
        student, peer, truth = make(sizes)
        student, peer = ((f.detach().clamp(-1, 1) * size).to(dtype) for f in (student, peer))
        settings = {"order": order, "classes": classes}
        want = value_and_grad(student.float(), peer.float(), truth, **settings)
        got = value_and_grad(student, peer, truth, **settings)
        mixed = value_and_grad(student, peer, truth, autocast=True, **settings)
        wide = value_and_grad(student.float(), peer.float(), truth, autocast=True, **settings)
        assert got[0].dtype is torch.float32
        assert got[1].dtype is dtype
        assert got[1].isfinite().all()
        same([got[0], mixed[0]], [want[0], want[0]], 1e-5)
        torch.testing.assert_close(got[1].float(), want[1], rtol=2e-2, atol=1e-6)
        same([mixed[1]], [got[1]], 1e-2)
        same(wide, want, 1e-5)
        assert want[0].item() == pytest.approx(reference(student, peer, truth, **settings), rel=1e-3)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes((2, 6, 65, 64), (2, 4, 33, 32), (2, 130, 129)),
        Sizes((3, 5, 20, 20, 7), (3, 4, 20, 10, 7), (3, 40, 41, 7)),
        Sizes((1, 3, 37, 38), (1, 3, 37, 38), (1, 37, 38)),
    ],
    ids=str,
)
@each_order
def test_larger_maps_equal_the_equations(sizes: Sizes, order: str) -> None:
    rng = np.random.default_rng(5)
    student, peer = (torch.from_numpy(rng.normal(0.3, 1.0, s)) for s in sizes[:2])
    truth = Truth(torch.from_numpy(rng.integers(0, 3, sizes.labels)), torch.from_numpy(rng.random(sizes.labels) < 0.8))
    value, slope = value_and_grad(student, peer, truth, order=order)
    assert value.item() == pytest.approx(reference(student, peer, truth, order=order), rel=1e-9)
    step = 1e-6 * torch.from_numpy(rng.normal(size=sizes.student))
    up, down = (reference(student + s * step, peer, truth, order=order) for s in (1, -1))
    assert (slope * step).sum().item() * 2 == pytest.approx(up - down, rel=1e-3)


@pytest.mark.parametrize("caller", ["batch", "peer rank", "labels", "keep", "label rank", "samples"])
def test_shapes_must_agree(caller: str) -> None:
    student, peer, (labels, keep, _) = make(SIZES["equal 2D"])
    bad = {
        "batch": (student, peer[:1], labels, keep),
        "peer rank": (student, peer[..., None], labels, keep),
        "labels": (student, peer, labels[:, :4], keep),
        "keep": (student, peer, labels, keep[:, :4]),
        "label rank": (student, peer, labels[:, None], keep[:, None]),
        "samples": (student, peer, labels[:1], keep[:1]),
    }[caller]
    with pytest.raises(ValueError, match="class_aware_kl") as caught:
        class_aware_kl(bad[0], bad[1], Truth(*bad[2:]), num_classes=K)
    odd = [t for t, good in zip(bad, (student, peer, labels, keep), strict=True) if t.shape != good.shape]
    assert str(tuple(odd[0].shape)) in str(caught.value)
    assert any(str(tuple(t.shape)) in str(caught.value) for t in (student, labels))


def test_keep_must_be_boolean_and_options_known() -> None:
    student, peer, (labels, keep, _) = make(SIZES["equal 2D"])
    regions = torch.stack([labels == 1, labels > 0], 1)
    for dtype in (torch.uint8, torch.float32):
        with pytest.raises(TypeError, match=str(dtype)):
            class_aware_kl(student, peer, Truth(labels, keep.to(dtype)), num_classes=K)
        with pytest.raises(TypeError, match=str(dtype)):
            region_class_aware_kl(student, peer, regions, keep.to(dtype))
    for option in ("order", "classes"):
        with pytest.raises(ValueError, match="backwards"):
            class_aware_kl(student, peer, Truth(labels, keep), num_classes=K, **{option: "backwards"})
        with pytest.raises(ValueError, match="backwards"):
            region_class_aware_kl(student, peer, regions, keep, **{option: "backwards"})


def test_region_shapes_must_agree() -> None:
    student, peer, (labels, keep, _) = make(SIZES["equal 2D"])
    regions = torch.stack([labels == 1, labels > 0], 1)
    for bad_regions, bad_keep in (
        (regions[:, :, :4], keep),
        (regions[:1], keep),
        (labels > 0, keep),
        (regions, keep[:1]),
    ):
        with pytest.raises(ValueError, match=r"class_aware_kl") as caught:
            region_class_aware_kl(student, peer, bad_regions, bad_keep)
        assert str(tuple(bad_regions.shape)) in str(caught.value) or str(tuple(bad_keep.shape)) in str(caught.value)


@each_set
@each_order
@pytest.mark.parametrize("name", ["equal 2D", "finer peer, 3D"])
def test_regions_are_independent_two_class_problems(name: str, order: str, classes: str) -> None:
    student, peer, (labels, keep, _) = make(SIZES[name])
    student.requires_grad_(False)
    regions = torch.stack([labels > 0, labels == 2, torch.zeros_like(labels, dtype=torch.bool)], 1)  # nested; one empty
    settings = {"order": order, "classes": classes, "alpha": 7.0}
    want = [reference(student, peer, Truth(regions[:, r].long(), keep), 2, **settings) for r in range(3)]
    assert want[0] > 0.01
    assert want[1] > 0.01
    assert want[2] == 0
    leaf = student.clone().requires_grad_()
    other = peer.clone().requires_grad_()
    got = region_class_aware_kl(leaf, other, regions, keep, **settings)
    assert got.shape == ()
    assert got.item() == pytest.approx(sum(want) / 3, rel=1e-9)
    got.backward()
    assert other.grad is None
    parts = [
        value_and_grad(student, peer, Truth(regions[:, r].long(), keep), num_classes=2, **settings)[1] for r in range(3)
    ]
    same([leaf.grad], [sum(parts) / 3])
    frozen = student.clone().requires_grad_()
    region_class_aware_kl(frozen, peer, regions, keep, detach_prototypes=True, **settings).backward()
    assert (frozen.grad - leaf.grad).abs().max() > 1e-4
    small = student.float()
    assert region_class_aware_kl(small, peer.float(), regions, keep, **settings).dtype is torch.float32


@each_set
def test_regions_ignore_what_is_not_kept(classes: str) -> None:
    student, peer, (labels, keep, _) = make(SIZES["full resolution"])
    regions = torch.stack([labels > 0, labels == 2], 1)
    clean = region_class_aware_kl(student, peer, regions, keep, classes=classes)
    leaf = student.detach().masked_fill(~keep[:, None], math.nan).requires_grad_()
    dirty = region_class_aware_kl(
        leaf, peer.masked_fill(~keep[:, None], math.inf), regions | ~keep[:, None], keep, classes=classes
    )
    assert dirty.item() == pytest.approx(clean.item(), rel=1e-12)
    dirty.backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad.masked_select(~keep[:, None]) == 0).all()
    nothing = region_class_aware_kl(leaf, peer, regions, torch.zeros_like(keep), classes=classes)
    assert nothing.item() == 0.0
    assert torch.equal(torch.autograd.grad(nothing, leaf)[0], torch.zeros_like(leaf))
