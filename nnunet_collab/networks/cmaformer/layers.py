r"""The convolutional parts of CMAformer, in two and three dimensions: embedding, residual block, three attentions.

.. math::
    \mathrm{SE}(x) = x \cdot \sigma(W_2\,\mathrm{ReLU}(W_1\,\overline{x})), \qquad
    \mathrm{PA}(x) = x \cdot \sigma(\mathrm{DWConv}(x)), \qquad
    \mathrm{gate}(e, d) = d \cdot a(w * \mathrm{ReLU}(\mathrm{norm}(U * e + V * d))),

with :math:`\overline{x}` the mean over space, :math:`*` a convolution after a normalization and a ReLU, and `a` the
sigmoid or nothing. The paper calls the gate cross attention; it has neither queries nor keys.

Source: Zheng et al., Lagrange Duality and Compound Multi-Attention Transformer, section III-A and B and figure 2, read
together with the released network. Deliberate differences: embedded patches return to a map by transposing, never by
reinterpreting memory; the rates of the dilated convolutions shrink with the map; the gate has a sigmoid by default.

Shapes: `B` samples, `D` channels, `*s` two or three spatial axes of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.networks.dimensions import CONVOLUTIONS, CONVOLVE
from nnunet_collab.networks.mix_transformer import to_map, to_tokens
from nnunet_collab.networks.segformer import make_norm

Gate = Literal["none", "sigmoid"]

_SQUEEZE = 16  # channel reduction factor of the channel attention, as released


class InstanceNorm(nn.Module):
    """Instance norm with learned scale and shift that also accepts maps of a single position.

    A single position has no variance over space, and torch refuses it. In this case the channels of the position are
    normalized together, so the network works for every patch. Samples stay independent.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, D, *s)` to the same shape."""
        if x[0, 0].numel() == 1:
            return F.group_norm(x, 1, self.weight, self.bias)
        return F.instance_norm(x, weight=self.weight, bias=self.bias)


def make_map_norm(kind: str, channels: int, dims: int) -> nn.Module:
    """The normalization of a map: `instance` as above, or `batch` with running statistics."""
    return InstanceNorm(channels) if kind == "instance" else make_norm(kind, channels, dims)


def convolution(
    in_channels: int, out_channels: int, dims: int, stride: Sequence[int] | None = None, **options: Any
) -> nn.Module:
    """A convolution of `ceil(size / stride)` positions per axis; its kernel is 3, or wider where strides exceed 3."""
    stride = tuple(stride or (1,) * dims)
    kernel = tuple(max(3, 2 * (s // 2) + 1) for s in stride)
    padding = tuple(k // 2 for k in kernel)
    return CONVOLUTIONS[dims](in_channels, out_channels, kernel, stride, padding, **options)  # type: ignore[arg-type]


class PatchEmbedding(nn.Module):
    """Overlapping patches, position attention, layer norm over channels: a map of lower resolution.

    Args:
        in_channels: Channels of the incoming map.
        out_channels: Channels of the patches.
        stride: Distance of the patches per axis.
        scrambled: Reinterpret the memory of `(B, N, D)` as `(B, D, *s)`, as the released network does.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int], *, scrambled: bool = False) -> None:
        super().__init__()
        dims = len(stride)
        self.proj = convolution(in_channels, out_channels, dims, stride)
        self.position = convolution(out_channels, out_channels, dims, groups=out_channels)
        self.norm = nn.LayerNorm(out_channels, eps=1e-6)
        self.scrambled = scrambled

    def forward(self, x: Tensor) -> Tensor:
        """`(B, D, *s)` to `(B, out_channels, *ceil(s / stride))`."""
        x = self.proj(x)
        grid = x.shape[2:]
        tokens = self.norm(to_tokens(x * self.position(x).sigmoid()))
        if self.scrambled:
            return tokens.reshape(tokens.shape[0], tokens.shape[2], *grid)  # type: ignore[no-any-return]
        return to_map(tokens, grid)


class ChannelAttention(nn.Module):
    """Squeeze and excitation (arXiv:1709.01507): each channel times a factor in (0, 1) that depends on all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _SQUEEZE)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, D, *s)` to the same shape."""
        factor: Tensor = self.fc(x.flatten(2).mean(2))
        return x * factor.reshape(*factor.shape, *(1,) * (x.ndim - 2))


class ResidualConv(nn.Module):
    """Two times normalization, ReLU, convolution; plus a skip path with convolution and normalization."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int], norm: str) -> None:
        super().__init__()
        dims = len(stride)
        self.conv_block = nn.Sequential(
            make_map_norm(norm, in_channels, dims),
            nn.ReLU(),
            convolution(in_channels, out_channels, dims, stride),
            make_map_norm(norm, out_channels, dims),
            nn.ReLU(),
            convolution(out_channels, out_channels, dims),
        )
        self.conv_skip = nn.Sequential(
            convolution(in_channels, out_channels, dims, stride), make_map_norm(norm, out_channels, dims)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, D, *s)` to `(B, out_channels, *ceil(s / stride))`."""
        return self.conv_block(x) + self.conv_skip(x)  # type: ignore[no-any-return]


class AtrousPyramid(nn.Module):
    """Three dilated convolutions side by side, mixed by a 1x1 convolution (the paper's spatial attention block).

    Along an axis of n positions a rate is at most `max(1, n // 2)`: a kernel whose outer taps all lie outside of the
    map would see nothing but its center, as the released rate of 18 does on 16 x 16 positions.

    Args:
        in_channels: Channels of the incoming map.
        out_channels: Channels of the outgoing map, and of each branch.
        rates: Dilations of the branches.
        norm: `instance` or `batch`.
        dims: Number of spatial axes.
        clamped: Whether rates shrink with the map; the released network's do not.
    """

    def __init__(
        self, in_channels: int, out_channels: int, rates: Sequence[int], norm: str, dims: int, *, clamped: bool = True
    ) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.clamped = clamped
        self.dims = dims
        # Normalized after the ReLU, as in the paper's predecessor ResUNet++.
        self.branches = nn.ModuleList(
            nn.Sequential(
                convolution(in_channels, out_channels, dims), nn.ReLU(), make_map_norm(norm, out_channels, dims)
            )
            for _ in self.rates
        )
        self.output = CONVOLUTIONS[dims](len(self.rates) * out_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, D, *s)` to `(B, out_channels, *s)`."""
        levels = []
        for rate, branch in zip(self.rates, self.branches, strict=True):
            conv, relu, norm = cast(nn.Sequential, branch)
            dilation = [min(rate, max(1, n // 2)) if self.clamped else rate for n in x.shape[2:]]
            y = CONVOLVE[self.dims](x, conv.weight, conv.bias, padding=dilation, dilation=dilation)
            levels.append(norm(relu(y)))
        return self.output(torch.cat(levels, dim=1))  # type: ignore[no-any-return]


class CrossAttentionGate(nn.Module):
    """The decoder's map times one number per position, computed from the encoder's and the decoder's map."""

    def __init__(
        self, encoder_channels: int, decoder_channels: int, norm: str, dims: int, *, activation: Gate = "sigmoid"
    ) -> None:
        super().__init__()
        self.conv_encoder = _norm_relu_conv(encoder_channels, decoder_channels, norm, dims)
        self.conv_decoder = _norm_relu_conv(decoder_channels, decoder_channels, norm, dims)
        self.conv_attn = nn.Sequential(
            make_map_norm(norm, decoder_channels, dims), nn.ReLU(), CONVOLUTIONS[dims](decoder_channels, 1, 1)
        )
        self.bounded = activation == "sigmoid"

    def forward(self, encoder_map: Tensor, decoder_map: Tensor) -> Tensor:
        """Maps `(B, D_e, *s)` and `(B, D, *s)` to `(B, D, *s)`."""
        weight: Tensor = self.conv_attn(self.conv_encoder(encoder_map) + self.conv_decoder(decoder_map))
        return decoder_map * (weight.sigmoid() if self.bounded else weight)


def _norm_relu_conv(in_channels: int, out_channels: int, norm: str, dims: int) -> nn.Sequential:
    return nn.Sequential(
        make_map_norm(norm, in_channels, dims), nn.ReLU(), convolution(in_channels, out_channels, dims)
    )
