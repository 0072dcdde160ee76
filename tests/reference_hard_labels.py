"""nnU-Net's loss on hard labels in float64, one voxel at a time, written from the equation."""

from __future__ import annotations

import math

import numpy as np


def probabilities(logits, regions):
    """Of one voxel, a list."""
    if regions:
        return [1 / (1 + math.exp(-z)) for z in logits]
    powers = [math.exp(z) for z in logits]
    return [power / sum(powers) for power in powers]


def reference(logits, truth, form, smooth=1e-5):
    """The equation of the module, a voxel at a time."""
    z, keep = logits.detach().numpy(), truth.keep.numpy()
    regions = truth.regions is not None
    channels = range(z.shape[1])
    counted = [k for k in channels if regions or k > 0]
    groups = [range(len(z))] if form.batch_dice else [[b] for b in range(len(z))]
    surprise, voxels, missed = 0.0, 0, []
    for group in groups:
        both, predicted, known = ({k: 0.0 for k in counted} for _ in range(3))
        for b in group:
            for v in np.ndindex(*keep.shape[1:]):
                if not keep[(b, *v)]:
                    continue
                p = probabilities([z[(b, k, *v)] for k in channels], regions)
                if regions:
                    y = [bool(truth.regions[(b, k, *v)]) for k in channels]
                    parts = [-math.log(p[k] if y[k] else 1 - p[k]) for k in channels]
                    surprise += sum(parts) / (1 if form.sum_regions else len(parts))
                else:
                    y = [int(truth.labels[(b, *v)]) == k for k in channels]
                    surprise -= math.log(p[y.index(True)])
                voxels += 1
                for k in counted:
                    both[k] += p[k] * y[k]
                    predicted[k] += p[k]
                    known[k] += y[k]
        missed += [1 - (2 * both[k] + smooth) / (predicted[k] + known[k] + smooth) for k in counted]
    return surprise / voxels + (sum(missed) / len(missed) if form.dice else 0.0)
