"""Quarter turns and flips: all of them, equally often, never none, and the same for images and labels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from nnunet_collab.training.symmetries import Symmetry, draw_symmetry


def patch(size):
    return torch.arange(float(np.prod(size))).view(1, 1, *size)


@pytest.mark.parametrize(
    ("size", "number"),
    # The symmetries of a square but the identity, of a rectangle; with a third axis that is flipped or not.
    [((4, 4), 7), ((4, 6), 3), ((3, 4, 4), 15), ((3, 4, 6), 7)],
)
def test_every_symmetry_but_the_identity_is_equally_likely(size, number):
    torch.manual_seed(0)
    image = patch(size)
    found = Counter()
    for _ in range(200 * number):
        turned = draw_symmetry(size)(image)
        assert turned.shape == image.shape
        found[tuple(turned.flatten().tolist())] += 1
    assert tuple(image.flatten().tolist()) not in found
    assert len(found) == number
    assert all(120 < count < 280 for count in found.values())


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flipped", [(), (-1,), (-2,), (-1, -2), (-1, -3)])
def test_images_and_masks_of_voxels_are_turned_alike(turns, flipped):
    image = torch.rand(2, 3, *(2, 4, 4)[-3 if -3 in flipped else -2 :])
    symmetry = Symmetry(turns, flipped)
    assert torch.equal(symmetry(image)[:, 1], symmetry(image[:, 1]))
    assert torch.equal(symmetry(image) > 0.5, symmetry(image > 0.5))
    want = np.rot90(image.numpy(), turns, (-2, -1))
    assert np.array_equal(symmetry(image).numpy(), np.flip(want, flipped) if flipped else want)


def test_what_changes_nothing_is_known():
    square, found = patch((4, 4)), []
    for turns in range(4):
        for flipped in ((), (-1,), (-2,), (-1, -2)):
            symmetry = Symmetry(turns, flipped)
            assert symmetry.changes_nothing == torch.equal(symmetry(square), square)
            found.append(symmetry.changes_nothing)
    assert sum(found) == 2
