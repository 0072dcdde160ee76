"""Feature perturbation: perturbed_passes in one batch equal separate passes whose features are dropped by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import STRIDES_2D, STRIDES_3D, shrink_segformer, unet
from torch import nn

import nnunet_collab.networks.perturbation as module
from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.blueprint import build_network, make_blueprint
from nnunet_collab.networks.group import StudentGroup
from nnunet_collab.networks.perturbation import OnlyTeaching, PerturbedPass, append_perturbed_passes
from nnunet_collab.networks.student import Student

# Strides, patch.
CASES = {"2d": (STRIDES_2D, (16, 24)), "3d": (STRIDES_3D, (4, 16, 16))}
NETWORKS = ["unet", "segformer_b0"]
# Overlapping, of one sample, without any drop; every rate once, since the record of masks is by rate.
FLOWS = (
    PerturbedPass(1, 3, 0.25),
    PerturbedPass(1, 3, 0.75),
    PerturbedPass(0, 2, 0.5, "bottleneck"),
    PerturbedPass(2, 3, 0.0),
)
each_case = pytest.mark.parametrize("case", CASES)
each_network = pytest.mark.parametrize("network", NETWORKS)


def make_student(monkeypatch, network="unet", case="2d", *, deep_supervision=True):
    """In float64, and without any dropout of its own."""
    strides, patch = CASES[case]
    shrink_segformer(monkeypatch)
    torch.manual_seed(0)
    planned = unet(strides)
    if network == "unet":
        net = build_network(planned, 1, 3, deep_supervision=deep_supervision)
        student = Student("CNN", net, {"encoder": "encoder.stages.3", "decoder": "decoder.stages.2"})
    else:
        net = build_network(make_blueprint("T", network, {}, planned, patch), 1, 3, deep_supervision=deep_supervision)
        student = Student("T", net, dict(net.taps)).eval()
    return student.double()


def image_of(case="2d", count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((count, 1, *CASES[case][1]), generator=generator, dtype=torch.float64)


class Recorder:
    """Dropout of whole channels that keeps its masks, by rate, finest features first."""

    def __init__(self, monkeypatch):
        self.masks = {}
        self.real = {4: F.dropout2d, 5: F.dropout3d}
        monkeypatch.setattr(module.F, "dropout2d", self.drop_for(4))
        monkeypatch.setattr(module.F, "dropout3d", self.drop_for(5))

    def drop_for(self, ndim):
        def drop(feature, p, training):
            if not training:  # a layer of the network in evaluation mode
                return feature
            assert feature.ndim == ndim
            mask = self.real[ndim](torch.ones_like(feature), p, training=True)
            self.masks.setdefault(p, []).append(mask)
            return feature * mask

        return drop


def separate_pass(student, image, perturbed_pass, masks):
    """The network on the perturbed_pass's samples alone, its features multiplied by the recorded masks."""

    def multiply(layer, args, features):
        untouched = features[:-1] if perturbed_pass.at == "bottleneck" else []
        return [
            *untouched,
            *(f * m for f, m in zip(features[len(untouched) :], masks[perturbed_pass.rate], strict=True)),
        ]

    handle = student.network.encoder.register_forward_hook(multiply)
    try:
        return student(image[perturbed_pass.start : perturbed_pass.stop])
    finally:
        handle.remove()


def weighted_sum(tensors):
    """One number that depends on every element in its own way."""
    return sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t).cos()).sum() for t in tensors)


@each_case
@each_network
def test_flows_in_one_batch_equal_separate_passes_and_so_do_their_gradients(network, case, monkeypatch):
    student, image = make_student(monkeypatch, network, case), image_of(case)
    recorder = Recorder(monkeypatch)
    output = student(image, FLOWS)
    masks = recorder.masks
    assert set(masks) == {perturbed_pass.rate for perturbed_pass in FLOWS}
    clean, perturbed_passes = (
        student(image),
        [separate_pass(student, image, perturbed_pass, masks) for perturbed_pass in FLOWS],
    )
    together = [(o.logits, o.decoder, *o.auxiliary) for o in (clean, *perturbed_passes)]
    wanted = [torch.cat(parts) for parts in zip(*together, strict=True)]
    found = (output.logits, output.decoder, *output.auxiliary)
    assert len(output.logits) == 3 + 2 + 2 + 2 + 1
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(output.encoder, clean.encoder)  # one encoder pass, which is never perturbed
    assert bool(output.auxiliary) == (network == "unet")
    parameters = list(student.parameters())
    pairs = [torch.autograd.grad(weighted_sum(t), parameters, allow_unused=True) for t in (found, wanted)]
    assert any(g is not None and g.any() for g in pairs[0])
    for got, want in zip(*pairs, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


@each_network
def test_a_flow_changes_what_it_promises_to_and_teaches_the_encoder(network, monkeypatch):
    student, image = make_student(monkeypatch, network, deep_supervision=False), image_of()
    torch.manual_seed(5)
    output = student(image, FLOWS)
    clean, weak, strong, deepest, none = torch.split(output.logits, [3, 2, 2, 2, 1])
    torch.testing.assert_close(none, clean[2:])  # rate 0
    for perturbed_pass, samples in ((weak, clean[1:]), (strong, clean[1:]), (deepest, clean[:2])):
        assert (perturbed_pass - samples).flatten(1).abs().amax(1).gt(1e-6).all()
    strong.square().sum().backward()
    gradients = {name: p.grad for name, p in student.network.encoder.named_parameters()}
    assert gradients
    assert any(g is not None and g.any() for g in gradients.values())


@pytest.mark.parametrize("size", [(3, 5), (2, 3, 5)], ids=["2d", "3d"])
@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_whole_channels_are_dropped_and_the_others_scaled(size, rate):
    torch.manual_seed(0)
    features = torch.rand(4, 500, *size) + 1
    (found,) = append_perturbed_passes([features], [PerturbedPass(1, 4, rate), PerturbedPass(1, 4, rate)])
    assert torch.equal(found[:4], features)
    perturbed_passes = (found[4:] / features[1:4].repeat(2, *[1] * (len(size) + 1))).flatten(
        2
    )  # what each voxel was multiplied by
    torch.testing.assert_close(perturbed_passes, perturbed_passes[..., :1].expand_as(perturbed_passes))
    factors = perturbed_passes[..., 0]
    dropped = factors == 0
    torch.testing.assert_close(factors[~dropped], torch.full_like(factors[~dropped], 1 / (1 - rate)))
    assert (dropped.float().mean(1) - rate).abs().max() < 0.08  # of each sample
    assert len(dropped.unique(dim=0)) == 6  # every sample and perturbed_pass for itself


def test_bottleneck_leaves_all_but_the_deepest_map_alone():
    torch.manual_seed(0)
    features = (torch.rand(2, 30, 8, 8) + 1, torch.rand(2, 40, 4, 4) + 1, torch.rand(2, 50, 2, 2) + 1)
    found = append_perturbed_passes(features, [PerturbedPass(0, 2, 0.5, "bottleneck")])
    assert isinstance(found, tuple)
    assert all(torch.equal(f[2:], feature) for f, feature in zip(found[:2], features[:2], strict=True))
    assert (found[2][2:] == 0).any()
    assert all((f[2:] == 0).any() for f in append_perturbed_passes(list(features), [PerturbedPass(0, 2, 0.5)]))


@pytest.mark.parametrize("where", ["all", "bottleneck"])
def test_an_encoder_with_a_single_map_is_perturbed_there(where):
    torch.manual_seed(0)
    found = append_perturbed_passes(torch.ones(2, 50, 4, 4), [PerturbedPass(1, 2, 0.5, where)])
    assert found.shape == (3, 50, 4, 4)
    assert set(found[2].unique().tolist()) == {0.0, 2.0}


def test_the_global_seed_reproduces_the_drops(monkeypatch):
    student, image = make_student(monkeypatch), image_of()
    torch.manual_seed(3)
    first, second = student(image, FLOWS).logits, student(image, FLOWS).logits
    torch.manual_seed(3)
    assert torch.equal(student(image, FLOWS).logits, first)
    assert not torch.equal(first, second)


@each_network
def test_without_flows_nothing_is_ever_dropped(network, monkeypatch):
    student, image = make_student(monkeypatch, network), image_of()
    student.eval()
    before = student(image)
    with pytest.raises(ValueError, match="dropout probability"):
        student(image, [PerturbedPass(0, 1, 1.5)])  # also a pass that fails leaves no perturbed_pass behind
    perturbed = student(image, FLOWS)  # said explicitly, so in evaluation mode as well
    assert not torch.equal(perturbed.logits[3:5], before.logits[1:])
    state = torch.get_rng_state()
    for again in (student(image), student(image, [])):
        assert torch.equal(again.logits, before.logits)
        assert all(map(torch.equal, again.auxiliary, before.auxiliary))
    alone = student.network(image)
    assert torch.equal(alone[0] if isinstance(alone, (list, tuple)) else alone, before.logits)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn


def test_all_students_of_a_group_take_the_same_flows_and_a_copy_its_own(monkeypatch):
    one, image = make_student(monkeypatch), image_of()
    two = copy.deepcopy(one)
    two.name = "copy"
    outputs = StudentGroup([one, two])(image, [PerturbedPass(0, 2, 0.5)])
    assert [len(o.logits) for o in outputs.values()] == [5, 5]
    assert torch.equal(outputs["CNN"].logits[:3], outputs["copy"].logits[:3])
    assert not torch.equal(outputs["CNN"].logits[3:], outputs["copy"].logits[3:])
    sizes = []
    handle = one.network.encoder.register_forward_hook(lambda *args: sizes.append(len(two(image).logits)))
    assert len(one(image, [PerturbedPass(0, 2, 0.5)]).logits) == 5
    handle.remove()
    assert sizes == [3]  # while the one perturbs, its copy does not


def test_a_network_without_an_encoder_is_refused_when_flows_are_asked_for():
    student = Student("CNN", nn.Conv2d(1, 3, 1).double(), {})
    assert student(image_of()).logits.shape == (3, 3, 16, 24)
    with pytest.raises(CollabError) as caught:
        student(image_of(), [PerturbedPass(0, 1, 0.5)])
    message = str(caught.value)
    assert "student 'CNN': features are perturbed between the encoder and the decoder" in message
    assert "needs a submodule called 'encoder'; Conv2d has none. Use the planned UNet" in message


@pytest.mark.parametrize("decoded", [True, False])
@pytest.mark.parametrize("network", [*NETWORKS, "batch norm"])
@each_case
def test_samples_that_only_teach_are_left_out_and_change_no_other_and_no_gradient(case, network, decoded, monkeypatch):
    student, image = make_student(monkeypatch, network.replace("batch norm", "unet"), case), image_of(case)
    if network == "batch norm":
        norm = torch.nn.BatchNorm2d if case == "2d" else torch.nn.BatchNorm3d
        student.network.decoder.stages[0].convs[0].norm = norm(8).double()
    found = []
    for only in (None, OnlyTeaching(1, 2, decoded)):
        torch.manual_seed(5)
        found.append(student(image, FLOWS, only))
    whole, output = found
    assert whole.teaching is None
    others = [0, *range(2, len(whole.logits))]
    for got, want in zip(
        (output.logits, output.decoder, *output.auxiliary), (whole.logits, whole.decoder, *whole.auxiliary), strict=True
    ):
        torch.testing.assert_close(got, want[others], rtol=1e-9, atol=1e-10)
    if decoded:
        torch.testing.assert_close(output.teaching, whole.logits[1:2], rtol=1e-9, atol=1e-10)
        assert not output.teaching.requires_grad
    else:
        assert output.teaching is None
    parameters = [p for p in student.parameters() if p.requires_grad]
    pairs = [
        torch.autograd.grad(weighted_sum(t), parameters, allow_unused=True)
        for t in ((output.logits, *output.auxiliary), (whole.logits[others], *(a[others] for a in whole.auxiliary)))
    ]
    for got, want in zip(*pairs, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("decoded", [True, False])
def test_what_only_teaches_is_decoded_without_gradient_or_not_at_all(decoded, monkeypatch):
    student, image = make_student(monkeypatch, deep_supervision=False), image_of()
    sizes = []
    student.network.decoder.register_forward_pre_hook(
        lambda _, args: sizes.append((len(args[0][0]), torch.is_grad_enabled()))
    )
    student(image, FLOWS[:1], OnlyTeaching(0, 1, decoded))
    assert sizes == [*[(1, False)] * decoded, (2 + 2, True)]
