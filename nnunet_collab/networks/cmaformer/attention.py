r"""The Transformer layers of CMAformer: attention over positions with its two unusual residual paths.

.. math::
    \mathrm{MSA}(Q, K, V) = \mathrm{softmax}(Q K^\top / \sqrt{d} + P)\,V

Encoder layer, with the residual taken from the normalized query, and the feed-forward layer's too:

.. math::
    q = \mathrm{LN}_1(x), \qquad y = \mathrm{LN}_2(\mathrm{MSA}(q, x, x) + q), \qquad x \leftarrow \mathrm{FFN}(y) + y.

Decoder layer, whose keys and values are the encoder's last tokens z:

.. math::
    y = \mathrm{LN}_1(\mathrm{MSA}(x, z, z) + x), \qquad x \leftarrow \mathrm{LN}_2(\mathrm{FFN}(y) + y).

Source: Zheng et al., Lagrange Duality and Compound Multi-Attention Transformer, section III-B and equation 1, read
together with the released network. Deliberate differences: attention runs over the positions of one sample (the
released one runs over the samples of a batch, position by position); logits and softmax are float32 also under
autocast; P is off by default, as in the released network, and otherwise a small network of the offset, so that it
exists for every grid (log-spaced continuous bias of Swin V2, arXiv:2111.09883, section 3.3).

Shapes: `B` samples, `N` positions of a map of size `grid`, `D` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EXPANSION = 4  # width factor of the feed-forward layer, as released
_BIAS_WIDTH = 64


class RelativePositionBias(nn.Module):
    """P of equation 1: one number per head for every offset between two positions."""

    def __init__(self, dims: int, num_heads: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dims, _BIAS_WIDTH), nn.ReLU(), nn.Linear(_BIAS_WIDTH, num_heads))

    def forward(self, grid: Sequence[int]) -> Tensor:
        """The bias `(1, heads, N, N)` for a map of size `grid`; entry (i, j) is for query i and key j."""
        weight: Tensor = self.network[0].weight  # type: ignore[assignment]
        steps = [torch.arange(1 - n, n, device=weight.device) for n in grid]
        offsets = torch.cartesian_prod(*steps).to(weight.dtype)  # each offset once, not once per pair
        values: Tensor = self.network(offsets.sign() * offsets.abs().log1p())
        index = torch.zeros((), dtype=torch.long, device=weight.device)
        places = torch.cartesian_prod(*(torch.arange(n, device=weight.device) for n in grid))
        for axis, n in enumerate(grid):
            place = places[:, axis]
            index = index * (2 * n - 1) + (place[:, None] - place[None] + n - 1)
        return values[index].permute(2, 0, 1).unsqueeze(0)


class Attention(nn.Module):
    """Multi-head attention; its parameters are named as in `torch.nn.MultiheadAttention`.

    Args:
        dim: Channels, a multiple of `num_heads`.
        num_heads: Heads.
        position: The bias P, or None.
        across_batch: Attend over samples instead of positions, as the released network does.
    """

    def __init__(
        self, dim: int, num_heads: int, position: RelativePositionBias | None = None, *, across_batch: bool = False
    ) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        self.position = position
        self.num_heads = num_heads
        self.across_batch = across_batch

    def forward(self, query: Tensor, source: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` and the tokens `(B, N, D)` of keys and values, on the same map, to `(B, N, D)`."""
        if self.across_batch:
            query, source = query.transpose(0, 1), source.transpose(0, 1)
        dim = query.shape[2]
        q = F.linear(query, self.in_proj_weight[:dim], self.in_proj_bias[:dim])
        k, v = F.linear(source, self.in_proj_weight[dim:], self.in_proj_bias[dim:]).chunk(2, dim=-1)
        mixed: Tensor = self.out_proj(self._mix(self._heads(q), self._heads(k), self._heads(v), grid))
        return mixed.transpose(0, 1) if self.across_batch else mixed

    def _heads(self, tokens: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, heads, N, D / heads)`."""
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, grid: Sequence[int]) -> Tensor:
        """Softmax over keys, in float32 (float64 for float64); half precision would round the logits."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            bias = None if self.position is None else self.position(grid).to(dtype)
            mixed = F.scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype), attn_mask=bias)
        return mixed.transpose(1, 2).flatten(2).to(value.dtype)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward layer, each with its residual from the normalized tokens."""

    def __init__(self, dim: int, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = _feed_forward(dim)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` on a map of size `grid`, to the same shape."""
        query = self.norm1(tokens)
        tokens = self.norm2(self.attention(query, tokens, grid) + query)
        return self.feed_forward(tokens) + tokens  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention to the encoder's tokens and feed-forward layer, each normalized after its residual."""

    def __init__(self, dim: int, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = _feed_forward(dim)

    def forward(self, tokens: Tensor, encoded: Tensor, grid: Sequence[int]) -> Tensor:
        """`(B, N, D)` and the encoder's tokens `(B, N, D)`, both on a map of size `grid`, to `(B, N, D)`."""
        tokens = self.norm1(self.attention(tokens, encoded, grid) + tokens)
        return self.norm2(self.feed_forward(tokens) + tokens)  # type: ignore[no-any-return]


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, _EXPANSION * dim), nn.GELU(), nn.Linear(_EXPANSION * dim, dim))
