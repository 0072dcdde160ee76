"""CMAformer's encoder and decoder: how its layers are put together. The equations are in `cmaformer`.

Shapes: `B` samples, `C` classes or regions, `D` channels, `*S` two or three spatial axes of the patch, `*s` of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.networks.cmaformer.attention import (
    Attention,
    DecoderLayer,
    EncoderLayer,
    RelativePositionBias,
)
from nnunet_collab.networks.cmaformer.design import Design
from nnunet_collab.networks.cmaformer.layers import (
    AtrousPyramid,
    ChannelAttention,
    CrossAttentionGate,
    PatchEmbedding,
    ResidualConv,
    convolution,
    make_map_norm,
)
from nnunet_collab.networks.dimensions import CONVOLUTIONS, UPSAMPLING
from nnunet_collab.networks.mix_transformer import to_map, to_tokens


class CMAEncoder(nn.Module):
    """Stem, three stages, Transformer encoder.

    Attributes:
        total_strides: Stride of each map with respect to the input, per axis.
    """

    def __init__(self, input_channels: int, design: Design) -> None:
        super().__init__()
        f, norm, dims, keep = design.features, design.map_norm, design.dims, (1,) * design.dims
        self.stem = nn.Sequential(
            convolution(input_channels, f[0], dims),
            make_map_norm(norm, f[0], dims),
            nn.ReLU(),
            convolution(f[0], f[0], dims),
        )
        self.stem_skip = convolution(input_channels, f[0], dims)
        self.embeddings, self.channel_attentions, self.residuals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.total_strides = [keep]
        steps = [*design.steps, keep]
        for i in range(3):
            fine, middle, coarse = f[2 * i], f[2 * i + 1], f[min(2 * i + 2, 5)]
            first, second = steps[2 * i], steps[2 * i + 1]
            self.embeddings.append(PatchEmbedding(fine, middle, first, scrambled=design.official_compat))
            self.channel_attentions.append(ChannelAttention(middle))
            self.residuals.append(ResidualConv(middle, coarse, second, norm))
            rows = zip(self.total_strides[-1], first, second, strict=True)
            self.total_strides.append(tuple(math.prod(row) for row in rows))
        layers = design.num_layers if design.use_vit_block else 0
        self.transformer = nn.ModuleList(EncoderLayer(f[5], _attention(design)) for _ in range(layers))
        if layers:
            self.total_strides.append(self.total_strides[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, C, *S)` to the maps `x_1` to `x_4` and, with the Transformer, `z`: `(B, D_i, *s_i)`, finest first."""
        maps = [self.stem(x) + self.stem_skip(x)]
        for embedding, attention, residual in zip(
            self.embeddings, self.channel_attentions, self.residuals, strict=True
        ):
            maps.append(residual(attention(embedding(maps[-1]))))
        if self.transformer:
            grid = maps[-1].shape[2:]
            tokens = to_tokens(maps[-1])
            for layer in self.transformer:
                tokens = layer(tokens, grid)
            maps.append(to_map(tokens, grid))
        return maps


class CMADecoder(nn.Module):
    """Bridge, Transformer decoder, three upsampling steps, classifier.

    Attributes:
        deep_supervision: Whether the network returns a list, as nnU-Net's trainer expects of a network with deep
            supervision. nnU-Net's trainer and predictor set it.
    """

    def __init__(self, num_classes: int, design: Design) -> None:
        super().__init__()
        f, norm, dims = design.features, design.map_norm, design.dims
        clamped = not design.official_compat
        self.bridge = AtrousPyramid(f[5], f[5], design.aspp_rates, norm, dims, clamped=clamped)
        layers = design.num_layers if design.use_vit_block else 0
        self.transformer = nn.ModuleList(DecoderLayer(f[5], _attention(design)) for _ in range(layers))
        # Coarsest first: channels of the upsampled map, of the skip connection, and of their fusion.
        levels = ((f[5], f[4], f[4]), (f[4], f[2], f[3]), (f[3], f[0], f[1]))
        steering = (f[5], f[4], f[2])
        self.gates = nn.ModuleList(
            CrossAttentionGate(encoder, below, norm, dims, activation=design.gate)
            for encoder, (below, _, _) in zip(steering, levels, strict=True)
            if design.use_cross_attention
        )
        self.residuals = nn.ModuleList(
            ResidualConv(below + skip, out, (1,) * dims, norm) for below, skip, out in levels
        )
        self.fusion = AtrousPyramid(f[1], f[0], design.aspp_rates, norm, dims, clamped=clamped)
        self.classifier = CONVOLUTIONS[dims](f[0], num_classes, kernel_size=1)
        self.upsampling = UPSAMPLING[dims]
        self.deep_supervision = False

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps to logits `(B, C, *S)`."""
        x = self.bridge(features[-1])
        if self.transformer:
            grid = x.shape[2:]
            tokens, encoded = to_tokens(x), to_tokens(features[-1])
            for layer in self.transformer:
                tokens = layer(tokens, encoded, grid)
            x = to_map(tokens, grid)
        for i, residual in enumerate(self.residuals):
            skip = features[2 - i]
            if self.gates:
                x = self.gates[i](features[3 - i], x)
            x = F.interpolate(x, size=skip.shape[2:], mode=self.upsampling, align_corners=False)
            x = residual(torch.cat([x, skip], dim=1))
        return self.classifier(self.fusion(x))  # type: ignore[no-any-return]


def _attention(design: Design) -> Attention:
    bias = RelativePositionBias(design.dims, design.num_heads) if design.rel_pos_bias else None
    return Attention(design.features[5], design.num_heads, bias, across_batch=design.official_compat)
