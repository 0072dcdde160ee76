r"""Mix Transformer, the hierarchical encoder of SegFormer, in two and three dimensions.

A stage embeds overlapping patches by a strided convolution, then repeats

.. math::
    x \leftarrow x + \mathrm{Attention}(\mathrm{LN}(x)), \qquad x \leftarrow x + \mathrm{MixFFN}(\mathrm{LN}(x)),

with keys and values from a map that a strided convolution has reduced by the factor `R` per axis, and
:math:`\mathrm{MixFFN}(x) = W_2\,\mathrm{GELU}(\mathrm{DWConv}(W_1 x))`.

Source: Xie et al., SegFormer, arXiv:2105.15203, section 3.1 (equations 1 to 3) and table 6. With strides 4, 8, 16, 32
the network equals the public Apache-2.0 implementation in `transformers` weight for weight. We differ in two ways:
strides and reductions follow the plans, per axis; keys and values share one linear layer (the same function).

Shapes: `B` samples, `D` channels, `N` tokens, `*S` two or three spatial axes of the patch, `*s` those of a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.dimensions import CONVOLUTIONS


@dataclass(frozen=True)
class MitVariant:
    """One column of SegFormer's table 6: values of the four stages, and the width of the matching head."""

    embed_dims: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    decoder_width: int


VARIANTS: Mapping[str, MitVariant] = MappingProxyType(
    {
        "b0": MitVariant((32, 64, 160, 256), (1, 2, 5, 8), (2, 2, 2, 2), 256),
        "b1": MitVariant((64, 128, 320, 512), (1, 2, 5, 8), (2, 2, 2, 2), 256),
        "b2": MitVariant((64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 6, 3), 768),
        "b3": MitVariant((64, 128, 320, 512), (1, 2, 5, 8), (3, 4, 18, 3), 768),
        "b4": MitVariant((64, 128, 320, 512), (1, 2, 5, 8), (3, 8, 27, 3), 768),
        "b5": MitVariant((64, 128, 320, 512), (1, 2, 5, 8), (3, 6, 40, 3), 768),
    }
)


def stage_strides(strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Strides of the four stages: the plans' cumulative strides after 2, 3, 4 and 5 poolings.

    With fewer poolings the last stages stay at the deepest stride. Isotropic plans give 4, 8, 16, 32, as published.

    Args:
        strides: Stride of every stage of the plans' network, one list of two or three whole numbers >= 1 per stage.

    Returns:
        Four tuples: distance of neighboring tokens per axis, in voxels of the input.

    Raises:
        CollabError: If `strides` has another form.
    """
    listed = strides if isinstance(strides, Sequence) else ()
    rows = [tuple(row) if isinstance(row, Sequence) else () for row in listed]
    same_length = len({len(row) for row in rows}) == 1 and len(rows[0]) in CONVOLUTIONS
    if not same_length or any(not isinstance(s, int) or s < 1 for row in rows for s in row):
        raise CollabError(
            "Mix Transformer: strides must be one list of 2 or 3 whole numbers >= 1 per stage, e.g. [[1, 1], [2, 2]]; "
            f"found {strides!r}. Copy 'strides' from the configuration's architecture in the plans."
        )
    totals = list(accumulate(rows, lambda total, row: tuple(t * s for t, s in zip(total, row, strict=True))))
    return tuple(totals[min(poolings, len(totals) - 1)] for poolings in (2, 3, 4, 5))


def to_tokens(feature_map: Tensor) -> Tensor:
    """`(B, D, *s)` to `(B, N, D)`."""
    return feature_map.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """`(B, N, D)` to `(B, D, *grid)`, without copying: channels stay innermost in memory."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def drop_path(branch: Tensor, probability: float) -> Tensor:
    """Stochastic depth (arXiv:1603.09382): set a branch `(B, N, D)` to 0 for whole samples; its expectation is kept."""
    if probability == 0:
        return branch
    # Drawn in float32 also under autocast: half precision would round the probability.
    draw = torch.rand((branch.shape[0], 1, 1), device=branch.device, dtype=torch.float32) >= probability
    return branch / (1 - probability) * draw


class EfficientAttention(nn.Module):
    """Multi-head self-attention whose keys and values come from a spatially reduced map (equations 1 and 2)."""

    def __init__(self, dim: int, num_heads: int, reduction: tuple[int, ...]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        self.reduction: nn.Module | None = None
        if any(r > 1 for r in reduction):
            self.kernel = reduction
            self.reduction = CONVOLUTIONS[len(reduction)](dim, dim, kernel_size=reduction, stride=reduction)  # type: ignore[arg-type]
            self.reduction_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` on a map of size `grid`, to the same shape."""
        heads = (tokens.shape[0], -1, self.num_heads, tokens.shape[2] // self.num_heads)
        parts = (self.query(tokens), *self.key_value(self._reduce(tokens, grid)).chunk(2, dim=-1))
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _reduce(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` to `(B, N / product of R, D)`; an incomplete last window is left out, as in the reference."""
        if self.reduction is None:
            return tokens
        feature_map = to_map(tokens, grid)
        # A map smaller than the kernel has no complete window, so there would be no keys. Pad it with zeros to one
        # window.
        missing = [max(0, k - n) for k, n in zip(self.kernel, grid, strict=True)]
        if any(missing):
            feature_map = F.pad(feature_map, [p for m in reversed(missing) for p in (0, m)])
        return self.reduction_norm(to_tokens(self.reduction(feature_map)))  # type: ignore[no-any-return]


class MixFFN(nn.Module):
    """Feed-forward layer with a depth-wise convolution, which also encodes positions (equation 3)."""

    def __init__(self, dim: int, dims: int) -> None:
        super().__init__()
        hidden = 4 * dim  # the expansion ratio of all stages in the reference implementation
        self.expand = nn.Linear(dim, hidden)
        self.depthwise = CONVOLUTIONS[dims](hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.contract = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` on a map of size `grid`, to the same shape."""
        mixed = to_tokens(self.depthwise(to_map(self.expand(tokens), grid)))
        return self.contract(F.gelu(mixed))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward layer, each normalized before, added after."""

    def __init__(self, dim: int, num_heads: int, reduction: tuple[int, ...], drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = EfficientAttention(dim, num_heads, reduction)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = MixFFN(dim, len(reduction))
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` on a map of size `grid`, to the same shape."""
        dropped = self.drop_path if self.training else 0.0
        tokens = tokens + drop_path(self.attention(self.attention_norm(tokens), grid), dropped)
        return tokens + drop_path(self.ffn(self.ffn_norm(tokens), grid), dropped)


class Stage(nn.Module):
    """Overlapping patch embedding, blocks, final normalization."""

    def __init__(self, input_channels: int, dim: int, stride: tuple[int, ...], blocks: Iterator[Block]) -> None:
        super().__init__()
        # Kernel 2s-1 with padding s-1: neighboring patches overlap, and every size gives ceil(size / s) positions.
        kernel, padding = tuple(2 * s - 1 for s in stride), tuple(s - 1 for s in stride)
        self.embedding = CONVOLUTIONS[len(stride)](input_channels, dim, kernel, stride, padding)  # type: ignore[arg-type]
        self.embedding_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, *S)` to `(B, D, *s)`."""
        x = self.embedding(x)
        grid = x.shape[2:]
        tokens = self.embedding_norm(to_tokens(x))
        for block in self.blocks:
            tokens = block(tokens, grid)
        return to_map(self.norm(tokens), grid)


class MixTransformer(nn.Module):
    """The encoder: four stages of falling resolution, for inputs of any size.

    Attributes:
        total_strides: Stride of each stage's map with respect to the input, per axis.

    Args:
        input_channels: Channels of the input.
        variant: Channels, heads and depths.
        strides: Strides of the stages of the plans' network, see `stage_strides`.
        drop_path: Probability of dropping the last block's branches in training; rises linearly from 0 at the first.

    Raises:
        CollabError: If `strides` is malformed or `drop_path` is not in [0, 1).
    """

    def __init__(
        self, input_channels: int, variant: MitVariant, strides: Sequence[Sequence[int]], *, drop_path: float = 0.1
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise CollabError(
                f"Mix Transformer: drop_path is a probability in [0, 1); found {drop_path}. Usual is 0.1."
            )
        self.total_strides = stage_strides(strides)
        deepest, previous = self.total_strides[-1], (1,) * len(self.total_strides[-1])
        rates = (drop_path * i / max(1, sum(variant.depths) - 1) for i in range(sum(variant.depths)))
        self.stages = nn.ModuleList()
        rows = zip(variant.embed_dims, variant.num_heads, variant.depths, self.total_strides, strict=True)
        for dim, heads, depth, total in rows:
            # Keys and values of every stage are on the deepest stage's grid: 8, 4, 2, 1 for the published strides.
            reduction = tuple(d // t for d, t in zip(deepest, total, strict=True))
            stride = tuple(t // p for t, p in zip(total, previous, strict=True))
            blocks = (Block(dim, heads, reduction, next(rates)) for _ in range(depth))
            self.stages.append(Stage(input_channels, dim, stride, blocks))
            input_channels, previous = dim, total
        self.apply(init_weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, C, *S)` to the four maps `(B, D_i, *s_i)` of `ceil(S / stride)` positions per axis, finest first."""
        features = [x]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


def init_weights(module: nn.Module) -> None:
    """Initialize as the authors do: truncated normal for linear layers, fan-out normal for convolutions, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
