"""Statistics of the pseudo labels of an epoch: share used, entropy, and share of each class."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from nnunet_collab.core.distributed import world_size
from nnunet_collab.losses.pseudo_labels import pseudo_labels

COLLAPSED = 0.9999  # if one class has at least this share of the used pseudo labels, they teach only that class


class PseudoLabelCurves:
    """Sums over the batches of an epoch, kept on the device, so that no step waits for them.

    Args:
        regions: True if the channels are overlapping regions (sigmoid), False for exclusive classes (softmax).
    """

    def __init__(self, *, regions: bool) -> None:
        self.regions = regions
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, student: str, logits: Tensor, keep: Tensor, threshold: float | Tensor) -> None:
        """Count the pseudo labels of one batch.

        Args:
            student: Name of the student that learns from them.
            logits: Logits of the pseudo labels, `(B, C, *S)`.
            keep: Voxels that count, `(B, *S)` bool.
            threshold: Smallest confidence of a pseudo label that is used.
        """
        logits = logits.detach().float()
        labels, confidence = pseudo_labels(logits, regions=self.regions)
        used = keep.unsqueeze(1) & (confidence >= threshold)
        axes = [0, *range(2, labels.ndim)]
        if self.regions:
            p = logits.sigmoid()
            entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)
            named, of = (labels.bool() & used).sum(axes), used.sum(axes)
        else:
            log_p = logits.log_softmax(dim=1)
            entropy = -(log_p.exp() * log_p).sum(dim=1, keepdim=True) / math.log(logits.shape[1])
            # Not bincount(labels[used]): the number of used labels would have to be read.
            classes = torch.arange(logits.shape[1], device=labels.device).view(1, -1, *[1] * (labels.ndim - 2))
            named = ((labels == classes) & used).sum(axes)
            of = used.sum().expand_as(named)
        kept = keep.sum() * used.shape[1]
        total = torch.stack(
            [kept.double(), used.sum().double(), entropy.masked_fill(~keep.unsqueeze(1), 0).sum(dtype=torch.float64)]
        )
        now = torch.cat([total, named.double(), of.double()])
        now = torch.where(now.isfinite().all(), now, torch.zeros_like(now))  # the step of such a batch is skipped, too
        self.sums[student] = self.sums[student] + now if student in self.sums else now

    def finish_epoch(self) -> dict[str, dict[str, float]]:
        """Values of the epoch per student, over all ranks. The sums restart from 0.

        `used`: share of the voxels whose label is used; `entropy`: mean over the voxels, as a share of the largest
        possible one; `class k`: share of the used labels that are of class k; `region k`: share of the used
        labels of this region that lie inside it. NaN where nothing was counted.
        """
        curves = {}
        for student, sums in sorted(self.sums.items()):
            if world_size() > 1:
                dist.all_reduce(sums)
            kept, used, entropy, *counts = sums.tolist()
            named, of = counts[: len(counts) // 2], counts[len(counts) // 2 :]
            curves[student] = {"used": _ratio(used, kept), "entropy": _ratio(entropy, kept)}
            word, first = ("region", 1) if self.regions else ("class", 0)
            shares = (_ratio(*pair) for pair in zip(named, of, strict=True))
            curves[student] |= {f"{word} {k}": share for k, share in enumerate(shares, start=first)}
        self.sums = {}
        return curves


def collapsed(values: dict[str, float]) -> str | None:
    """The one class that all pseudo labels of an epoch have, or None. Regions without used labels do not count.

    Args:
        values: Values of one student, as `PseudoLabelCurves.finish_epoch` returns them.
    """
    shares = {name: share for name, share in values.items() if name.startswith("class ")}
    if shares and max(shares.values()) >= COLLAPSED:
        return max(shares, key=lambda name: shares[name])
    outside = [1 - share for name, share in values.items() if name.startswith("region ") and not math.isnan(share)]
    if outside and min(outside) >= COLLAPSED:
        return "background"
    return None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
