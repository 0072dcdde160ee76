"""CMAformer: at home in every patch, samples apart, positions together, each switch, trainable, capturable."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from tiny import build_tiny_students

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.cmaformer.design import step_strides
from nnunet_collab.networks.cmaformer.network import CMAformer
from nnunet_collab.networks.perturbation import PerturbedPass
from nnunet_collab.training.settings import StudentSettings

ISO_2D = [[1, 1]] + 6 * [[2, 2]]
ISO_3D = [[1, 1, 1]] + 5 * [[2, 2, 2]]
THICK_SLICES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
FEATURES = (4, 4, 6, 8, 8, 16)
TOGGLES = [
    {},
    {"use_vit_block": False},
    {"use_cross_attention": False},
    {"use_vit_block": False, "use_cross_attention": False},
    {"gate_activation": "none"},
    {"rel_pos_bias": True},
    {"norm": "batch"},
]


def tiny(strides=ISO_2D, **settings):
    torch.manual_seed(0)
    return CMAformer(
        settings.pop("input_channels", 1),
        3,
        settings.pop("deep_supervision", False),
        strides=strides,
        **{"features": FEATURES, "num_heads": 2, "num_layers": 2, **settings},
    )


def assert_every_parameter_learns(network, loss):
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("strides", "steps", "totals"),
    [
        (ISO_2D, 5 * [(2, 2)], [(1, 1), (4, 4), (16, 16), (32, 32), (32, 32)]),
        ([[1, 1], [2, 2], [2, 2]], [(2, 2), (2, 2), (1, 1), (1, 1), (1, 1)], [(1, 1), *4 * [(4, 4)]]),
        (
            THICK_SLICES,
            [(1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1)],
            [(1, 1, 1), (2, 4, 4), *3 * [(4, 16, 16)]],
        ),
        ([[1, 1]], 5 * [(1, 1)], 5 * [(1, 1)]),
        ([[2, 1], [2, 3]], [(4, 3), (1, 1), (1, 1), (1, 1), (1, 1)], [(1, 1), *4 * [(4, 3)]]),
    ],
)
def test_strides_are_those_of_the_plans_first_five_poolings(strides, steps, totals):
    assert list(step_strides(strides)) == steps
    assert tiny(strides).encoder.total_strides == totals


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((64, 64), ISO_2D),
        ((128, 96), ISO_2D),
        ((96, 32), ISO_2D),
        ((45, 71), ISO_2D),
        ((3, 50), ISO_2D),
        ((1, 1), ISO_2D),
        ((40, 56), [[1, 1], [2, 2], [2, 2]]),
        ((32, 32, 32), ISO_3D),
        ((9, 5, 37), ISO_3D),
        ((1, 1, 1), ISO_3D),
        ((8, 48, 32), THICK_SLICES),
        ((5, 33, 50), THICK_SLICES),
        ((17, 19), [[1, 1], [3, 4]]),
    ],
)
def test_any_patch_gives_its_own_size_the_promised_strides_and_every_parameter_a_gradient(size, strides):
    network = tiny(strides)
    x = torch.randn(2, 1, *size)
    logits = network(x)
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()
    assert_every_parameter_learns(network, logits.square().sum())
    maps = network.encoder(x)
    assert [m.shape[1] for m in maps] == [4, 6, 8, 16, 16]
    for stride, feature_map in zip(network.encoder.total_strides, maps, strict=True):
        assert feature_map.shape[2:] == tuple(math.ceil(n / s) for n, s in zip(size, stride, strict=True))


@pytest.mark.parametrize("settings", TOGGLES)
@pytest.mark.parametrize(("size", "strides"), [((48, 40), ISO_2D), ((4, 24, 32), THICK_SLICES)])
def test_each_switch_trains_and_keeps_samples_apart(settings, size, strides):
    network = tiny(strides, **settings)
    assert_every_parameter_learns(network, network(torch.randn(2, 1, *size)).square().sum())
    network.double().eval()
    x = torch.randn(3, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    assert len(network.encoder(x)) == len(network.encoder.total_strides) == (4 + settings.get("use_vit_block", True))


def test_switches_take_their_parts_away_and_no_others():
    def parts(**settings):
        return {n.split(".")[0] + "." + n.split(".")[1] for n, _ in tiny(**settings).named_parameters()}

    transformers = {"encoder.transformer", "decoder.transformer"}
    assert parts() - parts(use_vit_block=False) == transformers
    assert parts() - parts(use_cross_attention=False) == {"decoder.gates"}
    assert parts(use_cross_attention=False) <= parts()
    with_bias = {n for n, _ in tiny(rel_pos_bias=True).named_parameters()}
    extra = with_bias - {n for n, _ in tiny().named_parameters()}
    assert extra
    assert all("attention.position.network" in n for n in extra)
    assert sum(n.endswith("position.network.0.weight") for n in extra) == 4  # every layer of encoder and decoder


def test_the_gates_decide_what_comes_up():
    x, outputs = torch.randn(1, 1, 64, 64), {}
    for activation in ("sigmoid", "none"):
        network = tiny(gate_activation=activation).eval()
        for gate in network.decoder.gates:
            torch.nn.init.zeros_(gate.conv_attn[2].weight)
            torch.nn.init.constant_(gate.conv_attn[2].bias, -1e4)
        outputs[activation] = network(x)
        # A closed sigmoid blanks the decoder's map: the deepest map no longer matters.
        torch.nn.init.normal_(network.decoder.bridge.output.weight)
        assert torch.equal(network(x), outputs[activation]) == (activation == "sigmoid")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_perturbing_one_token_changes_all_others_of_its_sample_and_no_other_sample(part):
    network = tiny().double().eval()
    layer = getattr(network, part).transformer[0]
    torch.manual_seed(0)
    tokens = torch.randn(2, 6, 16, dtype=torch.float64)
    moved = tokens.clone()
    moved[0, 2] += 1.0

    def run(t):
        return layer(t, (2, 3)) if part == "encoder" else layer(torch.ones_like(t), t, (2, 3))

    change = (run(tokens) - run(moved)).abs().amax(dim=2)
    assert (change[0] > 1e-9).all()
    assert (change[1] == 0).all()


def test_the_whole_patch_sees_the_whole_patch_only_with_attention():
    size = (1, 1, 640, 32)
    reach = {}
    for vit in (True, False):
        # Rates of 1 and batch norm: nothing but attention goes further than a convolution.
        network = tiny(use_vit_block=vit, norm="batch", aspp_rates=[1], features=(2, 2, 2, 2, 2, 4)).double().eval()
        for attention in network.encoder.channel_attentions:
            attention.fc = torch.nn.Identity()
            attention.forward = lambda x: x
        x = torch.randn(size, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(x)[0, :, -1].square().sum(), x)
        reach[vit] = gradient[0, 0, 0].abs().max().item()
    assert reach[True] > 0
    assert reach[False] == 0


def test_first_predictions_are_near_uniform_and_gates_half_open():
    torch.manual_seed(0)
    network = CMAformer(1, 3, strides=ISO_2D, features=(16, 32, 32, 64, 64, 64)).eval()
    gates = []
    for gate in network.decoder.gates:
        gate.conv_attn.register_forward_hook(lambda module, args, out: gates.append(out.sigmoid()))
    with torch.no_grad():
        probs = network(torch.randn(2, 1, 64, 64)).softmax(1)
    assert (probs - 1 / 3).abs().max() < 0.2
    assert all(0.1 < g.mean() < 0.9 for g in gates)


@pytest.mark.parametrize("strides", [ISO_2D, THICK_SLICES])
def test_taps_name_the_deepest_map_and_the_map_before_the_classifier(strides):
    network = tiny(strides, deep_supervision=True).eval()
    seen = {}
    for level, name in CMAformer.taps.items():
        network.get_submodule(name).register_forward_hook(lambda m, a, out, level=level: seen.update({level: out}))
    x = torch.randn(1, 1, *(32 for _ in strides[0]))
    (logits,) = network(x)
    torch.testing.assert_close(seen["encoder"][-1], network.encoder(x)[4])
    assert seen["decoder"].shape == (1, 4, *x.shape[2:])
    torch.testing.assert_close(logits, network.decoder.classifier(seen["decoder"]))


def test_a_student_of_it_hands_over_features_and_perturbs_them():
    arch = {"features": list(FEATURES), "num_heads": 2}
    group = build_tiny_students(StudentSettings(name="CMAformer", network="cmaformer", arch=arch), patch=(36, 44))
    student = group["CMAformer"].eval()
    assert all(p.requires_grad for p in student.parameters())
    x = torch.randn(2, 1, 36, 44)
    out = student(x, [PerturbedPass(0, 2, 0.9), PerturbedPass(0, 1, 0.9, "bottleneck"), PerturbedPass(1, 2, 0.0)])
    assert out.encoder.shape == (2, 16, 5, 6)
    assert out.logits.shape == (6, 3, 36, 44)
    torch.testing.assert_close(out.logits[[0, 1, 1]], torch.cat([student(x).logits, out.logits[5:]]))
    assert not torch.allclose(out.logits[2:4], out.logits[:2])
    assert not torch.allclose(out.logits[4], out.logits[0])


def test_plans_describe_it_and_the_stock_deep_supervision_loss_takes_it():
    kwargs = {"strides": THICK_SLICES, "features": FEATURES, "num_heads": 2, "norm": "batch"}
    path = "nnunet_collab.networks.cmaformer.CMAformer"
    network = get_network_from_plans(path, json.loads(json.dumps(kwargs)), [], 2, 4, deep_supervision=True)
    x = torch.randn(2, 2, 8, 32, 32)
    targets = [torch.zeros(2, 4, 8, 32, 32), torch.zeros(2, 4, 8, 16, 16)]
    loss = DeepSupervisionWrapper(F.mse_loss, (0.75, 0.25))(network(x), targets)
    network.decoder.deep_supervision = False
    assert loss.item() == pytest.approx(0.75 * network(x).square().mean().item(), rel=1e-5)


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_training_forward_and_backward_compile_without_graph_breaks_in_2d():
    network = tiny(num_layers=1)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert_every_parameter_learns(network, compiled(torch.randn(2, 1, 40, 33)).square().sum())


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_forward_compiles_without_graph_breaks_in_3d():
    network = tiny(THICK_SLICES, num_layers=1, rel_pos_bias=True).eval()
    x = torch.randn(1, 1, 6, 30, 33)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
        eager = network(x)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0.1 * eager.abs().max().item())  # half precision


@pytest.mark.parametrize("strides", [ISO_2D, THICK_SLICES])
def test_half_and_double_precision_agree_with_single(strides):
    network = tiny(strides, rel_pos_bias=True).eval()
    x = torch.randn(1, 1, *(40 for _ in strides[0]))
    with torch.no_grad():
        single = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(x)
        double = network.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)
    torch.testing.assert_close(half.double(), double, rtol=0, atol=0.15 * double.abs().max().item())


def test_attention_is_float32_under_autocast(monkeypatch):
    dtypes, original = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: dtypes.append(args[0].dtype) or original(*args, **kwargs),
    )
    network = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.randn(2, 1, 40, 40))
    assert dtypes == 4 * [torch.float32]
    assert_every_parameter_learns(network, logits.float().square().mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "layer"}, "CMAformer: norm must be 'instance' or 'batch'; found 'layer'. Correct it in the plans'"),
        ({"gate_activation": "relu"}, "gate_activation must be 'none' or 'sigmoid'; found 'relu'"),
        ({"features": (4, 4, 4)}, r"features must be six numbers >= 1; found \(4, 4, 4\)"),
        ({"features": (4, 4, 4, 4, 0, 4)}, "features must be six numbers >= 1"),
        ({"num_heads": 3}, "num_heads must divide the deepest map's 16 channels; found 3"),
        ({"num_heads": 0}, "num_heads must divide"),
        ({"num_layers": 0}, "num_layers must be >= 1; found 0"),
        ({"aspp_rates": ()}, r"aspp_rates must be at least one whole number >= 1; found \(\)"),
        ({"aspp_rates": (1, 0)}, "aspp_rates must be"),
        ({"use_vit_block": False, "rel_pos_bias": True}, "rel_pos_bias needs use_vit_block"),
        ({"strides": [[1, 1], [2, 2, 2]]}, r"strides must be one list .* found \[\[1, 1\], \[2, 2, 2\]\]"),
        ({"strides": [[1], [2]]}, "strides must be one list"),
        ({"strides": [[1, 1], [2, 0]]}, "strides must be one list"),
        ({"strides": [1, 2]}, "strides must be one list"),
        ({"strides": []}, "strides must be one list"),
        ({"strides": None}, "strides must be one list .* found None"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(CollabError, match=message):
        tiny(**settings)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 16), (1, 2, 16, 16), (1, 16, 16)])
def test_a_wrong_input_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"CMAformer: input .* \(B, 1, H, W\); got \(" + ", ".join(map(str, shape))):
        tiny()(torch.zeros(shape))
