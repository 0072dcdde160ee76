"""The middle of a patch: its sides, and that taking and putting back are inverse."""

from __future__ import annotations

import pytest
import torch

from nnunet_collab.methods.crln.center_crop import CenterCrop


@pytest.mark.parametrize(
    ("size", "share", "multiple", "want"),
    [
        ((112, 112, 80), 0.75, (16, 16, 16), (80, 80, 64)),  # 84 is nearer to 80 than to 96
        ((32, 32), 0.5, (8, 8), (16, 16)),
        ((4, 32, 32), 0.75, (4, 8, 8), (4, 24, 24)),  # thick slices that cannot be fewer
        ((32, 32), 0.01, (8, 8), (8, 8)),
        ((32, 32), 0.9, (8, 8), (32, 32)),
        ((48, 32), 1.0, (16, 32), (48, 32)),
    ],
    ids=str,
)
def test_sides_are_the_nearest_multiples_the_network_takes(size, share, multiple, want):
    crop = CenterCrop(size, share, multiple)
    assert crop.size == want
    assert crop.whole == (want == size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_the_box_lies_in_the_middle_and_finds_its_place_again(dtype):
    crop = CenterCrop((8, 12), 0.5, (2, 3))
    patch = (torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12) % 5).to(dtype)
    for tensor in (patch, patch[:, 0]):
        box = crop.take(tensor)
        assert torch.equal(box, tensor[..., 2:6, 3:9])
        back = crop.put_back(box)
        assert back.dtype is dtype
        assert torch.equal(crop.take(back), box)
        assert back.sum() == box.sum()
        assert back.shape == tensor.shape


def test_odd_margins_are_put_back_where_they_were():
    crop = CenterCrop((7, 9, 5), 0.5, (4, 4, 2))
    patch = torch.arange(7 * 9 * 5.0).reshape(1, 7, 9, 5)
    assert torch.equal(torch.where(crop.put_back(crop.take(patch)) > 0, patch, 0), crop.put_back(crop.take(patch)))


def test_the_whole_patch_is_left_alone():
    crop = CenterCrop((8, 8), 1.0, (4, 4))
    patch = torch.randn(1, 2, 8, 8)
    assert crop.put_back(patch) is patch
    assert torch.equal(crop.take(patch), patch)
