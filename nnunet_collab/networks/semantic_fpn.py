r"""Semantic FPN on a convolutional backbone: the CNN students of the CTRCL paper, as networks that plans can describe.

The backbone's maps at strides 4, 8, 16 and 32 become a feature pyramid (lateral 1x1 convolution, plus the coarser level
upsampled, then a 3x3 convolution). Each level goes through rounds of 3x3 convolution, normalization, ReLU and doubling,
until it has stride 4. The sum of the four is classified by a 1x1 convolution and upsampled to the input's size.

Source: Kirillov et al., Panoptic Feature Pyramid Networks, arXiv:1901.02446, section 3 and figure 3; the pyramid: Lin
et al., arXiv:1612.03144, section 3. Deliberate differences: batch norm by default where the paper uses group norm; any
input size works, because every doubling goes to the size of the next finer map.

Shapes: `B` samples, `C` classes or regions, `D` channels, `(H, W)` the patch, `*s` a map. Two dimensions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.segformer import make_norm

_STRIDES = [4, 8, 16, 32]


def make_backbone(
    name: str, input_channels: int, *, pretrained: bool = False, weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A timm network that returns its maps at strides 4, 8, 16 and 32.

    Args:
        name: Name of a convolutional network in timm, e.g. `resnet50`.
        input_channels: Channels of the images. Pretrained weights of the first layer are adapted to them by timm.
        pretrained: Whether timm loads (and may download) ImageNet weights. Failures raise timm's own errors.
        weights: Weights under timm's names, which timm loads instead; those that are missing stay random.

    Raises:
        CollabError: If timm has no such network, or it has no maps at these strides.
    """
    import timm  # imported here: it takes 1 to 2 s, and other networks do not need it

    if not timm.is_model(name):
        similar = ", ".join(get_close_matches(name, timm.list_models())) or "mobilenetv2_100, resnet50"
        raise CollabError(
            f"Semantic FPN: backbone must be the name of a network in timm; found {name!r}. "
            f"Choose for example {similar}."
        )
    levels = len(_STRIDES)
    overlay = {} if weights is None else {"pretrained_cfg_overlay": {"state_dict": dict(weights)}}
    backbone = timm.create_model(
        name,
        features_only=True,
        out_indices=tuple(range(-levels, 0)),
        in_chans=input_channels,
        pretrained=pretrained,
        **overlay,
    )
    if list(backbone.feature_info.reduction()) != _STRIDES:
        raise CollabError(
            f"Semantic FPN: the backbone must end with maps at strides {_STRIDES}; {name!r} has "
            f"{list(backbone.feature_info.reduction())}. Choose for example mobilenetv2_100 or resnet50."
        )
    return cast(nn.Module, backbone)


class FeaturePyramid(nn.Module):
    """Maps of growing depth to as many maps of one width, each informed by all coarser ones."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, kernel_size=1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps `(B, D_i, *s_i)`, finest first, to maps `(B, width, *s_i)`."""
        merged = [lateral(level) for lateral, level in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]


class PyramidFusion(nn.Module):
    """The fused decoder map: everything of the head before the classifier."""

    def __init__(self, channels: Sequence[int], width: int, branch_width: int, head_norm: str) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(channels, width)
        # The finest level needs one round and no doubling, the next ones a round per doubling: 1, 1, 2, 3.
        self.branches = nn.ModuleList(
            nn.ModuleList(
                _round(width if r == 0 else branch_width, branch_width, head_norm) for r in range(max(1, level))
            )
            for level in range(len(channels))
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps `(B, D_i, *s_i)`, finest first, to `(B, branch_width, *s_1)`."""
        levels = self.pyramid(features)
        sizes = [level.shape[2:] for level in levels]
        fused = self.branches[0][0](levels[0])  # type: ignore[index]
        for depth in range(1, len(levels)):
            x = levels[depth]
            for step, block in enumerate(cast(nn.ModuleList, self.branches[depth])):
                x = F.interpolate(block(x), size=sizes[depth - 1 - step], mode="bilinear", align_corners=False)
            fused = fused + x
        return cast(Tensor, fused)


class SemanticFPNHead(nn.Module):
    """Fusion and classifier.

    Attributes:
        deep_supervision: Whether the network returns a list, as nnU-Net's trainer expects of a network with deep
            supervision. nnU-Net's trainer and predictor set it.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, *, width: int, branch_width: int, head_norm: str
    ) -> None:
        super().__init__()
        self.fusion = PyramidFusion(channels, width, branch_width, head_norm)
        self.classifier = nn.Conv2d(branch_width, num_classes, kernel_size=1)
        self.deep_supervision = False
        self.apply(_init_weights)
        nn.init.normal_(self.classifier.weight, std=0.01)  # first probabilities near 1 / C

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps `(B, D_i, *s_i)`, finest first, to logits `(B, C, *s_1)`."""
        return self.classifier(self.fusion(features))  # type: ignore[no-any-return]


class SemanticFPN(nn.Module):
    """Semantic FPN on MobileNetV2, ResNet-50 or another timm backbone, for 2D patches of any size.

    With deep supervision it returns a list of one entry, see `SegFormer`.

    Attributes:
        taps: Dotted names of the submodules whose outputs are the encoder's deepest map (the last entry of a list) and
            the decoder's map before the classifier.

    Args:
        input_channels: Channels of the images.
        num_classes: Classes or regions.
        deep_supervision: Whether to return a list of one entry.
        backbone: Name of a timm network; its weights are random, see `pretrained.load_imagenet_weights`.
        width: Channels of the feature pyramid (section 3: 256).
        branch_width: Channels of the segmentation branches and of the fused map (section 3: 128).
        head_norm: `batch` or `instance`, in the segmentation branches.

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
        backbone: str = "mobilenetv2_100",
        width: int = 256,
        branch_width: int = 128,
        head_norm: str = "batch",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_channels = input_channels
        self.encoder = make_backbone(backbone, input_channels)
        channels = cast(Sequence[int], self.encoder.feature_info.channels())  # type: ignore[operator, union-attr]
        self.decoder = SemanticFPNHead(
            channels, num_classes, width=width, branch_width=branch_width, head_norm=head_norm
        )
        self.decoder.deep_supervision = deep_supervision

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """`(B, input_channels, H, W)` to logits `(B, C, H, W)`, in a list if `decoder.deep_supervision`.

        Raises:
            ValueError: If `x` is not two-dimensional or has another number of channels.
        """
        if x.ndim != 4 or x.shape[1] != self.input_channels:
            raise ValueError(
                f"SemanticFPN: input must have shape (B, {self.input_channels}, H, W); got {tuple(x.shape)}. "
                "It is a 2D network: train the 2d configuration, or choose a SegFormer, which also works in 3D."
            )
        logits = self.decoder(self.encoder(x))
        logits = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)
        return [logits] if self.decoder.deep_supervision else logits


def _round(in_channels: int, out_channels: int, head_norm: str) -> nn.Sequential:
    """3x3 convolution, normalization, ReLU; the convolution's bias would be undone by the normalization."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, make_norm(head_norm, out_channels, 2), nn.ReLU())


def _init_weights(module: nn.Module) -> None:
    """Fan-out normal before a ReLU, fan-in uniform for the pyramid's plain sums; biases 0."""
    if isinstance(module, nn.Conv2d) and module.bias is None:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, a=1)
        nn.init.zeros_(cast(Tensor, module.bias))
