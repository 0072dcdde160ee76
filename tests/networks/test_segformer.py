"""SegFormer: equal to the public implementation, at home in every patch that nnU-Net plans, trainable, capturable."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import nnunet_collab.networks.segformer as segformer_module
from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.mix_transformer import VARIANTS, EfficientAttention, MitVariant, drop_path
from nnunet_collab.networks.pretrained import from_huggingface
from nnunet_collab.networks.segformer import AllMLPFusion, SegFormer

ISO_2D = [[1, 1]] + 6 * [[2, 2]]
ISO_3D = [[1, 1, 1]] + 5 * [[2, 2, 2]]
THICK_SLICES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]

# Patch size, the plans' strides, and the strides of the four stages, worked out by hand.
PLANNED = {
    "2d": ((256, 256), ISO_2D, [(4, 4), (8, 8), (16, 16), (32, 32)]),
    "2d small": ((40, 56), [[1, 1], [2, 2], [2, 2], [2, 2]], [(4, 4), (8, 8), (8, 8), (8, 8)]),
    "3d thick slices": ((16, 64, 64), THICK_SLICES, [(2, 4, 4), (4, 8, 8), (4, 16, 16), (4, 16, 16)]),
    "3d": ((32, 32, 32), ISO_3D, [(4, 4, 4), (8, 8, 8), (16, 16, 16), (32, 32, 32)]),
}


def b0(strides=ISO_2D, **settings):
    torch.manual_seed(0)
    return SegFormer(settings.pop("input_channels", 1), 3, variant="b0", strides=strides, **settings)


@pytest.fixture
def tiny(monkeypatch):
    """A variant small enough for compiling; every kind of layer is in it."""
    torch.compiler.reset()  # or a second test's network is compiled for all sizes at once, which takes long
    variant = MitVariant((8, 8, 16, 16), (1, 2, 2, 2), (1, 1, 1, 1), 16)
    monkeypatch.setattr(segformer_module, "VARIANTS", {"tiny": variant})
    return lambda strides, **settings: SegFormer(1, 3, variant="tiny", strides=strides, **settings)


def reference_model(hidden, depths, width):
    """A random model of the public implementation, with norms that differ from channel to channel."""
    torch.manual_seed(1)
    config = SegformerConfig(
        hidden_sizes=hidden, depths=depths, decoder_hidden_size=width, num_channels=1, num_labels=3
    )
    model = SegformerForSemanticSegmentation(config).eval()
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            value.uniform_(0.5, 1.5) if "weight" in name or "var" in name else value.normal_(0, 0.3)
        elif value.ndim > 1 and "classifier" not in name:
            value.mul_(3)  # away from the start, where all tokens look alike
    return model


@pytest.mark.parametrize(
    ("variant", "hidden", "depths", "width"),
    [("b0", [32, 64, 160, 256], [2, 2, 2, 2], 256), ("b2", [64, 128, 320, 512], [3, 4, 6, 3], 768)],
)
def test_equals_the_public_implementation(variant, hidden, depths, width):
    theirs = reference_model(hidden, depths, width)
    ours = SegFormer(1, 3, variant=variant, strides=ISO_2D, head_norm="batch").eval()
    ours.load_state_dict(from_huggingface(theirs.state_dict()))
    # Double precision tells a wrong epsilon from rounding; single precision is what is used.
    for size, dtype, atol in (((128, 96), torch.float64, 1e-9), ((224, 224), torch.float32, 1e-5)):
        theirs, ours, x = theirs.to(dtype), ours.to(dtype), torch.randn(1, 1, *size, dtype=dtype)
        with torch.no_grad():
            want = theirs(x, output_hidden_states=True)
            features = ours.encoder(x)
            torch.testing.assert_close(features, list(want.hidden_states), rtol=0, atol=atol)
            torch.testing.assert_close(ours.decoder(features), want.logits, rtol=0, atol=atol)
            upsampled = F.interpolate(want.logits, size=size, mode="bilinear", align_corners=False)
            torch.testing.assert_close(ours(x), upsampled, rtol=0, atol=atol)


@pytest.mark.parametrize("case", PLANNED)
def test_every_planned_patch_gives_its_own_size_and_the_promised_strides(case):
    patch, strides, expected = PLANNED[case]
    network = b0(strides, deep_supervision=True)
    x = torch.randn(1, 1, *patch)
    (logits,) = network(x)
    assert logits.shape == (1, 3, *patch)
    features = network.encoder(x)
    assert list(network.encoder.total_strides) == expected
    assert [f.shape[1] for f in features] == [32, 64, 160, 256]
    assert [f.shape[2:] for f in features] == [
        tuple(p // s for p, s in zip(patch, stride, strict=True)) for stride in expected
    ]


@pytest.mark.parametrize(
    ("size", "strides"),
    [((45, 71), ISO_2D), ((5, 7), ISO_2D), ((3, 200), ISO_2D), ((7, 33, 50), THICK_SLICES), ((9, 5, 37), ISO_3D)],
)
def test_any_size_works_and_no_parameter_is_left_without_gradient(size, strides):
    network = b0(strides, drop_path=0.0)
    logits = network(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    maps = network.encoder(torch.randn(1, 1, *size))
    for stride, feature_map in zip(network.encoder.total_strides, maps, strict=True):
        assert feature_map.shape[2:] == tuple(math.ceil(n / s) for n, s in zip(size, stride, strict=True))


def test_one_stage_of_plans_is_enough():
    assert b0([[1, 1]])(torch.randn(1, 1, 6, 5)).shape == (1, 3, 6, 5)


def reference_attention(layer, tokens, grid):
    """Equations 1 and 2 for one sample on a 3D grid, one window and one query at a time."""
    dim, kernel = tokens.shape[-1], layer.reduction.kernel_size
    volume = tokens[0].reshape(*grid, dim)
    counts = [max(1, n // k) for n, k in zip(grid, kernel, strict=True)]
    source = []
    for window in itertools.product(*map(range, counts)):
        total = layer.reduction.bias.clone()
        for offset in itertools.product(*map(range, kernel)):
            place = tuple(w * k + o for w, k, o in zip(window, kernel, offset, strict=True))
            if all(p < n for p, n in zip(place, grid, strict=True)):
                total = total + layer.reduction.weight[(slice(None), slice(None), *offset)] @ volume[place]
        source.append(F.layer_norm(total, (dim,), layer.reduction_norm.weight, layer.reduction_norm.bias))
    key, value = (torch.stack(source) @ layer.key_value.weight.T + layer.key_value.bias).split(dim, dim=1)
    rows, width = [], dim // layer.num_heads
    for query in tokens[0] @ layer.query.weight.T + layer.query.bias:
        heads = []
        for h in (slice(i * width, (i + 1) * width) for i in range(layer.num_heads)):
            weights = torch.exp(key[:, h] @ query[h] / math.sqrt(width))
            heads.append((weights / weights.sum()) @ value[:, h])
        rows.append(torch.cat(heads) @ layer.output.weight.T + layer.output.bias)
    return torch.stack(rows)[None]


@pytest.mark.parametrize("grid", [(2, 4, 6), (2, 5, 3), (1, 3, 1)])
def test_attention_in_3d_equals_its_equation(grid):
    torch.manual_seed(0)
    layer = EfficientAttention(6, 3, (1, 2, 2)).double()
    tokens = torch.randn(1, math.prod(grid), 6, dtype=torch.float64)
    torch.testing.assert_close(layer(tokens, grid), reference_attention(layer, tokens, grid), rtol=0, atol=1e-12)


def test_fusion_in_3d_equals_projecting_upsampling_and_concatenating_deepest_first():
    torch.manual_seed(0)
    fusion = AllMLPFusion((3, 4, 5, 6), 8, "instance", dims=3).double()
    sizes = [(4, 6, 7), (2, 3, 4), (2, 2, 2), (1, 1, 2)]
    maps = [torch.randn(2, d, *s, dtype=torch.float64) for d, s in zip((3, 4, 5, 6), sizes, strict=True)]
    levels = []
    for feature_map, layer in zip(maps, fusion.projections, strict=True):
        level = torch.einsum("oc,bczyx->bozyx", layer.weight, feature_map) + layer.bias.reshape(1, -1, 1, 1, 1)
        levels.append(F.interpolate(level, size=sizes[0], mode="trilinear", align_corners=False))
    mixed = fusion.fuse(torch.cat(levels[::-1], dim=1))
    mean, variance = mixed.mean((2, 3, 4), keepdim=True), mixed.var((2, 3, 4), keepdim=True, unbiased=False)
    torch.testing.assert_close(fusion(maps), ((mixed - mean) / (variance + 1e-5).sqrt()).relu(), rtol=0, atol=1e-12)


def test_attention_reaches_where_convolutions_do_not():
    network = b0().double().eval()
    x = torch.randn(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)

    def influence():
        first_stage = network.encoder.stages[0](x)
        return torch.autograd.grad(first_stage[0, :, -1, -1].square().sum(), x)[0][0, 0, 0, 0].abs().item()

    assert influence() > 1e-12
    for block in network.encoder.stages[0].blocks:
        torch.nn.init.zeros_(block.attention.output.weight)
    assert influence() == 0


def test_samples_do_not_see_each_other_in_evaluation():
    network = b0().eval()
    x = torch.randn(3, 1, 48, 40)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    branch = torch.ones(4000, 2, 3, dtype=torch.float64)
    out = drop_path(branch, 0.25)
    assert out.dtype == torch.float64
    assert set(out.unique().tolist()) == {0.0, 1 / 0.75}
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    rates = [block.drop_path for stage in b0(drop_path=0.7).encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_dropout_comes_after_the_tapped_map_and_before_the_classifier():
    network = b0(drop_path=0.0, head_dropout=0.5)
    seen = []
    network.get_submodule(SegFormer.taps["decoder"]).register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(2, 1, 32, 32)
    assert not torch.equal(network(x), network(x))
    assert torch.equal(*seen)


def test_randomness_is_for_training_only():
    network = b0(drop_path=0.5, head_dropout=0.5)
    x = torch.randn(4, 1, 32, 32)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_first_predictions_are_near_uniform_and_weights_start_as_published():
    network = b0(drop_path=0.0).eval()
    with torch.no_grad():
        probs = network(torch.randn(2, 1, 64, 64)).softmax(1)
    assert (probs - 1 / 3).abs().max() < 0.25
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.weight.abs().max() <= 2, name
            assert not module.bias.any(), name
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
        elif isinstance(module, torch.nn.Conv2d) and "classifier" not in name:
            fan_out = module.out_channels * module.kernel_size[0] ** 2 // module.groups
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name


@pytest.mark.parametrize("strides", [ISO_2D, THICK_SLICES])
def test_taps_name_the_deepest_map_and_the_map_before_the_classifier(strides):
    network = b0(strides, head_dropout=0.5, deep_supervision=True).eval()
    seen = {}
    for level, name in SegFormer.taps.items():
        network.get_submodule(name).register_forward_hook(
            lambda module, args, out, level=level: seen.update({level: out})
        )
    x = torch.randn(1, 1, *(32 for _ in strides[0]))
    (logits,) = network(x)
    torch.testing.assert_close(seen["encoder"][-1], network.encoder(x)[3])
    assert seen["decoder"].shape[1:] == (256, *(32 // s for s in network.encoder.total_strides[0]))
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    again = F.interpolate(network.decoder.classifier(seen["decoder"]), size=x.shape[2:], mode=mode)
    torch.testing.assert_close(logits, again)


def test_plans_describe_it_and_the_stock_deep_supervision_loss_takes_it():
    kwargs = {"variant": "b0", "strides": THICK_SLICES, "head_norm": "batch", "drop_path": 0.0, "head_dropout": 0.0}
    path = "nnunet_collab.networks.segformer.SegFormer"
    network = get_network_from_plans(path, json.loads(json.dumps(kwargs)), [], 2, 4, deep_supervision=True)
    x = torch.randn(2, 2, 8, 32, 32)
    targets = [torch.zeros(2, 4, 8, 32, 32), torch.zeros(2, 4, 8, 16, 16)]
    loss = DeepSupervisionWrapper(torch.nn.functional.mse_loss, (0.75, 0.25))(network(x), targets)
    network.decoder.deep_supervision = False
    assert loss.item() == pytest.approx(0.75 * network(x).square().mean().item(), rel=1e-5)
    clone = copy.deepcopy(network)
    assert isinstance(clone.decoder.fusion.norm, torch.nn.BatchNorm3d)


def test_every_variant_of_table_6_is_there():
    assert {name: sum(v.depths) for name, v in VARIANTS.items()} == {
        "b0": 8, "b1": 8, "b2": 16, "b3": 28, "b4": 41, "b5": 52,
    }  # fmt: skip
    with torch.device("meta"):
        sizes = {n: sum(p.numel() for p in SegFormer(3, 1, variant=n, strides=ISO_2D).parameters()) for n in VARIANTS}
    # Table 1 of the paper, encoder and decoder in millions.
    published = {"b0": 3.8, "b1": 13.7, "b2": 27.5, "b3": 47.3, "b4": 64.1, "b5": 84.7}
    assert {n: s / 1e6 for n, s in sizes.items()} == pytest.approx(published, rel=0.03)


def test_training_forward_and_backward_compile_without_graph_breaks_in_2d(tiny):
    network = tiny(ISO_2D, drop_path=0.3)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(2, 1, 40, 33)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_forward_compiles_without_graph_breaks_in_3d(tiny):
    network = tiny(THICK_SLICES).eval()
    x = torch.randn(1, 1, 6, 30, 33)
    with torch.no_grad():
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(compiled, network(x))


@pytest.mark.parametrize("strides", [ISO_2D, ISO_3D])
def test_half_and_double_precision_agree_with_single(strides):
    network = b0(strides).eval()
    x = torch.randn(1, 1, *(40 for _ in strides[0]))
    with torch.no_grad():
        single = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(x)
        double = network.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)
    torch.testing.assert_close(half.double(), double, rtol=0, atol=0.05 * double.abs().max().item())


def test_half_precision_trains():
    network = b0()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(torch.randn(2, 1, 64, 64)).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "b7"}, "SegFormer: variant must be one of b0, b1, b2, b3, b4, b5; found 'b7'"),
        ({"head_norm": "layer"}, "head_norm must be 'instance' or 'batch'; found 'layer'"),
        ({"drop_path": 1.0}, r"drop_path is a probability in \[0, 1\); found 1.0"),
        ({"head_dropout": -0.1}, r"head_dropout is a probability in \[0, 1\]; found -0.1"),
        ({"strides": [[1, 1], [2, 2, 2]]}, r"strides must be one list .* found \[\[1, 1\], \[2, 2, 2\]\]"),
        ({"strides": [[1], [2]]}, "strides must be one list"),
        ({"strides": [[1, 1], [2, 0]]}, "strides must be one list"),
        ({"strides": [1, 2, 2]}, "strides must be one list"),
        ({"strides": []}, "strides must be one list"),
        ({"strides": None}, "found None. Copy 'strides' from the configuration's architecture"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(CollabError, match=message):
        SegFormer(1, 3, **{"variant": "b0", "strides": ISO_2D, **settings})


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 16), (1, 2, 16, 16), (1, 16, 16)])
def test_a_wrong_input_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\); got \(" + ", ".join(map(str, shape))):
        b0()(torch.zeros(shape))
