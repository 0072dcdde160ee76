"""The settings of a CMAformer, with their checks, and the strides of its five downsampling steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise

import nnunet_collab.networks.cmaformer.released as released
from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.cmaformer.layers import Gate

STEPS = 5


@dataclass(frozen=True)
class Design:
    """The settings of `CMAformer`, explained there. The defaults are the released values, or correct them."""

    steps: tuple[tuple[int, ...], ...]  # from `step_strides`
    features: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    num_heads: int = 8
    num_layers: int = 3
    norm: str = "instance"
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    gate_activation: Gate = "sigmoid"
    use_vit_block: bool = True
    use_cross_attention: bool = True
    rel_pos_bias: bool = False
    official_compat: bool = False

    def __post_init__(self) -> None:
        """Check what types cannot express.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        _require(self.norm in ("instance", "batch"), "norm must be 'instance' or 'batch'", self.norm)
        _require(
            self.gate_activation in ("none", "sigmoid"),
            "gate_activation must be 'none' or 'sigmoid'",
            self.gate_activation,
        )
        _require(_whole(self.features) and len(self.features) == 6, "features must be six numbers >= 1", self.features)
        _require(
            _whole([self.num_heads]) and self.features[5] % self.num_heads == 0,
            f"num_heads must divide the deepest map's {self.features[5]} channels",
            self.num_heads,
        )
        _require(_whole([self.num_layers]), "num_layers must be >= 1", self.num_layers)
        _require(_whole(self.aspp_rates), "aspp_rates must be at least one whole number >= 1", self.aspp_rates)
        _require(
            self.use_vit_block or not self.rel_pos_bias,
            "rel_pos_bias needs use_vit_block: without it there is no attention",
            self.rel_pos_bias,
        )
        if self.official_compat:
            usual = {field.name: field.default for field in fields(self)}
            given = {name: getattr(self, name) for name in released.SETTINGS}
            released.check_settings(given, usual, self.steps)

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.steps[0])

    @property
    def map_norm(self) -> str:
        """Normalization of maps: as set, or as released."""
        return str(released.SETTINGS["norm"]) if self.official_compat else self.norm

    @property
    def gate(self) -> Gate:
        """Activation of the gates: as set, or as released."""
        return "none" if self.official_compat else self.gate_activation


def step_strides(strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Strides of the five downsampling steps: those of the plans' first five poolings.

    With fewer poolings the deepest steps keep the size. The stride of the plans' first stage (1 in nnU-Net's own plans)
    multiplies that of the first step.

    Args:
        strides: Stride of every stage of the plans' network, one list of two or three whole numbers >= 1 per stage.

    Raises:
        CollabError: If `strides` has another form.
    """
    listed = strides if isinstance(strides, Sequence) else ()
    rows = [tuple(row) if isinstance(row, Sequence) else () for row in listed]
    _require(
        len({len(row) for row in rows}) == 1 and len(rows[0]) in (2, 3) and all(_whole(row) for row in rows),
        "strides must be one list of 2 or 3 whole numbers >= 1 per stage, e.g. [[1, 1], [2, 2]]",
        strides,
    )
    totals = list(accumulate(rows, lambda total, row: tuple(t * s for t, s in zip(total, row, strict=True))))
    reached = [(1,) * len(rows[0])] + [totals[min(p, len(totals) - 1)] for p in range(1, STEPS + 1)]
    return tuple(tuple(b // a for a, b in zip(*pair, strict=True)) for pair in pairwise(reached))


def _whole(values: Sequence[object]) -> bool:
    """Whether there is at least one value, and all values are whole numbers >= 1."""
    return bool(values) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in values)


def _require(holds: bool, rule: str, found: object) -> None:
    if not holds:
        raise CollabError(f"CMAformer: {rule}; found {found!r}. Correct it in the plans' arch_kwargs.")
