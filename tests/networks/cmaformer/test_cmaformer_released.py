"""The released CMAformer: names and shapes one by one, and what it computes, written down a second time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.cmaformer.network import CMAformer
from nnunet_collab.networks.cmaformer.released import PARTS, rename

STRIDES = [[1, 1]] + 7 * [[2, 2]]  # of nnU-Net's plans for 512 x 512


def official(**settings):
    return CMAformer(1, 3, **{"strides": STRIDES, "official_compat": True, **settings})


@pytest.fixture(scope="module")
def on_paper():
    """The network without memory for its weights."""
    with torch.device("meta"):
        return official()


def layers(name, *rows):
    """Weights and biases of a Sequential: `rows` are (index, shape of the weight); a norm's weight has one axis."""
    out = {}
    for index, shape in rows:
        out |= {f"{name}.{index}.weight": shape, f"{name}.{index}.bias": shape[:1]}
    return out


def residual(name, a, b):
    block = layers(f"{name}.conv_block", (0, (a,)), (2, (b, a, 3, 3)), (3, (b,)), (5, (b, b, 3, 3)))
    return block | layers(f"{name}.conv_skip", (0, (b, a, 3, 3)), (1, (b,)))


def embedding(i, a, b):
    name = f"patch_embedding{i}"
    parts = {"proj": (b, a, 3, 3), "pos.pa_conv": (b, 1, 3, 3), "norm": (b,)}
    return {
        f"{name}.{part}.{kind}": shape[: None if kind == "weight" else 1]
        for part, shape in parts.items()
        for kind in ("weight", "bias")
    }


def squeeze(i, c):
    return {
        f"squeeze_excite{i}.fc.0.weight": (max(1, c // 16), c),
        f"squeeze_excite{i}.fc.2.weight": (c, max(1, c // 16)),
    }


def pyramid(name, a, b):
    blocks = {}
    for i in (1, 2, 3):
        blocks |= layers(f"{name}.aspp_block{i}", (0, (b, a, 3, 3)), (2, (b,)))
    return blocks | {f"{name}.output.weight": (b, 3 * b, 1, 1), f"{name}.output.bias": (b,)}


def gate(i, e, d):
    blocks = layers(f"attn{i}.conv_encoder", (0, (e,)), (2, (d, e, 3, 3)))
    blocks |= layers(f"attn{i}.conv_decoder", (0, (d,)), (2, (d, d, 3, 3)))
    return blocks | layers(f"attn{i}.conv_attn", (0, (d,)), (2, (1, d, 1, 1)))


def transformer(name):
    out = {f"{name}.attention.in_proj_weight": (1536, 512), f"{name}.attention.in_proj_bias": (1536,)}
    out |= {f"{name}.attention.out_proj.weight": (512, 512), f"{name}.attention.out_proj.bias": (512,)}
    out |= {f"{name}.{norm}.{kind}": (512,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    return out | layers(f"{name}.feed_forward", (0, (2048, 512)), (2, (512, 2048)))


def inventory():
    """Parameters of the public code at 512 x 512, one channel, three classes; read off its constructors."""
    out = layers("input_layer", (0, (16, 1, 3, 3)), (1, (16,)), (3, (16, 16, 3, 3)))
    out |= layers("input_skip", (0, (16, 1, 3, 3))) | layers("output_layer", (0, (3, 16, 1, 1)))
    out |= {
        "patch_position_embedding1.projection.weight": (16, 16, 3, 3),
        "patch_position_embedding1.projection.bias": (16,),
        "patch_position_embedding1.cls_token": (1, 1, 16),
        "patch_position_embedding1.position_embeddings": (1, 65537, 16),
    }
    for i, (a, b, c) in enumerate([(16, 32, 64), (64, 128, 256), (256, 512, 512)], start=1):
        out |= embedding(i, a, b) | squeeze(i, b) | residual(f"residual_conv{i}", b, c)
    for name in (
        "Encoder",
        "Decoder",
        *(f"{side}Block.layers.{i}" for side in ("Encoder", "Decoder") for i in range(3)),
    ):
        out |= transformer(name)
    out |= pyramid("FeatureFusion_bridge", 512, 512) | pyramid("FeatureFusion_out", 32, 16)
    out |= gate(1, 512, 512) | gate(2, 256, 256) | gate(3, 64, 128)
    for i, (a, b) in enumerate([(768, 256), (320, 128), (144, 32)], start=1):
        out |= residual(f"up_residual_conv{i}", a, b)
    return out


def test_names_and_shapes_are_the_released_ones(on_paper):
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    found = {n: tuple(v.shape) for n, v in on_paper.state_dict().items() if not n.endswith(statistics)}
    assert found == inventory()


def test_it_has_55_million_parameters_of_which_7_are_never_used(on_paper):
    assert sum(p.numel() for p in on_paper.parameters()) == 55_035_414  # 55.04 M
    assert sum(p.numel() for p in on_paper.unused.parameters()) == 7_355_696  # 7.36 M


def test_its_norms_are_batch_norms_with_running_statistics(on_paper):
    names = list(on_paper.state_dict())
    norms = [n.removesuffix(".running_mean") for n in names if n.endswith(".running_mean")]
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in on_paper.modules())
    # One in the stem, three in each residual block and gate, three in each pyramid.
    assert len(norms) == 1 + 3 * 3 + 3 * 3 + 3 * 3 + 2 * 3
    assert all(f"{n}.num_batches_tracked" in names for n in norms)


def test_weights_travel_by_released_names_also_inside_another_module(on_paper):
    weights = on_paper.state_dict()
    assert on_paper.load_state_dict(weights, strict=True, assign=True).missing_keys == []
    outer = nn.ModuleDict({"net": on_paper})
    assert list(outer.state_dict()) == [f"net.{name}" for name in weights]
    outer.load_state_dict(outer.state_dict(), strict=True, assign=True)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "input_lair.0.weight"'):
        on_paper.load_state_dict({**weights, "input_lair.0.weight": weights["input_layer.0.weight"]}, assign=True)
    assert "input_layer.0.weight" in weights  # the caller's dict is left alone


def test_renaming_there_and_back_changes_nothing_else(on_paper):
    inner = {f"x.{name}": torch.empty(0) for name, _ in on_paper.named_parameters()}
    state = {**inner, "y.encoder.stem.0.weight": torch.empty(0)}
    rename(state, "x.", to_released=True)
    assert {n for n in state if n.startswith("x.")} == {f"x.{n}" for n in inventory()}
    rename(state, "x.", to_released=False)
    assert set(state) == {*inner, "y.encoder.stem.0.weight"}
    assert len(set(PARTS.values())) == len(PARTS)


def test_without_it_checkpoints_have_our_names():
    network = CMAformer(1, 3, strides=STRIDES, features=(4, 4, 4, 4, 4, 8), num_heads=2, norm="batch")
    assert not hasattr(network, "unused")
    assert {n.split(".")[0] for n in network.state_dict()} == {"encoder", "decoder"}
    network.load_state_dict(network.state_dict())


class Released:
    """What the public code computes in evaluation, from a state dict with its names alone."""

    def __init__(self, weights):
        self.w = weights

    def conv(self, x, name, **options):
        return F.conv2d(x, self.w[name + ".weight"], self.w[name + ".bias"], **{"padding": 1, **options})

    def bn(self, x, name):
        mean, var = self.w[name + ".running_mean"], self.w[name + ".running_var"]
        return F.batch_norm(x, mean, var, self.w[name + ".weight"], self.w[name + ".bias"])

    def pre(self, x, name, norm, conv, **options):
        return self.conv(self.bn(x, f"{name}.{norm}").relu(), f"{name}.{conv}", **options)

    def residual(self, x, name, stride=1):
        y = self.pre(x, f"{name}.conv_block", 0, 2, stride=stride)
        y = self.pre(y, f"{name}.conv_block", 3, 5)
        return y + self.bn(self.conv(x, f"{name}.conv_skip.0", stride=stride), f"{name}.conv_skip.1")

    def embed(self, x, i):
        x = self.conv(x, f"patch_embedding{i}.proj", stride=2)
        channels, side = x.shape[1:3]
        x = x * self.conv(x, f"patch_embedding{i}.pos.pa_conv", groups=channels).sigmoid()
        weight, bias = (self.w[f"patch_embedding{i}.norm.{kind}"] for kind in ("weight", "bias"))
        tokens = F.layer_norm(x.permute(0, 2, 3, 1), (channels,), weight, bias, eps=1e-6)
        x = tokens.contiguous().view(-1, channels, side, side)  # rows of tokens taken for rows of pixels
        mean = x.mean((2, 3))
        squeezed = (mean @ self.w[f"squeeze_excite{i}.fc.0.weight"].T).relu()
        return x * (squeezed @ self.w[f"squeeze_excite{i}.fc.2.weight"].T).sigmoid()[:, :, None, None]

    def attend(self, query, source, name):
        layer = nn.MultiheadAttention(512, 8)  # axes of (B, N, D) taken for (N, B, D)
        prefix = f"{name}.attention."
        layer.load_state_dict({n.removeprefix(prefix): v for n, v in self.w.items() if n.startswith(prefix)})
        return layer.eval()(query, source, source)[0]

    def ln(self, x, name):
        return F.layer_norm(x, (512,), self.w[name + ".weight"], self.w[name + ".bias"])

    def ffn(self, x, name):
        hidden = F.linear(x, self.w[f"{name}.feed_forward.0.weight"], self.w[f"{name}.feed_forward.0.bias"])
        return F.linear(F.gelu(hidden), self.w[f"{name}.feed_forward.2.weight"], self.w[f"{name}.feed_forward.2.bias"])

    def pyramid(self, x, name):
        levels = []
        for i, rate in ((1, 6), (2, 12), (3, 18)):
            y = self.conv(x, f"{name}.aspp_block{i}.0", padding=rate, dilation=rate)
            levels.append(self.bn(y.relu(), f"{name}.aspp_block{i}.2"))
        return self.conv(torch.cat(levels, 1), f"{name}.output", padding=0)

    def gate(self, e, d, name):
        both = self.pre(e, f"{name}.conv_encoder", 0, 2) + self.pre(d, f"{name}.conv_decoder", 0, 2)
        return d * self.pre(both, f"{name}.conv_attn", 0, 2, padding=0)

    def up(self, x, skip, factor, name):
        grown = F.interpolate(x, scale_factor=factor, mode="bilinear")
        return self.residual(torch.cat([grown, skip], 1), name)

    def __call__(self, image):
        x1 = self.conv(self.bn(self.conv(image, "input_layer.0"), "input_layer.1").relu(), "input_layer.3")
        x1 = x1 + self.conv(image, "input_skip.0")
        x2 = self.residual(self.embed(x1, 1), "residual_conv1", 2)
        x3 = self.residual(self.embed(x2, 2), "residual_conv2", 2)
        x4 = self.residual(self.embed(x3, 3), "residual_conv3")
        tokens = x4.flatten(2).permute(0, 2, 1)
        for i in range(3):
            name = f"EncoderBlock.layers.{i}"
            query = self.ln(tokens, f"{name}.norm1")
            tokens = self.ln(self.attend(query, tokens, name) + query, f"{name}.norm2")
            tokens = self.ffn(tokens, name) + tokens
        encoded = tokens
        tokens = self.pyramid(encoded.permute(0, 2, 1).reshape(x4.shape), "FeatureFusion_bridge")
        tokens = tokens.flatten(2).permute(0, 2, 1)
        for i in range(3):
            name = f"DecoderBlock.layers.{i}"
            tokens = self.ln(self.attend(tokens, encoded, name) + tokens, f"{name}.norm1")
            tokens = self.ln(self.ffn(tokens, name) + tokens, f"{name}.norm2")
        x = tokens.permute(0, 2, 1).reshape(x4.shape)
        x = self.up(self.gate(x4, x, "attn1"), x3, 2, "up_residual_conv1")
        x = self.up(self.gate(x3, x, "attn2"), x2, 4, "up_residual_conv2")
        x = self.up(self.gate(x2, x, "attn3"), x1, 4, "up_residual_conv3")
        return self.conv(self.pyramid(x, "FeatureFusion_out"), "output_layer.0", padding=0)


@pytest.mark.slow
def test_loaded_weights_do_what_they_did():
    torch.manual_seed(0)
    network = official().eval()
    weights = network.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and value.ndim == 1:  # norms and biases that differ from channel to channel
            value.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else value.normal_(0, 0.3)
    network.load_state_dict(weights)
    x = torch.randn(2, 1, 512, 512)
    with torch.no_grad():
        ours, theirs = network(x), Released(weights)(x)
        alone = network(x[:1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())
    assert theirs.std() > 1e-2
    assert not torch.allclose(alone, ours[:1], rtol=0, atol=1e-3 * theirs.abs().max().item())  # the fault it keeps


@pytest.mark.parametrize("size", [(256, 256), (512, 384)])
def test_other_sizes_are_refused(on_paper, size):
    message = (
        f"accepts patches of 512 x 512 only; found {size[0]} x {size[1]}. Set patch_size to \\[512, 512\\], or drop"
    )
    with pytest.raises(CollabError, match=message):
        on_paper(torch.zeros(1, 1, *size, device="meta"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_vit_block": False}, "fixes the architecture, so use_vit_block cannot be set to False. Drop official"),
        ({"norm": "instance", "rel_pos_bias": True}, "so rel_pos_bias cannot be set to True"),
        ({"aspp_rates": [1, 2, 3], "num_layers": 2}, r"num_layers, aspp_rates cannot be set to 2, \(1, 2, 3\)"),
        ({"strides": 8 * [[1, 1]]}, r"halves both axes five times; the plans pool by \[\[1, 1\],"),
        ({"strides": 8 * [[1, 2, 2]]}, r"the plans pool by \[\[1, 4, 4\],"),
    ],
)
def test_another_architecture_is_refused(settings, message):
    with pytest.raises(CollabError, match=message), torch.device("meta"):
        official(**settings)


def test_what_the_release_does_anyway_may_be_said(on_paper):
    with torch.device("meta"):
        network = official(norm="batch", gate_activation="none")
    assert list(network.state_dict()) == list(on_paper.state_dict())
