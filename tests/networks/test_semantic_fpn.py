"""Semantic FPN: equal to the paper's figure, any 2D size, trainable under stock nnU-Net."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.semantic_fpn import SemanticFPN, SemanticFPNHead, make_backbone


def fpn(**settings):
    torch.manual_seed(0)
    return SemanticFPN(settings.pop("input_channels", 1), 3, **{"width": 16, "branch_width": 8, **settings})


def reference_head(head, maps):
    """Figures 3 of both papers written out, for maps that halve exactly, batch norm in evaluation, float64."""
    pyramid = head.fusion.pyramid
    lateral = [layer(m) for layer, m in zip(pyramid.lateral, maps, strict=True)]
    p32 = lateral[3]
    p16 = lateral[2] + p32.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p8 = lateral[1] + p16.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p4 = lateral[0] + p8.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p4, p8, p16, p32 = (layer(p) for layer, p in zip(pyramid.smooth, (p4, p8, p16, p32), strict=True))

    def block(level, number, x):
        convolution, norm, _ = head.fusion.branches[level][number]
        x = F.conv2d(x, convolution.weight, padding=1)
        shape = (1, -1, 1, 1)
        x = (x - norm.running_mean.reshape(shape)) / (norm.running_var.reshape(shape) + norm.eps).sqrt()
        return (x * norm.weight.reshape(shape) + norm.bias.reshape(shape)).clamp(min=0)

    def double(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    fused = block(0, 0, p4) + double(block(1, 0, p8)) + double(block(2, 1, double(block(2, 0, p16))))
    return fused + double(block(3, 2, double(block(3, 1, double(block(3, 0, p32))))))


def test_head_equals_the_papers_figures():
    torch.manual_seed(0)
    head = SemanticFPNHead((3, 4, 5, 6), 2, width=7, branch_width=8, head_norm="batch").double().eval()
    for name, value in head.state_dict().items():
        if "running" in name or (value.ndim == 1 and "num" not in name):
            value.uniform_(0.5, 1.5)
    maps = [torch.randn(2, d, n, 2 * n, dtype=torch.float64) for d, n in ((3, 16), (4, 8), (5, 4), (6, 2))]
    want = reference_head(head, maps)
    torch.testing.assert_close(head.fusion(maps), want, rtol=0, atol=1e-12)
    classified = torch.einsum("kd,bdyx->bkyx", head.classifier.weight.flatten(1), want)
    torch.testing.assert_close(head(maps), classified + head.classifier.bias.reshape(1, -1, 1, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "resnet50"])
@pytest.mark.parametrize("size", [(64, 96), (45, 71)])
def test_any_size_gives_its_own_size_and_every_parameter_learns(backbone, size):
    network = fpn(backbone=backbone)
    x = torch.randn(2, 1, *size)
    logits = network(x)
    assert logits.shape == (2, 3, *size)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    strides = [tuple(-(-n // s) for n in size) for s in (4, 8, 16, 32)]
    assert [m.shape[2:] for m in network.encoder(x)] == strides


def test_taps_name_the_deepest_map_and_the_map_before_the_classifier():
    network = fpn(deep_supervision=True).eval()
    seen = {}
    for level, name in SemanticFPN.taps.items():
        network.get_submodule(name).register_forward_hook(
            lambda module, args, out, level=level: seen.update({level: out})
        )
    (logits,) = network(torch.randn(1, 1, 64, 96))
    assert seen["encoder"][-1].shape == (1, 320, 2, 3)
    assert seen["decoder"].shape == (1, 8, 16, 24)
    torch.testing.assert_close(
        logits, F.interpolate(network.decoder.classifier(seen["decoder"]), scale_factor=4, mode="bilinear")
    )


def test_plans_describe_it_and_the_stock_deep_supervision_loss_takes_it():
    kwargs = json.loads(json.dumps({"backbone": "mobilenetv2_100", "head_norm": "instance"}))
    path = "nnunet_collab.networks.semantic_fpn.SemanticFPN"
    network = get_network_from_plans(path, kwargs, [], 2, 4, deep_supervision=True).eval()
    assert network.decoder.fusion.pyramid.smooth[0].out_channels == 256
    assert network.decoder.classifier.in_channels == 128
    x = torch.randn(1, 2, 64, 64)
    targets = [torch.zeros(1, 4, 64, 64), torch.zeros(1, 4, 32, 32)]
    loss = DeepSupervisionWrapper(torch.nn.functional.mse_loss, (0.75, 0.25))(network(x), targets)
    network.decoder.deep_supervision = False
    assert loss.item() == pytest.approx(0.75 * network(x).square().mean().item(), rel=1e-5)


def test_samples_do_not_see_each_other_in_evaluation_and_first_predictions_are_near_uniform():
    network = fpn(head_norm="instance").eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (together.softmax(1) - 1 / 3).abs().max() < 0.25


def test_half_precision_trains():
    network = fpn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(torch.randn(2, 1, 64, 64)).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("shape", [(1, 1, 8, 64, 64), (1, 2, 64, 64), (1, 64, 64)])
def test_a_wrong_input_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\); got \(" + ", ".join(map(str, shape))):
        fpn()(torch.zeros(shape))


def test_an_unknown_backbone_is_refused_with_examples():
    with pytest.raises(CollabError, match=r"found 'resnet5000'. Choose for example resnet50"):
        make_backbone("resnet5000", 1)
    with pytest.raises(CollabError, match=r"found 'xyz'. Choose for example mobilenetv2_100, resnet50"):
        make_backbone("xyz", 1)


def test_a_backbone_with_other_strides_is_refused():
    with pytest.raises(CollabError, match=r"must end with maps at strides \[4, 8, 16, 32\]; 'test_vit' has \[16"):
        make_backbone("test_vit", 1)


def test_an_unknown_norm_is_refused():
    with pytest.raises(CollabError, match="head_norm must be 'instance' or 'batch'; found 'group'"):
        fpn(head_norm="group")
