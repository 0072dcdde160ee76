"""Feature perturbation: further passes of a network's decoder over features in which channels are dropped.

One encoder pass serves all flows; the perturbed features are appended to the batch, so that the decoder runs once over
everything. With instance normalisation, as in nnU-Net's networks, this equals separate passes; with batch
normalisation clean and perturbed samples would share statistics.

The drop is `F.dropout2d` or `F.dropout3d` with `training=True` said explicitly, drawn for one call: there is no module
that a forgotten `train()` could leave switched on, and validation and prediction never take this path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Where = Literal["all", "bottleneck"]


class Flow(NamedTuple):
    """Samples of the batch that pass the decoder once more.

    Attributes:
        start: First sample.
        stop: One behind the last sample.
        rate: Share of the channels that are dropped, in [0, 1); the others are scaled up by 1 / (1 - rate).
        where: `all`: every feature map that the encoder hands to the decoder; `bottleneck`: the deepest one only.
    """

    start: int
    stop: int
    rate: float
    where: Where = "all"


def append_flows(features: Any, flows: Sequence[Flow]) -> Any:
    """The encoder's output with the samples of every flow appended, perturbed, in the order of the flows.

    Args:
        features: `(B, D, *s)`, or a sequence of such maps, finest first.
        flows: What to append.

    Returns:
        The same kind of object for a batch of `B + sum(stop - start)` samples.
    """
    if isinstance(features, Tensor):
        return _append(features, flows, deepest=True)
    last = len(features) - 1
    return type(features)([_append(f, flows, deepest=i == last) for i, f in enumerate(features)])


def _append(feature: Tensor, flows: Sequence[Flow], *, deepest: bool) -> Tensor:
    drop = F.dropout2d if feature.ndim == 4 else F.dropout3d
    extra = []
    for flow in flows:
        part = feature[flow.start : flow.stop]
        extra.append(drop(part, flow.rate, training=True) if deepest or flow.where == "all" else part)
    return torch.cat([feature, *extra])
