"""Networks whose probabilities are averaged: the students of a run, or the folds of a model that teaches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.networks.blueprint import Blueprint, build_network


def mean_probability(logits: Tensor, *, regions: bool) -> Tensor:
    """Logits whose softmax (or sigmoid) is the mean of the members' probabilities.

    Args:
        logits: `(M, B, C, *S)`, of M members.
        regions: True if the channels are overlapping regions (sigmoid), False for exclusive classes (softmax).

    Returns:
        `(B, C, *S)`, float32.
    """
    logits = logits.float()
    if not regions:
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
    inside, outside = F.logsigmoid(logits).logsumexp(dim=0), F.logsigmoid(-logits).logsumexp(dim=0)
    return inside - outside


class EnsembleNetwork(nn.Module):
    """Several networks of one architecture as one, for a frozen student that is the ensemble of several folds.

    Args:
        input_channels: Channels of the images.
        num_classes: Classes or regions.
        deep_supervision: Ignored: it has one output.
        member: Blueprint of each network.
        count: Number of networks.
        regions: Whether the channels are overlapping regions.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        member: Blueprint,
        count: int,
        regions: bool,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.members = nn.ModuleList(
            build_network(member, input_channels, num_classes, deep_supervision=False) for _ in range(count)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, C, *S)` of the mean probability, of `(B, C_in, *S)`."""
        outputs = [member(image) for member in self.members]
        logits = [output[0] if isinstance(output, (list, tuple)) else output for output in outputs]
        return mean_probability(torch.stack(logits), regions=self.regions)


def ensemble_of(member: Blueprint, count: int, *, regions: bool) -> Blueprint:
    """The blueprint of an `EnsembleNetwork`."""
    return {
        "network_class_name": f"{EnsembleNetwork.__module__}.{EnsembleNetwork.__qualname__}",
        "arch_kwargs": {"member": member, "count": count, "regions": regions},
        "_kw_requires_import": [],
    }
