r"""CMAformer, the Compound Multi-Attention Transformer, as a network that nnU-Net plans can describe.

A residual UNet: patches are embedded three times, each time followed by channel attention and a residual block; the
deepest map passes a Transformer encoder, a pyramid of dilated convolutions and a Transformer decoder, and is upsampled
through three gates that the encoder's maps control. With `t_p` the plans' cumulative stride after `p` poolings:

.. math::
    x_1 &= \mathrm{stem}(image), \quad
    x_2 = \mathrm{stage}_1(x_1)\ (t_2), \quad x_3 = \mathrm{stage}_2(x_2)\ (t_4), \quad
    x_4 = \mathrm{stage}_3(x_3)\ (t_5), \quad z = \mathrm{enc}(x_4) \\
    y_4 &= \mathrm{dec}(\mathrm{ASPP}(z), z), \qquad
    y_k = \mathrm{res}\big[\mathrm{up}(\mathrm{gate}(x_{k+1}, y_{k+1}));\, x_k\big], \quad k = 3, 2, 1, \\
    logits &= W\,\mathrm{ASPP}(y_1).

Source: Zheng et al., Lagrange Duality and Compound Multi-Attention Transformer, sections III-A and B, figures 1 and 2,
and the released network, which fills in what the paper leaves open. Deliberate differences, each correcting a fault of
the
release: any patch, two or three dimensions, strides from the plans (an axis whose poolings are used up keeps its size
in what remains); attention over space, not over the batch; maps and tokens change into each other by transposing; maps
are upsampled to the size of the skip connection; instance norm; gates between 0 and 1; no unused parameters.
`official_compat` undoes all of them, see `released`.

Shapes: `B` samples, `C` classes or regions, `D` channels, `*S` two or three spatial axes of the patch, `*s` of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

import nnunet_collab.networks.cmaformer.released as released
from nnunet_collab.networks.cmaformer.attention import Attention
from nnunet_collab.networks.cmaformer.coder import CMADecoder, CMAEncoder
from nnunet_collab.networks.cmaformer.design import Design, step_strides
from nnunet_collab.networks.cmaformer.layers import Gate


class CMAformer(nn.Module):
    """CMAformer in two or three dimensions, for patches of any size.

    With deep supervision it returns a list of one entry, see `SegFormer`.

    Attributes:
        taps: Dotted names of the submodules whose outputs are the encoder's deepest map (the last entry of a list) and
            the decoder's map before the classifier.

    Args:
        input_channels: Channels of the images.
        num_classes: Classes or regions.
        deep_supervision: Whether to return a list of one entry.
        strides: Strides of the stages of the plans' network; the first five poolings are followed, see `step_strides`.
        features: Channels, six numbers: of the stem, and after each of the five downsampling steps.
        num_heads: Heads of the attention; they divide the last of `features`.
        num_layers: Layers of the Transformer encoder, and of the decoder.
        norm: `instance` or `batch`. In training `batch` needs two values per channel at the lowest resolution.
        aspp_rates: Dilations of the two pyramids, where the map is large enough for them.
        gate_activation: `sigmoid`, or `none` as released: then the decoder's map is multiplied by any number.
        use_vit_block: Whether there are a Transformer encoder and decoder (the paper's table III, first column). The
            bridge between them stays: it is that of ResUNet++, on which the network builds.
        use_cross_attention: Whether there are gates (table III, second column).
        rel_pos_bias: Whether attention has the relative position bias of equation 1, which the release does not have.
        official_compat: Build the released network, to load its weights: two dimensions and 512 x 512 only, attention
            across the batch, patches scrambled, unused parameters. `state_dict` then has the released names.

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
        strides: Sequence[Sequence[int]],
        features: Sequence[int] = (16, 32, 64, 128, 256, 512),
        num_heads: int = 8,
        num_layers: int = 3,
        norm: str = "instance",
        aspp_rates: Sequence[int] = (6, 12, 18),
        gate_activation: Gate = "sigmoid",
        use_vit_block: bool = True,
        use_cross_attention: bool = True,
        rel_pos_bias: bool = False,
        official_compat: bool = False,
    ) -> None:
        super().__init__()
        self.design = Design(
            steps=step_strides(strides),
            features=tuple(features),
            num_heads=num_heads,
            num_layers=num_layers,
            norm=norm,
            aspp_rates=tuple(aspp_rates),
            gate_activation=gate_activation,
            use_vit_block=use_vit_block,
            use_cross_attention=use_cross_attention,
            rel_pos_bias=rel_pos_bias,
            official_compat=official_compat,
        )
        self.input_channels = input_channels
        self.encoder = CMAEncoder(input_channels, self.design)
        self.decoder = CMADecoder(num_classes, self.design)
        if official_compat:
            self.unused = released.unused_parts()
        self.decoder.deep_supervision = deep_supervision
        self.apply(_init_weights)
        nn.init.normal_(self.decoder.classifier.weight, std=0.01)  # first probabilities near 1 / C

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """`(B, input_channels, *S)` to logits `(B, C, *S)`, in a list if `decoder.deep_supervision`.

        Raises:
            ValueError: If `x` has another number of axes or channels.
            CollabError: If the released network gets a patch of another size than its own.
        """
        dims = self.design.dims
        if x.ndim != dims + 2 or x.shape[1] != self.input_channels:
            axes = ", ".join("DHW"[-dims:])
            raise ValueError(
                f"CMAformer: input must have shape (B, {self.input_channels}, {axes}); got {tuple(x.shape)}. "
                "Channels and axes are set by input_channels and strides."
            )
        if self.design.official_compat:
            released.check_size(x.shape[2:])
        logits = self.decoder(self.encoder(x))
        return [logits] if self.decoder.deep_supervision else logits

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The weights by name; with `official_compat` by their names in the released network."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if self.design.official_compat:
            released.rename(state, kwargs.get("prefix", ""), to_released=True)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called by load_state_dict of this network, or of a module that contains it, before the submodules load.
        if self.design.official_compat:
            released.rename(state_dict, prefix, to_released=False)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _init_weights(module: nn.Module) -> None:
    """Fan-in normal for convolutions, which keeps the ungated gates near 1; truncated normal for linear layers."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
