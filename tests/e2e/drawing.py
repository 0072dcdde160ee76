"""Draws of CPS that do not depend on how many processes there are."""

from __future__ import annotations

import threading

import torch

from nnunet_collab.losses.positive_supervision import Drawn


def class_by_class(draw):
    """A `_draw` that lists the voxels of each class and has `draw(voxels, count)` choose among them.

    First the uncertain voxels of the class, then the reliable ones of all others; of a class that lacks
    either, one anchor is drawn, which must not count.
    """

    def drawn(known, tau, anchors, negatives):
        chosen = [], [], []
        for c in range(known.confidence.shape[1]):
            member = known.reliable & (known.labels == c)
            uncertain = (member & (known.confidence[:, c] < tau)).nonzero()
            others = (known.reliable & (known.labels != c)).nonzero()
            both = len(uncertain) and len(others)
            any_voxel = torch.zeros(1, known.labels.ndim).long()
            chosen[1].append(draw(uncertain, anchors) if both else any_voxel)
            chosen[2].append(draw(others, anchors * negatives) if both else any_voxel.expand(negatives, -1))
            chosen[0].extend([c] * len(chosen[1][-1]))
        return Drawn(torch.tensor(chosen[0]).long(), torch.cat(chosen[1]), torch.cat(chosen[2]))

    return drawn


class Everything(threading.local):
    """With `class_by_class`: all uncertain voxels, and for each of them the same negatives, of the first image.

    Two processes whose first images are alike then have the negatives of one with the whole batch.
    """

    def __init__(self, negatives):
        self.negatives = negatives
        self.anchors = None

    def __call__(self, voxels, count):
        if self.anchors is None:
            self.anchors = len(voxels)
            return voxels
        first = voxels[voxels[:, 0] == 0][: self.negatives]
        drawn, self.anchors = first.repeat(self.anchors, 1), None
        return drawn
