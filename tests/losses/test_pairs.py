"""CTRCL's losses of both students at once: equal to the plainly written ones, in few operations and little memory."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from test_class_aware import SIZES, K
from test_class_aware import make as make_features
from test_collaborative_kl import LOSSES, ORDERS, SHAPES
from test_collaborative_kl import make as make_logits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_collab.core.types import Truth, region_truth
from nnunet_collab.losses import collaborative_pair as pair_of_logits
from nnunet_collab.losses import late_gradient
from nnunet_collab.losses.class_aware import class_aware_kl, region_class_aware_kl
from nnunet_collab.losses.class_aware_pair import class_aware_pair
from nnunet_collab.losses.collaborative_kl import as_two_classes, rectified_kl
from nnunet_collab.losses.collaborative_pair import collaborative_pair, compiled

MODES = {"mutual": "mutual", "rlcl": "rectified", "ensemble": "ensemble", "selective": "selective"}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-6, torch.float16: 2e-2, torch.bfloat16: 2e-2}
# In float32, both writings of CFCL are off the float64 gradient by up to 2.5e-5, and so off each other: with alpha = 20
# the slopes of "student first" reach 40, and are summed over the cells of a class with both signs (its prototype). The
# values, and the logit losses, agree to 2e-7.
FEATURE_TOLERANCE = {**TOLERANCE, torch.float32: 5e-5}
each_order = pytest.mark.parametrize("order", ORDERS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def with_regions(truth):
    regions = torch.stack([truth.labels > 0, truth.labels == 2, torch.zeros_like(truth.keep)], 1)
    return Truth(torch.zeros_like(truth.labels), truth.keep, regions)


def both(loss, first, second):
    """Values of both students, and the gradients of 2 * first value + 3 * second value."""
    leaves = [t.detach().clone().requires_grad_() for t in (first, second)]
    values = loss(*leaves)
    (2 * values[0] + 3 * values[1]).backward()
    return [*values, *(leaf.grad for leaf in leaves)]


def check_same(got, want, dtype, tolerance=TOLERANCE):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance[dtype], atol=tolerance[dtype] * 1e-1)


@pytest.mark.parametrize("slab", [2**21, 40])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", MODES)
@each_order
@each_dtype
def test_logit_losses_equal_the_plain_ones(dtype, order, mode, autocast, slab, monkeypatch):
    monkeypatch.setitem(pair_of_logits.SLAB_ELEMENTS, "cpu", slab)
    plain = LOSSES[MODES[mode]]
    for shape, regions in itertools.product(SHAPES, (False, True)):
        first, second, truth = make_logits(shape, dtype=dtype)

        def one(own, peer, truth=truth, regions=regions):
            if regions:
                cases = region_truth(with_regions(truth).regions, truth.keep)
                return plain(as_two_classes(own[:, :3]), as_two_classes(peer[:, :3]), cases, order=order)
            return plain(own, peer, truth, order=order)

        def fast(a, b, truth=truth, regions=regions):
            a, b, truth = (a[:, :3], b[:, :3], with_regions(truth)) if regions else (a, b, truth)
            return collaborative_pair(a, b, truth, mode=mode, order=order)

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and dtype is not torch.float16):
            want = both(lambda a, b, one=one: (one(a, b), one(b, a)), first, second)
            check_same(both(fast, first, second), want, dtype)


@pytest.mark.parametrize("unsure_peer", ["as_published", "skip"])
@pytest.mark.parametrize("factors", [(), ("alignment",), ("similarity",), ("certainty",), ("alignment", "certainty")])
@each_order
def test_every_factor_and_the_unsure_peer(order, factors, unsure_peer):
    first, second, truth = make_logits(SHAPES[0])
    options = {"order": order, "factors": factors, "unsure_peer": unsure_peer}
    want = both(
        lambda a, b: (rectified_kl(a, b, truth, **options), rectified_kl(b, a, truth, **options)), first, second
    )
    check_same(both(lambda a, b: collaborative_pair(a, b, truth, **options), first, second), want, torch.float64)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("classes", ["sample", "batch"])
@pytest.mark.parametrize("detach", [False, True])
@each_order
@each_dtype
def test_feature_losses_equal_the_plain_ones(dtype, order, detach, classes, name, monkeypatch):
    options = {"order": order, "classes": classes, "detach_prototypes": detach}
    first, second, truth = make_features(SIZES[name], dtype=dtype)
    other = [f.detach().flip(1) for f in (second, first)]  # a second level, of other channels
    for regions, chunk in itertools.product((False, True), (2**18, 8)):
        monkeypatch.setitem(late_gradient.MIN_CHUNK_ELEMENTS, "cpu", chunk)
        case = with_regions(truth) if regions else truth

        def one(own, peer, case=case):
            if case.regions is not None:
                return region_class_aware_kl(own, peer, case.regions, case.keep, **options)
            return class_aware_kl(own, peer, case, num_classes=K, **options)

        def fast(a, b, case=case):
            return class_aware_pair([a, other[0]], [b, other[1]], case, num_classes=K, **options)[0]

        want = both(lambda a, b, one=one: (one(a, b), one(b, a)), first, second)
        check_same(both(fast, first, second), want, dtype, FEATURE_TOLERANCE)


def test_features_that_the_network_uses_get_both_gradients():
    first, second, truth = make_features(SIZES["full resolution"])
    slopes = []
    for fast in (False, True):
        weights = [torch.full_like(t.detach(), 0.7).requires_grad_() for t in (first, second)]
        maps = [w * t.detach() for w, t in zip(weights, (first, second), strict=True)]
        if fast:
            a, b = class_aware_pair([maps[0]], [maps[1]], truth, num_classes=K)[0]
        else:
            a, b = (class_aware_kl(*m, truth, num_classes=K) for m in (maps, maps[::-1]))
        own = sum(m.sin().sum() for m in maps)
        for loss in (own, a, own + a + 5 * b):  # one by one and together: nothing is left over from a pass before
            slopes.append(torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True))
    for plain, fast in zip(slopes[:3], slopes[3:], strict=True):
        for x, y in zip(plain, fast, strict=True):
            torch.testing.assert_close(torch.zeros(()) if x is None else x, torch.zeros(()) if y is None else y)


def test_logit_losses_can_be_differentiated_again():
    first, second, truth = make_logits(SHAPES[0])
    second.requires_grad_()
    values = collaborative_pair(first, second, truth)
    slopes = [torch.autograd.grad(2 * values[0] + values[1], (first, second), retain_graph=True) for _ in range(2)]
    for once, again in zip(*slopes, strict=True):
        assert torch.equal(once, again)
    with torch.no_grad():
        assert [v.item() for v in collaborative_pair(first, second, truth)] == [v.item() for v in values]


def test_a_frozen_peer_gets_no_gradient():
    first, second, truth = make_features(SIZES["equal 2D"])
    a, b = class_aware_pair([first], [second], truth, num_classes=K)[0]
    assert a.requires_grad
    assert not b.requires_grad
    z, t, case = make_logits(SHAPES[0])
    collaborative_pair(z, t, case)[0].backward()
    assert z.grad.any()
    assert t.grad is None


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_ignored_voxels_cannot_leak(poison):
    z, t, case = make_logits(SHAPES[0])
    bad = [x.detach().masked_fill(~case.keep[:, None], poison) for x in (z, t)]
    check_same(both(lambda a, b: collaborative_pair(a, b, case), *bad),
               both(lambda a, b: collaborative_pair(a, b, case), z, t), torch.float64)  # fmt: skip
    f, g, truth = make_features(SIZES["full resolution"])
    bad = [x.detach().masked_fill(~truth.keep[:, None], poison) for x in (f, g)]
    fast = lambda a, b: class_aware_pair([a], [b], truth, num_classes=K)[0]  # noqa: E731
    check_same(both(fast, *bad), both(fast, f, g), torch.float64)


def test_two_ranks_have_the_values_and_gradients_of_one_process(on_every_rank):
    f, g, truth = make_features(SIZES["finer student"])
    z, t, case = make_logits((2, 4, 5, 6))

    def of(rows):
        feature = both(lambda a, b: class_aware_pair([a], [b], Truth(truth.labels[rows], truth.keep[rows]),
                                                     num_classes=K)[0], f[rows], g[rows])  # fmt: skip
        return feature + both(lambda a, b: collaborative_pair(a, b, Truth(case.labels[rows], case.keep[rows])),
                              z[rows], t[rows])  # fmt: skip

    whole = of(slice(None))
    ranks = on_every_rank(lambda rank: of(slice(rank, rank + 1)))
    for i, want in enumerate(whole):
        parts = [rank[i].detach() for rank in ranks]
        got = sum(parts) / 2 if want.ndim == 0 else torch.cat(parts) / 2
        torch.testing.assert_close(got, want.detach(), rtol=1e-9, atol=1e-12)


class Operations(TorchDispatchMode):
    """Counts what an operation launches, and the bytes of what it makes; `given` is there before."""

    def __init__(self, given):
        super().__init__()
        self.count = self.live = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        self.count += not func.is_view and name not in ("empty", "empty_like", "new_empty", "detach", "promote_types")
        result = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(result) if isinstance(t, torch.Tensor)):
            if storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, key, size):
        self.seen.discard(key)
        self.live -= size


def run_both_losses():
    truth = Truth(torch.randint(0, 4, (4, 64, 64)), torch.rand(4, 64, 64) < 0.9)
    maps = [[torch.randn(4, d, s, s).requires_grad_() for d, s in sizes]
            for sizes in (((64, 4), (16, 16)), ((32, 4), (256, 16)))]  # fmt: skip
    logits = [torch.randn(4, 4, 64, 64).requires_grad_() for _ in range(2)]
    with Operations((*maps[0], *maps[1], *logits, *truth[:2])) as operations:
        values = [v for level in class_aware_pair(*maps, truth, num_classes=4) for v in level]
        values += collaborative_pair(*logits, truth)
        kept = operations.live
        sum(values).backward()
    return operations, kept, logits[0].nbytes


def test_both_losses_take_few_operations():
    assert run_both_losses()[0].count <= 290


def test_both_losses_keep_a_gradient_per_student():
    _, kept, size = run_both_losses()
    assert kept <= 2.4 * size  # and the maps over the classes, which are a 16th each


def test_the_logit_losses_need_no_further_memory(monkeypatch):
    # The slabs are a small share of the logits, as they are of a real patch's.
    monkeypatch.setitem(pair_of_logits.SLAB_ELEMENTS, "cpu", 2**12)
    first, second = (torch.randn(4, 4, 64, 64).requires_grad_() for _ in range(2))
    truth = Truth(torch.randint(0, 4, (4, 64, 64)), torch.rand(4, 64, 64) < 0.9)
    with Operations((first, second, *truth[:2])) as operations:
        sum(collaborative_pair(first, second, truth)).backward()
    assert operations.peak <= 2.5 * first.nbytes


def test_a_compiler_that_fails_costs_one_line():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    z, t, truth = make_logits(SHAPES[0])
    want = both(lambda a, b: collaborative_pair(a, b, truth), z, t)
    for backend, lines in (("eager", 0), (broken, 1)):
        log = []
        function = compiled(log.append, backend=backend)
        for _ in range(2):
            got = both(lambda a, b, f=function: collaborative_pair(a, b, truth, slab_function=f), z, t)
            check_same(got, want, torch.float64)
        assert len(log) == lines
