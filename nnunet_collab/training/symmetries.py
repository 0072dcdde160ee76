"""Quarter turns and flips of a whole batch: views that change no intensity, and labels that change alike.

Source: the strong view of nnFilterMatch, which turns every batch in the plane of the last two axes and flips it there.
We flip along all axes, and never leave a batch as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Symmetry(NamedTuple):
    """One of the symmetries of a patch.

    Attributes:
        turns: Quarter turns in the plane of the last two axes, 0 to 3.
        flipped: Axes that are then flipped, counted from the last one: -1, -2, ...
    """

    turns: int
    flipped: tuple[int, ...]

    def __call__(self, tensor: Tensor) -> Tensor:
        """`(..., *S)`, turned and flipped."""
        return tensor.rot90(self.turns, (-2, -1)).flip(self.flipped)

    @property
    def changes_nothing(self) -> bool:
        """Whether every voxel stays where it is: half a turn is a flip along both axes."""
        return (self.turns, {*self.flipped}) in ((0, set()), (2, {-2, -1}))


def draw_symmetry(size: Sequence[int]) -> Symmetry:
    """One that changes the patch and keeps its size; each is equally likely.

    Drawn on the CPU by torch's global generator, whose state is in the checkpoints.

    Args:
        size: Spatial size of the patch. Where its last two sides differ, only half turns keep it.
    """
    turns = (0, 1, 2, 3) if size[-2] == size[-1] else (0, 2)
    while True:
        chosen = turns[int(torch.randint(len(turns), ()))]
        coins = torch.rand(len(size)).tolist()
        symmetry = Symmetry(chosen, tuple(-1 - axis for axis, coin in enumerate(coins) if coin < 1 / 2))
        if not symmetry.changes_nothing:
            return symmetry
