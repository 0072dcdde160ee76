"""Primus, a Transformer for three dimensions, as a student (Wald et al. 2025, arXiv:2503.01835).

The class is that of dynamic_network_architectures. nnU-Net has a trainer for each of the four sizes, so a student with
their keywords is published for that trainer and predicts without this package. With other keywords it is built by
`networks.primus.Primus`, and prediction needs this package. Rates of dropout change nothing in a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nnunet_collab.core.errors import CollabError

STOCK = "dynamic_network_architectures.architectures.primus.Primus"
CHANGED = "nnunet_collab.networks.primus.Primus"
INPUT = ":input"  # after the name of a layer: what it gets, not what it returns
# nnU-Net 2.8, primus_trainers.py: patches of 8 voxels and the sizes S, B, M, L of the paper (table 3).
_COMMON = {"patch_embed_size": [8, 8, 8], "drop_path_rate": 0.2, "scale_attn_inner": True, "init_values": 0.1}
_SIZES = {"s": (396, 12, 6), "b": (792, 12, 12), "m": (864, 16, 12), "l": (1056, 24, 16)}
PRIMUS: Mapping[str, Mapping[str, Any]] = {
    f"primus_{size}": {"embed_dim": width, "eva_depth": depth, "eva_numheads": heads, **_COMMON}
    for size, (width, depth, heads) in _SIZES.items()
}
_ONLY_TRAINING = {"drop_path_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"}


def primus_entry(
    student: str, network: str, arch: Mapping[str, Any], patch_size: Sequence[int]
) -> tuple[str, dict[str, Any]]:
    """The dotted path and the keywords of a Primus.

    Args:
        student: Name of the student, for messages.
        network: A key of `PRIMUS`.
        arch: Additional keywords, JSON values.
        patch_size: Three sizes, in voxels.

    Raises:
        CollabError: If the patch cannot be cut into Primus's patches.
    """
    usual = {**PRIMUS[network], "input_shape": list(patch_size)}
    keywords = {**usual, **arch}
    parts = keywords["patch_embed_size"]
    if isinstance(parts, list) and len(parts) == len(patch_size) and all(isinstance(p, int) and p > 0 for p in parts):
        wrong = [axis for axis, (size, part) in enumerate(zip(patch_size, parts, strict=True)) if size % part]
        if wrong:
            fitting = [max(part, size - size % part) for size, part in zip(patch_size, parts, strict=True)]
            raise CollabError(
                f"student {student!r}: {network} cuts the patch into parts of {parts} voxels, so its size must be a "
                f"multiple of that along every axis; got {list(patch_size)}. Set patch_size to {fitting}, for example."
            )
    changed = {key for key, value in keywords.items() if value != usual.get(key)}
    return STOCK if changed <= _ONLY_TRAINING else CHANGED, keywords


def is_primus(network: nn.Module) -> bool:
    """Whether the network is a Primus, whose features reach `up_projection` without leaving a layer as a map."""
    return all(
        isinstance(getattr(network, part, None), nn.Module) for part in ("eva", "down_projection", "up_projection")
    )


def primus_taps(network: nn.Module) -> dict[str, str]:
    """The taps of a Primus: what its decoder gets, and the decoder's map before the last layer."""
    stages = len(network.up_projection.decode)  # type: ignore[arg-type, union-attr]
    given = f"up_projection{INPUT}"
    return {"encoder": given, "decoder": f"up_projection.decode.{stages - 2}" if stages > 1 else given}
