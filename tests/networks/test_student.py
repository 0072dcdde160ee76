"""A student hands over what its network computes inside, and otherwise leaves the network alone."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from timm.layers import DropPath
from tiny import FEATURES, STRIDES_2D, STRIDES_3D, shrink_segformer, unet
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.pooling import average_pool
from nnunet_collab.networks.blueprint import build_network, make_blueprint
from nnunet_collab.networks.student import Student

# Plans' strides, patch, and per encoder stage the size of its map, worked out by hand.
CASES = {
    "2d": (STRIDES_2D, (32, 48), [(32, 48), (16, 24), (8, 12), (4, 6)]),
    "3d thick slices": (STRIDES_3D, (4, 16, 24), [(4, 16, 24), (4, 8, 12), (2, 4, 6), (2, 2, 3)]),
}
DECODER = "decoder.stages.2"


def make_network(strides=STRIDES_2D, *, residual=False, deep_supervision=False):
    torch.manual_seed(0)
    return build_network(unet(strides, residual=residual), 1, 3, deep_supervision=deep_supervision)


def make_student(stage=3, frozen=False, **options):
    taps = {"encoder": f"encoder.stages.{stage}", "decoder": DECODER}
    return Student("CNN", make_network(**options), taps, frozen=frozen)


def kept_by(student):
    return student._encoder_map, student._decoder_map


def image_of(size=(32, 32), requires_grad=False):
    return torch.randn((2, 1, *size), generator=torch.Generator().manual_seed(1)).requires_grad_(requires_grad)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("case", CASES)
def test_taps_of_a_planned_unet_have_the_promised_sizes(case, residual):
    strides, patch, sizes = CASES[case]
    for stage, size in enumerate(sizes):
        student = make_student(stage, strides=strides, residual=residual)
        output = student(image_of(patch))
        assert output.logits.shape == (2, 3, *patch)
        assert output.encoder.shape == (2, FEATURES[stage], *size)
        assert output.decoder.shape == (2, FEATURES[0], *patch)
        assert output.auxiliary == ()


def test_features_are_what_the_network_computes_on_the_way_to_its_logits():
    student, image = make_student(stage=2), image_of()
    output = student(image)
    assert torch.equal(output.encoder, student.network.encoder(image)[2])
    assert torch.equal(output.logits, student.network.decoder.seg_layers[-1](output.decoder))
    (output.encoder.square().sum() + output.decoder.square().sum()).backward()
    reached = {name for name, p in student.network.named_parameters() if p.grad is not None}
    assert "encoder.stages.0.0.convs.0.conv.weight" in reached
    assert not [name for name in reached if "seg_layers" in name]


def test_of_a_layer_that_returns_a_list_the_last_map_is_taken(monkeypatch):
    shrink_segformer(monkeypatch)
    entry = make_blueprint("T", "segformer_b0", {}, unet(), (32, 32))
    network = build_network(entry, 1, 3, deep_supervision=True)
    student = Student("T", network, dict(network.taps)).eval()
    output = student(image_of())
    maps = network.encoder(image_of())
    assert torch.equal(output.encoder, maps[-1])
    assert output.logits.shape == (2, 3, 32, 32)
    assert output.auxiliary == ()  # a list of one entry


def test_deep_supervision_gives_the_other_resolutions_and_can_be_switched():
    student = make_student(deep_supervision=True)
    assert [tuple(a.shape[2:]) for a in student(image_of()).auxiliary] == [(16, 16), (8, 8)]
    student.set_deep_supervision(False)
    assert student(image_of()).auxiliary == ()
    student.set_deep_supervision(True)
    assert len(student(image_of()).auxiliary) == 2
    Student("conv", nn.Conv2d(1, 3, 1), {}).set_deep_supervision(True)  # has none, and that is no error


def test_no_taps_no_features():
    output = Student("conv", nn.Conv2d(1, 3, 1), {})(image_of())
    assert (output.encoder, output.decoder) == (None, None)


def test_the_network_keeps_its_names_and_its_function():
    student, alone = make_student(deep_supervision=True), make_network(deep_supervision=True)
    assert list(student.network.state_dict()) == list(alone.state_dict())
    assert {k.removeprefix("network.") for k in student.state_dict()} == set(alone.state_dict())
    assert all(map(torch.equal, student.network(image_of()), alone(image_of())))


def test_a_direct_call_of_the_network_records_nothing():
    student = make_student()
    with torch.no_grad():
        student.network(image_of())
    assert kept_by(student) == (None, None)
    tapped = student(image_of()).encoder
    student.network(2 * image_of())
    assert kept_by(student) == (None, None)
    assert torch.equal(student(image_of()).encoder, tapped)


def test_no_tensor_is_kept_alive():
    student = make_student()
    output = student(image_of())
    kept = [weakref.ref(t) for t in (output.logits, output.encoder, output.decoder)]
    del output
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


def test_a_forward_that_fails_leaves_nothing_behind():
    student = make_student()
    with pytest.raises(RuntimeError):
        student(image_of((30, 30)))  # the skip connections do not fit, after all encoder stages
    assert kept_by(student) == (None, None)
    student.network(image_of())
    assert kept_by(student) == (None, None)


def test_taps_can_be_removed():
    student = make_student()
    student.release()
    assert student(image_of()).encoder is None
    assert not any(module._forward_hooks for module in student.network.modules())


def test_a_copy_records_for_itself():
    student = make_student()
    other = copy.deepcopy(student)
    with torch.no_grad():
        next(other.network.parameters()).add_(1.0)
    want = other.network.encoder(image_of())[3]
    output = other(image_of())
    assert torch.equal(output.encoder, want)
    assert kept_by(student) == kept_by(other) == (None, None)


def test_a_frozen_student_stays_in_evaluation_mode_and_has_no_gradient():
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    student = Student("teacher", network, {"encoder": "0"}, frozen=True)
    before = copy.deepcopy(student.state_dict())
    nn.ModuleList([student]).train()
    assert not any(module.training for module in student.modules())
    image = image_of(requires_grad=True)
    first, second = student(image), student(image)
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad
    assert not first.encoder.requires_grad
    assert not any(p.requires_grad for p in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_student_that_learns_switches_its_mode_and_obeys_no_grad():
    student = make_student()
    assert student.train().training
    assert not student.eval().training
    with torch.no_grad():
        assert not student(image_of()).logits.requires_grad
    assert student(image_of()).logits.requires_grad


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(CollabError) as caught:
        Student("CNN", make_network(), {"encoder": "encoder.stages.9"})
    message = str(caught.value)
    assert "student 'CNN': a tapped layer must exist in PlainConvUNet; it has no 'encoder.stages.9'" in message
    assert "Its outer layers are: encoder, encoder.stages, decoder, decoder." in message


def make_compilable(kind, monkeypatch):
    if kind == "unet":
        return make_student(stage=2, deep_supervision=True)
    shrink_segformer(monkeypatch)
    torch.manual_seed(0)
    network = build_network(make_blueprint("T", "segformer_b0", {}, unet(), (32, 32)), 1, 3, deep_supervision=True)
    return Student("T", network, dict(network.taps)).eval()  # no dropout, so that both ways agree


@pytest.mark.parametrize("kind", ["unet", "segformer"])
def test_it_is_captured_as_one_graph_with_its_taps(kind, monkeypatch):
    torch.compiler.reset()
    student = make_compilable(kind, monkeypatch)
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(student, backend=graphs, fullgraph=True)
    for _ in range(10):  # more often than dynamo would recompile before it gave up
        output = compiled(image_of())
    gradients = torch.autograd.grad(output.encoder.square().sum() + output.logits.sum(), list(used_by(student)))
    assert graphs.frame_count == 1
    eager = student(image_of())
    want = torch.autograd.grad(eager.encoder.square().sum() + eager.logits.sum(), list(used_by(student)))
    for got, expected in zip((*output[:3], *output.auxiliary), (*eager[:3], *eager.auxiliary), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for got, expected in zip(gradients, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert kept_by(student) == (None, None)
    assert not student._recording


def used_by(student):
    """Parameters that full-resolution logits depend on."""
    return (p for name, p in student.named_parameters() if "seg_layers.0" not in name and "seg_layers.1" not in name)


@pytest.mark.parametrize(
    ("strides", "patch", "size"), [(STRIDES_2D, (32, 32), (8, 8)), (STRIDES_3D, (4, 32, 32), (2, 5, 8))]
)
def test_a_pooled_tap_gives_the_mean_of_the_cells_and_passes_the_gradient_through(strides, patch, size):
    torch.manual_seed(0)
    network = build_network(make_blueprint("S", "plans", {}, unet(strides), patch), 1, 3, deep_supervision=False)
    tap = {"decoder": f"decoder.stages.{len(strides) - 2}"}
    image = torch.randn(2, 1, *patch)
    whole = Student("S", network, tap)
    full = whole(image).decoder
    want = torch.autograd.grad(average_pool(full, size).square().sum(), list(network.parameters()), allow_unused=True)
    whole.release()
    student = Student("S", network, tap)
    student.pool_tap("decoder", size)
    pooled = student(image).decoder
    assert torch.equal(pooled, average_pool(full, size))
    got = torch.autograd.grad(pooled.square().sum(), list(network.parameters()), allow_unused=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("mode", [True, False])
def test_a_probe_changes_nothing(mode):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    student = Student("CNN", network, {"decoder": "1"}).train(mode)
    before = copy.deepcopy(student.state_dict())
    assert student.probe(image_of()).decoder.shape == (2, 3, 30, 30)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert {module.training for module in student.modules()} == {mode}


def test_dropout_is_seen_wherever_it_is(monkeypatch):
    assert not make_student().has_dropout
    for layer, want in (
        (nn.Dropout2d(0.1), True),
        (nn.Dropout(0.0), False),
        (DropPath(0.2), True),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
    ):
        assert Student("X", nn.Sequential(nn.Conv2d(1, 3, 3), layer), {}).has_dropout is want
    shrink_segformer(monkeypatch)
    for rates, want in (({}, True), ({"drop_path": 0.0, "head_dropout": 0.0}, False)):
        blueprint = make_blueprint("T", "segformer_b0", rates, unet(STRIDES_2D), (32, 32))
        network = build_network(blueprint, 1, 3, deep_supervision=False)
        assert Student("T", network, {}).has_dropout is want
