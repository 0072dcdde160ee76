r"""SegFormer: Mix Transformer encoder and all-MLP decoder, as a network that nnU-Net plans can describe.

The head brings the maps :math:`x_i` of the four stages to one width, upsamples them to the first stage's size,
concatenates them, deepest first, and mixes them by a 1x1 convolution `F` without bias:

.. math::
    y = F\,[\,\mathrm{up}(A_4 x_4 + b_4);\,\dots;\,\mathrm{up}(A_1 x_1 + b_1)\,]
      = \sum_i \mathrm{up}\big((F_i A_i)\,x_i + F_i b_i\big).

The right-hand side is what we compute: `up` acts within channels with weights that sum to 1, so it commutes with the
linear layers around it, and `F` acts on its slices :math:`F_i` one by one. Parameters, function and gradient are those
of the left-hand side; but the widest map, four times the decoder's width at the finest resolution, is never created.

Source: Xie et al., SegFormer, arXiv:2105.15203, section 3.2 (equation 4). Deliberate differences: by default the head
normalizes per sample (instance norm), as nnU-Net's networks do, because patches and batches are small; logits are
upsampled to the input's size; dropout before the classifier is elementwise, as in `transformers`.

Shapes: `B` samples, `C` classes or regions, `D` channels, `*S` two or three spatial axes of the patch, `*s` of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.dimensions import CONVOLUTIONS, UPSAMPLING
from nnunet_collab.networks.mix_transformer import VARIANTS, MixTransformer, init_weights

_NORMS: Mapping[tuple[str, int], type[nn.Module]] = MappingProxyType(
    {
        ("instance", 2): nn.InstanceNorm2d,
        ("instance", 3): nn.InstanceNorm3d,
        ("batch", 2): nn.BatchNorm2d,
        ("batch", 3): nn.BatchNorm3d,
    }
)


def make_norm(kind: str, channels: int, dims: int) -> nn.Module:
    """A normalization layer with learnt scale and shift.

    Args:
        kind: `instance` (per sample and channel) or `batch` (per channel, running statistics in evaluation).
        channels: Channels of the map.
        dims: Number of spatial axes.

    Raises:
        CollabError: If `kind` is neither.
    """
    if (kind, dims) not in _NORMS:
        raise CollabError(
            f"network head: head_norm must be 'instance' or 'batch'; found {kind!r}. Correct it in the "
            "plans' arch_kwargs."
        )
    return _NORMS[kind, dims](channels, affine=True)


class AllMLPFusion(nn.Module):
    """The fused decoder map: everything of the head before dropout and classifier."""

    def __init__(self, embed_dims: Sequence[int], width: int, head_norm: str, dims: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(dim, width) for dim in embed_dims)
        # Never called: its weight is used slice by slice, see the module's equation.
        self.fuse = CONVOLUTIONS[dims](len(embed_dims) * width, width, kernel_size=1, bias=False)
        self.norm = make_norm(head_norm, width, dims)
        self.activation = nn.ReLU()
        self.upsampling = UPSAMPLING[dims]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps `(B, D_i, *s_i)`, finest first, to `(B, width, *s_1)`."""
        slices = reversed(self.fuse.weight.flatten(1).chunk(len(features), dim=1))  # stored deepest first
        levels = []
        for feature_map, layer, mix in zip(features, self.projections, slices, strict=True):
            weight, bias = mix @ cast(Tensor, layer.weight), mix @ cast(Tensor, layer.bias)
            levels.append(F.linear(feature_map.movedim(1, -1), weight, bias).movedim(-1, 1))
        fused = levels[0]
        for level in levels[1:]:
            fused = fused + F.interpolate(level, size=fused.shape[2:], mode=self.upsampling, align_corners=False)
        return self.activation(self.norm(fused))  # type: ignore[no-any-return]


class AllMLPHead(nn.Module):
    """Fusion, dropout, classifier.

    Attributes:
        deep_supervision: Whether the network returns a list, as nnU-Net's trainer expects of a network with deep
            supervision. nnU-Net's trainer and predictor set it.
    """

    def __init__(
        self, embed_dims: Sequence[int], width: int, num_classes: int, *, head_norm: str, dropout: float, dims: int
    ) -> None:
        super().__init__()
        self.fusion = AllMLPFusion(embed_dims, width, head_norm, dims)
        self.dropout = nn.Dropout(dropout)
        self.classifier = CONVOLUTIONS[dims](width, num_classes, kernel_size=1)
        self.deep_supervision = False
        self.apply(init_weights)
        # With so few outputs, a fan-out normal would make the initial logits huge.
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps `(B, D_i, *s_i)`, finest first, to logits `(B, C, *s_1)`."""
        return self.classifier(self.dropout(self.fusion(features)))  # type: ignore[no-any-return]


class SegFormer(nn.Module):
    """SegFormer B0 to B5 in two or three dimensions, for patches of any size.

    With deep supervision it returns a list of one entry: nnU-Net's `DeepSupervisionWrapper` pairs outputs with
    targets and stops at the shorter list, so the stock trainer works, its loss scaled by the weight of full resolution.

    Attributes:
        taps: Dotted names of the submodules whose outputs are the encoder's deepest map (the last entry of a list) and
            the decoder's map before the classifier.

    Args:
        input_channels: Channels of the images.
        num_classes: Classes or regions.
        deep_supervision: Whether to return a list of one entry.
        variant: `b0` to `b5`.
        strides: Strides of the stages of the plans' network; they set the stages' resolutions, see `stage_strides`.
        head_norm: `instance` or `batch`. Instance norm needs two positions at the first stage's resolution.
        drop_path: Stochastic depth at the last block, in [0, 1).
        head_dropout: Dropout before the classifier, in [0, 1].

    Raises:
        CollabError: If a setting has no meaning.
    """

    taps: ClassVar[dict[str, str]] = {"encoder": "encoder", "decoder": "decoder.fusion"}

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        variant: str = "b2",
        strides: Sequence[Sequence[int]],
        head_norm: str = "instance",
        drop_path: float = 0.1,
        head_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise CollabError(
                f"SegFormer: variant must be one of {', '.join(VARIANTS)}; found {variant!r}. "
                "Correct it in the plans' arch_kwargs."
            )
        if not 0 <= head_dropout <= 1:
            raise CollabError(
                f"SegFormer: head_dropout is a probability in [0, 1]; found {head_dropout}. 0.1 is usual."
            )
        self.variant = variant
        self.input_channels = input_channels
        self.encoder = MixTransformer(input_channels, VARIANTS[variant], strides, drop_path=drop_path)
        self.dims = len(self.encoder.total_strides[0])
        self.decoder = AllMLPHead(
            VARIANTS[variant].embed_dims,
            VARIANTS[variant].decoder_width,
            num_classes,
            head_norm=head_norm,
            dropout=head_dropout,
            dims=self.dims,
        )
        self.decoder.deep_supervision = deep_supervision

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """`(B, input_channels, *S)` to logits `(B, C, *S)`, in a list if `decoder.deep_supervision`.

        Raises:
            ValueError: If `x` has another number of axes or channels.
        """
        if x.ndim != self.dims + 2 or x.shape[1] != self.input_channels:
            axes = ", ".join("DHW"[-self.dims :])
            raise ValueError(
                f"SegFormer: input must have shape (B, {self.input_channels}, {axes}); got {tuple(x.shape)}. "
                "Channels and axes are set by input_channels and strides."
            )
        logits = self.decoder(self.encoder(x))
        logits = F.interpolate(logits, size=x.shape[2:], mode=UPSAMPLING[self.dims], align_corners=False)
        return [logits] if self.decoder.deep_supervision else logits
