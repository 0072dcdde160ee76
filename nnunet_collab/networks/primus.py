"""Primus with other keywords than nnU-Net's trainers give it, buildable from plans; see `primus_entry`."""

from __future__ import annotations

from typing import Any

from dynamic_network_architectures.architectures.primus import Primus as StockPrimus


class Primus(StockPrimus):  # type: ignore[misc]
    """`dynamic_network_architectures`' Primus with the arguments that nnU-Net gives every planned network.

    Args:
        input_channels: Channels of the images.
        num_classes: Classes or regions.
        deep_supervision: Ignored: Primus has one output.
        keywords: Those of `dynamic_network_architectures`.
    """

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False, **keywords: Any) -> None:
        super().__init__(input_channels=input_channels, num_classes=num_classes, **keywords)
