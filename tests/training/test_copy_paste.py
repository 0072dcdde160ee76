"""Parts of copy-paste: the box of a batch, the halves of a batch, and the largest components."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_collab.training.copy_paste import as_many, draw_box, draw_inside, halves, largest_components


@pytest.mark.parametrize(
    ("size", "extent"),
    [((96, 96, 96), (64, 64, 64)), ((112, 112, 80), (74, 74, 53)), ((256, 256), (170, 170)), ((1, 12), (1, 8))],
)
def test_the_box_has_two_thirds_of_each_side(size, extent):
    """Those of the released code: int(side * 2 / 3), and 64 of 96. An axis of one voxel is not cut."""
    torch.manual_seed(0)
    for _ in range(20):
        (box,) = draw_box(size, 2 / 3).tolist()
        assert [last - first for first, last in box] == list(extent)
        assert all(first >= 0 and last <= length for (first, last), length in zip(box, size, strict=True))


def test_every_place_of_the_box_is_equally_likely():
    torch.manual_seed(0)
    places = Counter(draw_box((6,), 2 / 3)[0, 0, 0].item() for _ in range(3000))
    assert places.keys() == {0, 1, 2}
    assert all(abs(number - 1000) < 100 for number in places.values())


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.floats(0.01, 0.99), st.integers(0, 99))
def test_the_mask_is_one_box(size, share, seed):
    torch.manual_seed(seed)
    (box,) = draw_box(size, share).tolist()
    torch.manual_seed(seed)
    inside = draw_inside(size, share, torch.device("cpu"))
    want = np.zeros((1, *size), bool)
    for place in np.ndindex(*size):
        want[(0, *place)] = all(first <= i < last for i, (first, last) in zip(place, box, strict=True))
    assert np.array_equal(inside.numpy(), want)


@pytest.mark.parametrize("count", range(1, 8))
def test_halves_are_all_samples_once(count):
    torch.manual_seed(count)
    first, second = halves(count)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(count))
    assert len(first) - len(second) in (0, 1)


def test_a_sample_is_in_either_half():
    """nnU-Net centers the last samples of a batch on foreground; they must not be pasted one way only."""
    torch.manual_seed(0)
    first = Counter(index for _ in range(300) for index in halves(4)[0].tolist())
    assert all(abs(first[index] - 150) < 40 for index in range(4))


@pytest.mark.parametrize(("count", "want"), [(2, [4, 5]), (3, [4, 5, 6]), (7, [4, 5, 6, 4, 5, 6, 4])])
def test_as_many_as_the_others(count, want):
    assert as_many(torch.tensor([4, 5, 6]), count).tolist() == want


def flood(mask, steps):
    """Components as sets of places, by breadth-first search; the first place of each in the order of the array."""
    left, found = {place for place in np.ndindex(*mask.shape) if mask[place]}, []
    for start in np.ndindex(*mask.shape):
        if start not in left:
            continue
        component, edge = {start}, [start]
        while edge:
            here = edge.pop()
            for step in np.ndindex(*[3] * mask.ndim):
                shift = [s - 1 for s in step]
                there = tuple(a + b for a, b in zip(here, shift, strict=True))
                if 0 < sum(map(abs, shift)) <= steps and there in left and there not in component:
                    component.add(there)
                    edge.append(there)
        left -= component
        found.append(component)
    return found


@pytest.mark.parametrize(("neighbors", "steps"), [("faces", 1), ("edges", 2), ("corners", 3)])
@pytest.mark.parametrize("size", [(9, 8), (4, 5, 6)])
def test_the_largest_component_of_each_mask(size, neighbors, steps):
    generator = np.random.default_rng(len(size))
    masks = generator.random((2, 3, *size)) < 0.2
    masks[1, 2] = False
    found = largest_components(torch.tensor(masks), neighbors).numpy()
    several = 0
    for place in np.ndindex(2, 3):
        components = flood(masks[place], steps)
        several += len(components) > 1
        want = np.zeros(size, bool)
        if components:
            largest = max(components, key=len)  # of equally large ones the first
            want[tuple(np.array(sorted(largest)).T)] = True
        assert np.array_equal(found[place], want)
    assert several >= 3
