r"""Mix Transformer, the hierarchical encoder of SegFormer, in two and three dimensions.

A stage embeds overlapping patches by a strided convolution, then repeats

.. math::
    x \leftarrow x + \mathrm{Attention}(\mathrm{LN}(x)), \qquad x \leftarrow x + \mathrm{MixFFN}(\mathrm{LN}(x)),

where keys and values come from a map that a strided convolution has made smaller by `R` per axis, and
:math:`\mathrm{MixFFN}(x) = W_2\,\mathrm{GELU}(\mathrm{DWConv}(W_1 x))`.

Source: Xie et al., SegFormer, arXiv:2105.15203, section 3.1 (equations 1 to 3) and table 6. With strides 4, 8, 16, 32 the
network equals the public Apache-2.0 implementation in `transformers` weight for weight. We differ in two ways: strides
and reductions follow the plans, per axis; keys and values share one linear layer (the same function, one product fewer).

Shapes: `B` samples, `D` channels, `N` tokens, `*S` two or three spatial axes of the patch, `*s` those of a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError

CONVOLUTIONS: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = MappingProxyType({2: nn.Conv2d, 3: nn.Conv3d})
"""Convolution class by number of spatial axes."""

_FFN_RATIO = 4  # table 6: the expansion of every feed-forward layer of the reference implementation


@dataclass(frozen=True)
class MitVariant:
    """One row of SegFormer's table 6.

    Attributes:
        embed_dims: Channels of the four stages.
        num_heads: Attention heads of the four stages.
        depths: Blocks of the four stages.
        decoder_width: Channels of the all-MLP head that belongs to this encoder.
    """

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
"""B0 to B5 of the paper."""


def stage_strides(strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Where the four stages work: the plans' cumulative strides after 2, 3, 4 and 5 poolings.

    Plans with fewer poolings end earlier: the remaining stages stay at the deepest stride. Seven isotropic stages of a
    2D plan give 4, 8, 16 and 32, as published.

    Args:
        strides: Stride of every stage of the plans' network, one list of two or three whole numbers >= 1 per stage.

    Returns:
        Four tuples: distance of neighbouring tokens in voxels of the input, per axis.

    Raises:
        CollabError: If `strides` has another form.
    """
    listed = strides if isinstance(strides, Sequence) else ()
    rows = [tuple(row) if isinstance(row, Sequence) else () for row in listed]
    same_length = len({len(row) for row in rows}) == 1 and len(rows[0]) in CONVOLUTIONS
    if not same_length or any(not isinstance(s, int) or s < 1 for row in rows for s in row):
        raise CollabError(
            "Mix Transformer: strides must hold one list of 2 or 3 whole numbers >= 1 per stage, such as "
            f"[[1, 1], [2, 2], [2, 2]]; found {strides!r}. Copy 'strides' from the configuration's "
            "architecture in the plans."
        )
    cumulative = list(accumulate(rows, lambda total, row: tuple(t * s for t, s in zip(total, row, strict=True))))
    return tuple(cumulative[min(stage, len(cumulative) - 1)] for stage in (2, 3, 4, 5))


def to_tokens(feature_map: Tensor) -> Tensor:
    """`(B, D, *s)` to `(B, N, D)`."""
    return feature_map.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """`(B, N, D)` to `(B, D, *grid)`, without copying: channels stay innermost in memory."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


class DropPath(nn.Module):
    """Stochastic depth: in training, blank a residual branch for whole samples, and rescale what remains.

    Source: Huang et al., arXiv:1603.09382. Expectation over the draw: the branch itself.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """`(B, N, D)` to the same shape."""
        if not self.training or self.probability == 0:
            return branch
        kept = 1 - self.probability
        # Drawn in float32 whatever autocast says: half precision would round the probability.
        draw = torch.rand((branch.shape[0], 1, 1), device=branch.device, dtype=torch.float32) < kept
        return branch / kept * draw


class EfficientAttention(nn.Module):
    """Multi-head self-attention whose keys and values come from a spatially reduced map (equations 1 and 2)."""

    def __init__(self, dim: int, num_heads: int, reduction: tuple[int, ...]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        self.reduction: nn.Conv2d | nn.Conv3d | None = None
        self.reduction_norm: nn.LayerNorm | None = None
        if any(r > 1 for r in reduction):
            self.reduction = CONVOLUTIONS[len(reduction)](dim, dim, kernel_size=reduction, stride=reduction)  # type: ignore[arg-type]
            self.reduction_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` on a map of size `grid`, to the same shape."""
        source = self._reduce(tokens, grid)
        query = self._split_heads(self.query(tokens))
        key, value = (self._split_heads(part) for part in self.key_value(source).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, heads, N, D / heads)`."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _reduce(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` to `(B, N / product of reductions, D)`; an incomplete last window is left out, as in the reference."""
        if self.reduction is None or self.reduction_norm is None:
            return tokens
        feature_map = to_map(tokens, grid)
        # A map smaller than the kernel has no complete window at all, so nothing to attend to. Zeros make it one window;
        # they add nothing to the convolution's sum.
        missing = [max(0, k - n) for k, n in zip(self.reduction.kernel_size, grid, strict=True)]
        if any(missing):
            feature_map = F.pad(feature_map, [p for m in reversed(missing) for p in (0, m)])
        return self.reduction_norm(to_tokens(self.reduction(feature_map)))  # type: ignore[no-any-return]


class MixFFN(nn.Module):
    """Feed-forward layer with a depth-wise convolution, which also tells positions apart (equation 3)."""

    def __init__(self, dim: int, dims: int) -> None:
        super().__init__()
        hidden = _FFN_RATIO * dim
        self.expand = nn.Linear(dim, hidden)
        self.depthwise = CONVOLUTIONS[dims](hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.contract = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` on a map of size `grid`, to the same shape."""
        mixed = to_tokens(self.depthwise(to_map(self.expand(tokens), grid)))
        return self.contract(F.gelu(mixed))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward layer, each normalised before, added after."""

    def __init__(self, dim: int, num_heads: int, reduction: tuple[int, ...], drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = EfficientAttention(dim, num_heads, reduction)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = MixFFN(dim, len(reduction))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` on a map of size `grid`, to the same shape."""
        tokens = tokens + self.drop_path(self.attention(self.attention_norm(tokens), grid))
        return tokens + self.drop_path(self.ffn(self.ffn_norm(tokens), grid))  # type: ignore[no-any-return]


class PatchEmbedding(nn.Module):
    """Overlapping patches to tokens: a convolution with kernel `2 * stride - 1`, which keeps `ceil(size / stride)`."""

    def __init__(self, input_channels: int, dim: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        kernel = tuple(2 * s - 1 for s in stride)
        padding = tuple(k // 2 for k in kernel)
        convolution = CONVOLUTIONS[len(stride)]
        self.projection = convolution(input_channels, dim, kernel_size=kernel, stride=stride, padding=padding)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Sequence[int]]:
        """`(B, C, *S)` to tokens `(B, N, D)` and the size of the map they lie on."""
        x = self.projection(x)
        return self.norm(to_tokens(x)), x.shape[2:]


class Stage(nn.Module):
    """Patch embedding, blocks, final normalisation."""

    def __init__(self, embedding: PatchEmbedding, blocks: Sequence[Block], dim: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, *S)` to `(B, D, *s)`."""
        tokens, grid = self.embedding(x)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return to_map(self.norm(tokens), grid)


class MixTransformer(nn.Module):
    """The encoder: four stages of falling resolution. Any input size works; a map has `ceil(size / stride)` positions.

    Attributes:
        variant: Its row of table 6.
        total_strides: Stride of each stage's map with respect to the input, per axis.

    Args:
        input_channels: Channels of the input.
        variant: Channels, heads and depths.
        strides: Strides of the stages of the plans' network, see `stage_strides`.
        drop_path: Probability that training drops the last residual branch; it rises linearly from 0 at the first block.

    Raises:
        CollabError: If `strides` is malformed or `drop_path` is not in [0, 1).
    """

    def __init__(
        self, input_channels: int, variant: MitVariant, strides: Sequence[Sequence[int]], *, drop_path: float = 0.1
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise CollabError(
                f"Mix Transformer: drop_path is a probability in [0, 1); found {drop_path}. 0.1 is usual."
            )
        self.variant = variant
        self.total_strides = stage_strides(strides)
        deepest = self.total_strides[-1]
        rates = iter(torch.linspace(0, drop_path, sum(variant.depths)).tolist())
        channels, previous = input_channels, (1,) * len(deepest)
        stages = []
        for dim, heads, depth, total in zip(
            variant.embed_dims, variant.num_heads, variant.depths, self.total_strides, strict=True
        ):
            stride = tuple(t // p for t, p in zip(total, previous, strict=True))
            # Keys and values of every stage lie on the deepest stage's grid: 8, 4, 2, 1 for the published strides.
            reduction = tuple(d // t for d, t in zip(deepest, total, strict=True))
            blocks = [Block(dim, heads, reduction, next(rates)) for _ in range(depth)]
            stages.append(Stage(PatchEmbedding(channels, dim, stride), blocks, dim))
            channels, previous = dim, total
        self.stages = nn.ModuleList(stages)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, C, *S)` to the four maps `(B, D_i, *s_i)`, finest first."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def init_weights(module: nn.Module) -> None:
    """Start as the authors do: truncated normal for linear layers, fan-out normal for convolutions, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
