"""CMAformer's layers, each against its equation by another route."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_collab.networks.cmaformer.attention import (
    Attention,
    DecoderLayer,
    EncoderLayer,
    RelativePositionBias,
)
from nnunet_collab.networks.cmaformer.layers import (
    AtrousPyramid,
    ChannelAttention,
    CrossAttentionGate,
    InstanceNorm,
    PatchEmbedding,
    ResidualConv,
    make_map_norm,
)

GRIDS = [(3, 4), (2, 3, 2)]


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(ours, theirs, atol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def randomize(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def torch_attention(ours, *, batch_first):
    """PyTorch's layer with the same weights."""
    theirs = nn.MultiheadAttention(ours.out_proj.in_features, ours.num_heads, batch_first=batch_first)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("position")})
    return theirs


def attend(ours, query, source, *, bias=None):
    """The same with PyTorch's layer; its mask is added to the logits."""
    mask = None if bias is None else bias.expand(query.shape[0], -1, -1, -1).flatten(0, 1)
    return torch_attention(ours, batch_first=True)(query, source, source, attn_mask=mask)[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_attention_equals_pytorchs_over_positions(grid):
    layer, n = randomize(Attention(8, 2)), math.prod(grid)
    query, source = torch.randn(2, n, 8), torch.randn(2, n, 8)
    close(layer(query, source, grid), attend(layer, query, source))


def test_across_the_batch_it_equals_pytorchs_with_axes_mistaken():
    layer = randomize(Attention(8, 2, across_batch=True))
    query, source = torch.randn(3, 6, 8), torch.randn(3, 6, 8)
    close(layer(query, source, (2, 3)), torch_attention(layer, batch_first=False)(query, source, source)[0])
    # The fault itself: samples see each other, positions do not.
    moved = source.clone()
    moved[0, 2] += 1
    change = (layer(query, source, (2, 3)) - layer(query, moved, (2, 3))).abs().amax(2) > 1e-12
    assert change[:, 2].all()
    assert change.sum() == 3


@pytest.mark.parametrize("grid", [*GRIDS, (1, 1), (1, 5)])
def test_the_position_bias_is_one_number_per_head_and_offset(grid):
    layer = randomize(RelativePositionBias(len(grid), 2))
    bias, n = layer(grid), math.prod(grid)
    assert bias.shape == (1, 2, n, n)
    places = [[int(i) for i in torch.unravel_index(torch.tensor(k), grid)] for k in range(n)]
    for i, here in enumerate(places):
        for j, there in enumerate(places):
            offset = [math.copysign(math.log1p(abs(a - b)), a - b) for a, b in zip(here, there, strict=True)]
            close(bias[0, :, i, j], layer.network(torch.tensor(offset)))


@pytest.mark.parametrize("grid", GRIDS)
def test_the_position_bias_is_added_to_the_logits(grid):
    layer = randomize(Attention(8, 2, RelativePositionBias(len(grid), 2)))
    query, source = torch.randn(2, math.prod(grid), 8), torch.randn(2, math.prod(grid), 8)
    close(layer(query, source, grid), attend(layer, query, source, bias=layer.position(grid)))
    assert not torch.allclose(layer(query, source, grid), attend(layer, query, source))


def norm_of(layer, x):
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


def ffn_of(layer, x):
    first, _, last = layer.feed_forward
    return F.gelu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias


def test_encoder_layer_equals_its_equation():
    layer = randomize(EncoderLayer(8, Attention(8, 2)))
    x = torch.randn(2, 6, 8)
    q = norm_of(layer.norm1, x)
    y = norm_of(layer.norm2, attend(layer.attention, q, x) + q)
    close(layer(x, (2, 3)), ffn_of(layer, y) + y)


def test_decoder_layer_equals_its_equation():
    layer = randomize(DecoderLayer(8, Attention(8, 2)))
    x, z = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    y = norm_of(layer.norm1, attend(layer.attention, x, z) + x)
    close(layer(x, z, (2, 3)), norm_of(layer.norm2, ffn_of(layer, y) + y))


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2), (1, 1)])
def test_patches_keep_their_place(stride):
    layer = randomize(PatchEmbedding(2, 3, stride))
    x = torch.randn(2, 2, *(7 for _ in stride))
    y = layer.proj(x)
    y = y * layer.position(y).sigmoid()
    out = layer(x)
    assert out.shape == (2, 3, *(math.ceil(7 / s) for s in stride))
    for place in torch.cartesian_prod(*(torch.arange(n) for n in out.shape[2:])):
        at = (slice(None), slice(None), *place)
        close(out[at], F.layer_norm(y[at], (3,), layer.norm.weight, layer.norm.bias, eps=1e-6))


def test_scrambled_patches_are_the_same_numbers_in_the_released_order():
    layer = randomize(PatchEmbedding(2, 3, (2, 2)))
    x = torch.randn(2, 2, 8, 8)
    right = layer(x)
    layer.scrambled = True
    wrong = layer(x)
    close(wrong, right.flatten(2).transpose(1, 2).contiguous().view(2, 3, 4, 4))
    assert not torch.allclose(wrong, right)


@pytest.mark.parametrize("dims", [2, 3])
def test_channel_attention_equals_squeeze_and_excitation(dims):
    layer = randomize(ChannelAttention(32))
    x = torch.randn(2, 32, *(3 for _ in range(dims)))
    for b in range(2):
        mean = torch.stack([channel.mean() for channel in x[b]])
        factor = 1 / (1 + torch.exp(-layer.fc[2].weight @ (layer.fc[0].weight @ mean).clamp(min=0)))
        close(layer(x)[b], torch.stack([c * f for c, f in zip(x[b], factor, strict=True)]))
    assert layer.fc[0].weight.shape == (2, 32)


def instance_norm(x, layer):
    mean, var = x.flatten(2).mean(2), x.flatten(2).var(2, unbiased=False)
    shape = (*mean.shape, *(1 for _ in x.shape[2:]))
    scale = (layer.weight / (var + 1e-5).sqrt()).reshape(shape)
    return (x - mean.reshape(shape)) * scale + layer.bias.reshape(1, -1, *shape[2:])


def convolve(x, layer, **options):
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, layer.weight, layer.bias, **options)


def norm_relu_conv(x, norm, conv, **options):
    return convolve(instance_norm(x, norm).relu(), conv, padding=1, **options)


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 1)])
def test_residual_block_equals_its_definition(stride):
    layer = randomize(ResidualConv(2, 3, stride, "instance"))
    x = torch.randn(2, 2, *(5 for _ in stride))
    block, skip = layer.conv_block, layer.conv_skip
    y = norm_relu_conv(norm_relu_conv(x, block[0], block[2], stride=stride), block[3], block[5])
    close(layer(x), y + instance_norm(convolve(x, skip[0], stride=stride, padding=1), skip[1]))


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_gate_equals_its_equation(activation):
    layer = randomize(CrossAttentionGate(3, 2, "instance", 2, activation=activation))
    e, d = torch.randn(2, 3, 5, 4), torch.randn(2, 2, 5, 4)
    both = norm_relu_conv(e, layer.conv_encoder[0], layer.conv_encoder[2])
    both = both + norm_relu_conv(d, layer.conv_decoder[0], layer.conv_decoder[2])
    weight = convolve(instance_norm(both, layer.conv_attn[0]).relu(), layer.conv_attn[2])
    close(layer(e, d), d * (weight.sigmoid() if activation == "sigmoid" else weight))


@pytest.mark.parametrize(
    ("size", "clamped", "rates"),
    [
        ((16, 16), True, [(6, 6), (8, 8), (8, 8)]),
        ((8, 7), True, [(4, 3), (4, 3), (4, 3)]),
        ((40, 3), True, [(6, 1), (12, 1), (18, 1)]),
        ((4, 8, 30), True, [(2, 4, 6), (2, 4, 12), (2, 4, 15)]),
        ((1, 2), True, [(1, 1), (1, 1), (1, 1)]),
        ((8, 8), False, [(6, 6), (12, 12), (18, 18)]),
    ],
)
def test_dilations_shrink_with_the_map(size, clamped, rates):
    layer = randomize(AtrousPyramid(2, 3, (6, 12, 18), "instance", len(size), clamped=clamped))
    x = torch.randn(2, 2, *size)
    branches = [
        instance_norm(convolve(x, branch[0], padding=rate, dilation=rate).relu(), branch[2])
        for rate, branch in zip(rates, layer.branches, strict=True)
    ]
    close(layer(x), convolve(torch.cat(branches, dim=1), layer.output))


@pytest.mark.parametrize("size", [(3, 4), (1, 2), (2, 1, 3)])
def test_instance_norm_is_pytorchs(size):
    x, ours = torch.randn(2, 4, *size), randomize(InstanceNorm(4))
    theirs = (nn.InstanceNorm2d if len(size) == 2 else nn.InstanceNorm3d)(4, affine=True)
    theirs.load_state_dict(ours.state_dict())
    close(ours(x), theirs(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 1, 1)])
def test_a_single_position_is_normalized_over_its_channels(size):
    x, layer = torch.randn(2, 4, *size), randomize(InstanceNorm(4))
    flat = x.flatten(1)
    mean, var = flat.mean(1, keepdim=True), flat.var(1, unbiased=False, keepdim=True)
    close(layer(x).flatten(1), (flat - mean) / (var + 1e-5).sqrt() * layer.weight + layer.bias)


def test_batch_norm_keeps_running_statistics():
    assert isinstance(make_map_norm("batch", 4, 2), nn.BatchNorm2d)
    assert isinstance(make_map_norm("batch", 4, 3), nn.BatchNorm3d)
    assert isinstance(make_map_norm("instance", 4, 3), InstanceNorm)
