"""The released CMAformer: its names, its fixed architecture, and the parts of it that nothing uses.

With `official_compat` a CMAformer is the published network with its faults, so that its weights load and give the same
output. Its checkpoints then have the released names; `PARTS` maps our submodules to the released ones.

Source: github.com/lzeeorno/Lagrange-Duality-and-CMAformer, file net/CMAformer.py. 55.04 million parameters with one
channel and three classes, of which 7.36 million are never used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.cmaformer.attention import Attention, DecoderLayer, EncoderLayer

SIZE = 512
SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "features": (16, 32, 64, 128, 256, 512),
        "num_heads": 8,
        "num_layers": 3,
        "norm": "batch",
        "aspp_rates": (6, 12, 18),
        "gate_activation": "none",
        "use_vit_block": True,
        "use_cross_attention": True,
        "rel_pos_bias": False,
    }
)
"""The settings of `CMAformer` that describe the released network."""


def _parts() -> dict[str, str]:
    names = {
        "encoder.stem": "input_layer",
        "encoder.stem_skip": "input_skip.0",
        "encoder.transformer": "EncoderBlock.layers",
        "decoder.bridge.output": "FeatureFusion_bridge.output",
        "decoder.transformer": "DecoderBlock.layers",
        "decoder.fusion.output": "FeatureFusion_out.output",
        "decoder.classifier": "output_layer.0",
        "unused.position": "patch_position_embedding1",
        "unused.encoder_layer": "Encoder",
        "unused.decoder_layer": "Decoder",
    }
    for i in range(3):
        names |= {
            f"encoder.embeddings.{i}.proj": f"patch_embedding{i + 1}.proj",
            f"encoder.embeddings.{i}.position": f"patch_embedding{i + 1}.pos.pa_conv",
            f"encoder.embeddings.{i}.norm": f"patch_embedding{i + 1}.norm",
            f"encoder.channel_attentions.{i}": f"squeeze_excite{i + 1}",
            f"encoder.residuals.{i}": f"residual_conv{i + 1}",
            f"decoder.bridge.branches.{i}": f"FeatureFusion_bridge.aspp_block{i + 1}",
            f"decoder.gates.{i}": f"attn{i + 1}",
            f"decoder.residuals.{i}": f"up_residual_conv{i + 1}",
            f"decoder.fusion.branches.{i}": f"FeatureFusion_out.aspp_block{i + 1}",
        }
    return names


PARTS: Mapping[str, str] = MappingProxyType(_parts())
"""Our submodules and their names in the released network; no name is a prefix of another."""


class UnusedPositionEmbedding(nn.Module):
    """Parameters of a patch embedding that the released network builds and never calls."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.position_embeddings = nn.Parameter(torch.zeros(1, (SIZE // 2) ** 2 + 1, channels))


def unused_parts() -> nn.ModuleDict:
    """Unused parameters in the weights of the released network; their gradient is always None."""
    features, heads = SETTINGS["features"], SETTINGS["num_heads"]
    return nn.ModuleDict(
        {
            "position": UnusedPositionEmbedding(features[0]),
            "encoder_layer": EncoderLayer(features[5], Attention(features[5], heads)),
            "decoder_layer": DecoderLayer(features[5], Attention(features[5], heads)),
        }
    )


def check_settings(given: Mapping[str, Any], usual: Mapping[str, Any], steps: Sequence[Sequence[int]]) -> None:
    """Raise unless the settings keep the released architecture.

    Args:
        given: Settings by name, as the user gave them.
        usual: Default values; a setting with its default counts as not given.
        steps: The five downsampling steps, per axis.

    Raises:
        CollabError: If a setting needs another architecture, or the plans have other poolings.
    """
    changed = [name for name, value in given.items() if value not in (usual[name], SETTINGS[name])]
    if changed:
        raise CollabError(
            f"CMAformer: official_compat fixes the architecture, so {', '.join(changed)} cannot be set to "
            f"{', '.join(repr(given[name]) for name in changed)}. Drop official_compat, or drop these settings."
        )
    if any(tuple(step) != (2, 2) for step in steps):
        raise CollabError(
            f"CMAformer: official_compat is the released 2D network, which halves both axes five times; the plans pool "
            f"by {[list(step) for step in steps]}. Drop official_compat, or train the 2d configuration with a patch of "
            f"{SIZE} x {SIZE}."
        )


def check_size(size: Sequence[int]) -> None:
    """Raise unless `size` is the only patch size that the released network accepts.

    Raises:
        CollabError: If it is another size.
    """
    if tuple(size) != (SIZE, SIZE):
        raise CollabError(
            f"CMAformer: with official_compat the network accepts patches of {SIZE} x {SIZE} only; found "
            f"{' x '.join(str(n) for n in size)}. Set patch_size to [{SIZE}, {SIZE}], or drop official_compat."
        )


def rename(state: dict[str, Tensor], prefix: str, *, to_released: bool) -> None:
    """Change the names of a state dict in place, from ours to the released ones or back.

    Args:
        state: Tensors by name.
        prefix: Only names that begin with it belong to this network; it is not changed.
        to_released: True for ours to released, False for the opposite.
    """
    pairs = [(ours, theirs) if to_released else (theirs, ours) for ours, theirs in PARTS.items()]
    for name in [name for name in state if name.startswith(prefix)]:
        rest = name.removeprefix(prefix)
        for old, new in pairs:
            if rest.startswith(old + "."):
                state[f"{prefix}{new}{rest.removeprefix(old)}"] = state.pop(name)
                break
