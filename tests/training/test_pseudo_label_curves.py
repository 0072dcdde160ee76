"""Curves of pseudo labels, beside counts that are made voxel by voxel."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import nnunet_collab.training.pseudo_label_curves as module
from nnunet_collab.training.pseudo_label_curves import PseudoLabelCurves, collapsed

SHAPES = [(2, 3, 4, 5), (2, 3, 2, 3, 4)]
NAN = float("nan")
each_kind = pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])


def make(shape=SHAPES[0], seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand((shape[0], *shape[2:]), generator=generator) < 0.7
    return 2 * torch.randn(shape, generator=generator), keep


def distributions(logits, regions):
    """Per problem the class probabilities of a voxel."""
    if regions:
        inside = [1 / (1 + math.exp(-z)) for z in logits]
        return [[1 - p, p] for p in inside]
    powers = [math.exp(z) for z in logits]
    return [[power / sum(powers) for power in powers]]


def expected(batches, tau, regions, classes=3):
    kept, used, entropy = 0, 0, 0.0
    named, of = [0] * classes, [0] * classes
    for logits, keep in batches:
        for b, *v in keep.nonzero().tolist():
            for problem, p in enumerate(distributions(logits[(b, slice(None), *v)].tolist(), regions)):
                kept += 1
                entropy -= sum(x * math.log(x) for x in p) / math.log(len(p))
                if max(p) < tau:
                    continue
                used += 1
                label = p.index(max(p))
                if regions:
                    of[problem] += 1
                    named[problem] += label
                else:
                    of = [n + 1 for n in of]
                    named[label] += 1
    word, first = ("region", 1) if regions else ("class", 0)
    shares = {f"{word} {k + first}": named[k] / of[k] for k in range(classes)}
    return {"used": used / kept, "entropy": entropy / kept, **shares}


@pytest.mark.parametrize("tau", [0.0, 0.6, 0.85])
@each_kind
@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_an_epoch_equals_the_counts(shape, regions, tau):
    curves = PseudoLabelCurves(regions=regions)
    batches = [make(shape, seed) for seed in range(3)]
    for logits, keep in batches:
        curves.add("CNN", logits, keep, tau)
    found = curves.finish_epoch()["CNN"]
    want = expected(batches, tau, regions)
    assert list(found) == list(want)
    assert found == pytest.approx(want, rel=1e-5)
    assert 0 < found["used"] <= 1


@each_kind
def test_students_are_counted_apart_and_epochs_too(regions):
    curves = PseudoLabelCurves(regions=regions)
    batches = [make(seed=seed) for seed in range(2)]
    curves.add("Transformer", *batches[0], 0.0)
    curves.add("CNN", *batches[1], 0.7)
    found = curves.finish_epoch()
    assert list(found) == ["CNN", "Transformer"]
    assert found["CNN"] == pytest.approx(expected(batches[1:], 0.7, regions), rel=1e-5)
    assert found["Transformer"] == pytest.approx(expected(batches[:1], 0.0, regions), rel=1e-5)
    assert curves.finish_epoch() == {}
    curves.add("CNN", *batches[0], 0.0)
    assert curves.finish_epoch()["CNN"] == pytest.approx(found["Transformer"])


@each_kind
def test_an_epoch_without_a_voxel_or_without_a_used_label_is_not_a_number(regions):
    curves = PseudoLabelCurves(regions=regions)
    logits, keep = make()
    curves.add("none kept", logits, torch.zeros_like(keep), 0.0)
    curves.add("none used", logits, keep, 0.9999999)
    found = curves.finish_epoch()
    assert all(math.isnan(value) for value in found["none kept"].values())
    assert found["none used"]["used"] == 0
    assert 0 < found["none used"]["entropy"] < 1
    assert all(math.isnan(v) for k, v in found["none used"].items() if k.startswith(("class", "region")))


@each_kind
def test_entropy_is_a_share_of_the_largest_possible(regions):
    keep = torch.ones(1, 2, 2, dtype=torch.bool)
    for level, want in ((0.0, 1.0), (1e4, 0.0)):
        curves = PseudoLabelCurves(regions=regions)
        curves.add("CNN", torch.tensor([level, -level, -level]).view(1, 3, 1, 1).expand(1, 3, 2, 2).half(), keep, 0.0)
        assert curves.finish_epoch()["CNN"]["entropy"] == pytest.approx(want, abs=1e-6)


@each_kind
def test_voxels_that_are_left_out_may_hold_anything(regions):
    logits, keep = make()
    found = []
    for poison in (0.0, math.inf, -math.inf, math.nan):
        curves = PseudoLabelCurves(regions=regions)
        curves.add("CNN", logits.masked_fill(~keep.unsqueeze(1), poison), keep, 0.6)
        found.append(curves.finish_epoch()["CNN"])
    assert found[1:] == found[:1] * 3


@each_kind
def test_all_ranks_see_the_sums_of_all(regions, monkeypatch):
    batches = [make(seed=seed) for seed in range(2)]
    here, there = PseudoLabelCurves(regions=regions), PseudoLabelCurves(regions=regions)
    here.add("CNN", *batches[0], 0.7)
    there.add("CNN", *batches[1], 0.7)
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "dist", SimpleNamespace(all_reduce=lambda sums: sums.add_(there.sums["CNN"])))
    assert here.finish_epoch()["CNN"] == pytest.approx(expected(batches, 0.7, regions), rel=1e-5)


@each_kind
def test_no_step_waits_for_a_value(regions):
    with FakeTensorMode():  # tensors without content: reading one raises
        curves = PseudoLabelCurves(regions=regions)
        for _ in range(2):
            curves.add("CNN", torch.randn(2, 3, 4, 4), torch.rand(2, 4, 4) > 0.5, 0.6)


@pytest.mark.parametrize(
    ("shares", "want"),
    [
        ({"class 0": 1.0, "class 1": 0.0}, "class 0"),
        ({"class 0": 0.0001, "class 1": 0.9999}, "class 1"),
        ({"class 0": 0.9998, "class 1": 0.0002}, None),
        ({"class 0": NAN, "class 1": NAN}, None),
        ({"region 1": 0.0, "region 2": 0.0}, "background"),
        ({"region 1": 0.0001, "region 2": 0.0}, "background"),
        ({"region 1": 0.0, "region 2": 0.0002}, None),
        ({"region 1": 1.0, "region 2": 1.0}, None),
        # No label of one region was used: what is used says background, whichever region it is.
        ({"region 1": NAN, "region 2": 0.0}, "background"),
        ({"region 1": 0.0, "region 2": NAN}, "background"),
        ({"region 1": NAN, "region 2": 0.5}, None),
        ({"region 1": NAN, "region 2": NAN}, None),
    ],
    ids=str,
)
def test_an_epoch_that_names_one_class_only_has_collapsed(shares, want):
    assert collapsed({"used": 1.0, "entropy": 0.0, **shares}) == want


def test_a_collapsed_teacher_is_seen_from_its_logits():
    logits, keep = make()
    logits[:, 1] = 50.0
    for regions, want in ((False, "class 1"), (True, None)):
        curves = PseudoLabelCurves(regions=regions)
        curves.add("CNN", logits, keep, 0.0)
        assert collapsed(curves.finish_epoch()["CNN"]) == want
    curves = PseudoLabelCurves(regions=True)
    curves.add("CNN", -logits.abs(), keep, 0.0)
    assert collapsed(curves.finish_epoch()["CNN"]) == "background"


@pytest.mark.parametrize("regions", [False, True])
def test_a_batch_that_is_not_finite_is_left_out_as_its_step_is(regions):
    (good, keep), (bad, _) = make(), make(seed=1)
    bad[0, 0].view(-1)[0] = NAN
    once, both = PseudoLabelCurves(regions=regions), PseudoLabelCurves(regions=regions)
    once.add("CNN", good, keep, 0.5)
    for logits in (good, bad):
        both.add("CNN", logits, torch.ones_like(keep), 0.5) if logits is bad else both.add("CNN", logits, keep, 0.5)
    assert both.finish_epoch() == once.finish_epoch()
