"""CutMix: the boxes, the partners, and that everything of a sample is cut by the same box."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nnunet_collab.training.cutmix import CutMix, box_masks, draw_boxes, draw_partners, mix

SHARE = (0.02, 0.4)  # of the patch
RATIO = (0.3, 1 / 0.3)  # of two sides, each as a share of the patch's
SIZES = [(64, 64), (96, 40), (3, 64, 64), (1, 48, 48), (16, 3, 1), (24, 20, 28)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def extents(box):
    """Sides in voxels; the box must be one full cuboid."""
    others = [[other for other in range(box.ndim) if other != axis] for axis in range(box.ndim)]
    lines = [box.sum(axes).bool() for axes in others]
    sides = [int(line.sum()) for line in lines]
    assert all(line.nonzero().flatten().diff().eq(1).all() for line in lines)
    assert box.sum() == math.prod(sides)
    return sides


def masks_of(count, size, *, probability):
    return box_masks(draw_boxes(count, size, probability=probability), size)


@each_size
def test_masks_are_true_from_the_first_voxel_to_the_last(size):
    boxes = draw_boxes(20, size, probability=0.7)
    for box, mask in zip(boxes, box_masks(boxes, size), strict=True):
        want = torch.zeros(size, dtype=torch.bool)
        want[tuple(slice(first, behind) for first, behind in box.tolist())] = True
        assert torch.equal(mask, want)


def cut(count=4, size=(8, 8), *, probability=1.0, within_batch=True):
    return CutMix(count, size, probability=probability, device=torch.device("cpu"), within_batch=within_batch)


@each_size
def test_a_box_is_a_cuboid_in_the_patch_of_the_published_share_and_ratio_up_to_rounding(size):
    for box in masks_of(60, size, probability=1):
        assert box.shape == size
        sides = extents(box)
        # A side of n voxels was drawn between n - 1/2 and n + 1/2, or below if it is a single voxel. An axis of one
        # voxel has no part in it.
        drawn = [(n, length) for n, length in zip(sides, size, strict=True) if length > 1]
        most = [(n + 0.5) / length for n, length in drawn]
        least = [(n - 0.5 if n > 1 else 0) / length for n, length in drawn]
        assert math.prod(least) <= SHARE[1]
        assert math.prod(most) >= SHARE[0]
        for i, j in itertools.permutations(range(len(drawn)), 2):
            assert least[i] / most[j] <= RATIO[1]


def test_shares_are_spread_evenly_and_aspects_in_both_directions():
    sides = torch.tensor([extents(box) for box in masks_of(400, (100, 50), probability=1)]) / torch.tensor([100, 50])
    share, ratio = sides.prod(1), sides[:, 0] / sides[:, 1]
    assert share.min() < 0.03
    assert share.max() > 0.39
    quartiles = torch.quantile(share, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([0.115, 0.21, 0.305]), rtol=0, atol=0.03)
    assert ratio.min() < 0.45
    assert ratio.max() > 1 / 0.45
    assert 0.4 < (ratio > 1).float().mean() < 0.6  # relative to the patch neither axis is longer


def test_an_axis_of_one_voxel_leaves_the_share_of_the_others_as_it_is():
    shares = masks_of(100, (1, 60, 60), probability=1).float().mean((1, 2, 3))
    assert shares.min() > 0.01
    assert shares.max() < 0.42
    assert masks_of(1, (1, 1), probability=1).all()


@pytest.mark.parametrize("size", [(6, 8), (3, 6, 5)], ids=str)
def test_boxes_reach_every_voxel(size):
    assert masks_of(400, size, probability=1).any(0).all()


@pytest.mark.parametrize("size", [(100, 100), (40, 40, 40)], ids=str)
def test_boxes_have_no_favorite_side(size):
    centers = [(b.nonzero().double().mean(0) + 0.5) / torch.tensor(size) for b in masks_of(150, size, probability=1)]
    torch.testing.assert_close(torch.stack(centers).mean(0), torch.full((len(size),), 0.5).double(), rtol=0, atol=0.06)


def test_the_probability_is_that_of_a_box_in_each_sample():
    assert not masks_of(50, (6, 6), probability=0).any()
    assert masks_of(50, (6, 6), probability=1).flatten(1).any(1).all()
    half = masks_of(400, (6, 6), probability=0.5).flatten(1).any(1)
    assert 160 < half.sum() < 240


def test_every_sample_has_a_box_of_its_own():
    boxes = masks_of(20, (64, 64), probability=1)
    assert len(boxes.unique(dim=0)) == 20


def test_the_global_seed_reproduces_boxes_and_partners():
    def draw():
        return masks_of(5, (9, 8, 7), probability=0.5), draw_partners(5), cut().boxes, cut().partners

    torch.manual_seed(3)
    state, first = torch.get_rng_state(), draw()
    other = draw()
    torch.set_rng_state(state)
    assert all(map(torch.equal, first, draw()))
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_partner_is_another_sample_and_each_is_used_once(count):
    own = torch.arange(count)
    seen = set()
    for _ in range(40):
        partners = draw_partners(count)
        assert (partners.dtype, partners.device.type) == (torch.int64, "cpu")
        assert (partners != own).all()
        assert torch.equal(partners.sort().values, own)
        seen.add(tuple(partners.tolist()))
    assert {p[0] for p in seen} == set(range(1, count))  # any other sample


def test_a_single_sample_has_no_partner():
    with pytest.raises(ValueError, match=r"^draw_partners: a sample needs another one to be mixed with; got 1\.$"):
        draw_partners(1)


@pytest.mark.parametrize("size", [(5, 4), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16, torch.bool])
def test_mix_takes_the_other_inside_and_keeps_the_rest(size, dtype):
    boxes = torch.rand(2, *size) < 0.5
    for shape in ((2, 3, *size), (2, *size)):
        tensor, other = ((torch.rand(shape) * 5).to(dtype) for _ in range(2))
        kept = tensor.clone()
        mixed = mix(tensor, other, boxes)
        assert mixed.dtype is dtype
        wide = boxes.unsqueeze(1).expand(shape) if len(shape) > boxes.ndim else boxes
        assert torch.equal(mixed[wide], other[wide])
        assert torch.equal(mixed[~wide], tensor[~wide])
        assert torch.equal(tensor, kept)


def test_a_gradient_takes_the_way_of_the_content():
    cutmix = cut()
    image = torch.rand(4, 2, 8, 8, requires_grad=True)
    cutmix(image).sum().backward()
    given = cutmix.boxes[cutmix.partners.argsort()]  # of the sample that a sample fills
    torch.testing.assert_close(image.grad, ((~cutmix.boxes).float() + given.float()).unsqueeze(1).expand_as(image))


@pytest.mark.parametrize("size", [(8, 8), (2, 6, 6)], ids=str)
@pytest.mark.parametrize("within_batch", [True, False])
def test_image_label_and_confidence_are_cut_by_one_box_from_one_sample(size, within_batch):
    cutmix = cut(4, size, within_batch=within_batch)
    logits, second = torch.randn(2, 4, 3, *size)
    mixed = cutmix(logits, None if within_batch else second)
    labels = cutmix(logits.argmax(1), None if within_batch else second.argmax(1))
    confidence = cutmix(logits.amax(1, keepdim=True), None if within_batch else second.amax(1, keepdim=True))
    assert torch.equal(mixed.argmax(1), labels)
    assert torch.equal(mixed.amax(1, keepdim=True), confidence)
    assert torch.equal(mixed, cutmix(logits, None if within_batch else second))
    for sample in range(4):
        source = logits[cutmix.partners[sample]] if within_batch else second[sample]
        box = cutmix.boxes[sample]
        assert box.any()
        assert torch.equal(mixed[sample][:, box], source[:, box])
        assert torch.equal(mixed[sample][:, ~box], logits[sample][:, ~box])


def test_without_a_chance_of_a_box_nothing_is_mixed_and_nothing_needed():
    for within_batch in (True, False):
        cutmix = cut(1, probability=0.0, within_batch=within_batch)
        image = torch.rand(1, 1, 8, 8)
        assert cutmix(image) is image
        assert not cutmix.boxes.any()


def test_boxes_need_something_to_be_filled_from():
    with pytest.raises(
        ValueError, match=r"^CutMix: without partners in the batch, samples of the second batch must be given to m"
    ):
        cut(within_batch=False)(torch.rand(4, 1, 8, 8))
    with pytest.raises(ValueError, match="a sample needs another one"):
        cut(1)
