"""Networks of other packages as students, shown on three of MONAI's, in one CTRCL step with a planned CNN."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from tiny import make_batch, make_plans, make_trainer, unet
from torch import nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.methods.ctrcl import CTRCLTrainer
from nnunet_collab.networks.blueprint import build_network, make_blueprint
from nnunet_collab.networks.foreign import ForeignNetwork

NETS = "monai.networks.nets"
# Settings of the student, and the sizes of its maps on a patch of 64 x 64.
STUDENTS = {
    "BasicUNet": (
        {
            "network": f"{NETS}.BasicUNet",
            "arch": {"spatial_dims": "$dims", "features": [4, 4, 8, 8, 8, 4]},
            "encoder_tap": "model.down_4",
            "decoder_tap": "model.upcat_1",
        },
        {"encoder": (8, 4, 4), "decoder": (4, 64, 64)},
    ),
    "SegResNet": (
        {
            "network": f"{NETS}.SegResNet",
            "arch": {"spatial_dims": "$dims", "init_filters": 8},
            "encoder_tap": "model.down_layers.3",
            "decoder_tap": "model.up_layers.2",
        },
        {"encoder": (64, 8, 8), "decoder": (8, 64, 64)},
    ),
    "SwinUNETR": (
        {
            "network": f"{NETS}.SwinUNETR",
            "arch": {"spatial_dims": "$dims", "feature_size": 12, "depths": [1, 1, 1, 1]},
            "encoder_tap": "model.encoder10",
            "decoder_tap": "model.decoder1",
            "optimizer": "adamw",
            "lr": 1e-3,
        },
        {"encoder": (192, 2, 2), "decoder": (12, 64, 64)},
    ),
}


def foreign_trainer(student, tmp_path, monkeypatch, patch=(64, 64), **changes):
    plans = make_plans()
    plans["configurations"]["2d"]["patch_size"] = list(patch)
    students = [{"name": "CNN"}, {"name": "Foreign", **student}]
    return make_trainer(CTRCLTrainer, tmp_path, monkeypatch, plans=plans, changes={"students": students, **changes})


@pytest.mark.parametrize("name", STUDENTS)
def test_one_step_together_with_the_planned_cnn_moves_every_parameter(name, tmp_path, monkeypatch):
    settings, maps = STUDENTS[name]
    trainer = foreign_trainer(settings, tmp_path, monkeypatch)
    batch = make_batch(trainer)
    output = trainer.group["Foreign"](batch["data"])
    assert {level: tuple(getattr(output, level).shape[1:]) for level in maps} == maps
    if name == "SwinUNETR":  # its map has 2 x 2 cells, so the UNet's deepest, of 8 x 8, is the nearest
        assert trainer.group["CNN"].taps["encoder"] == "encoder.stages.3"

    before = {key: p.detach().clone() for key, p in trainer.group.named_parameters() if p.requires_grad}
    result = trainer.train_step(batch)
    assert len(result["terms"]) == 8
    assert all(torch.isfinite(torch.tensor(value)) for value in result["terms"].values())
    without = [key for key, p in trainer.group.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    moved = {key for key, p in trainer.group.named_parameters() if key in before and not torch.equal(p, before[key])}
    biases_before_a_norm = {key for key in before if key.endswith("bias")}  # their gradient is 0
    assert set(before) - moved <= biases_before_a_norm


def test_a_patch_that_the_network_refuses_is_named(tmp_path, monkeypatch):
    with pytest.raises(CollabError) as caught:
        foreign_trainer(STUDENTS["SwinUNETR"][0], tmp_path, monkeypatch, patch=(40, 40))
    message = str(caught.value)
    assert message.startswith("student 'Foreign': its network must accept the patch of [40, 40] voxels with 1 channels")
    assert "must be divisible by 2**5" in message
    assert "Set patch_size to a size it accepts, or change the network" in message


def test_without_taps_the_feature_loss_is_refused_before_training(tmp_path, monkeypatch):
    student = {**STUDENTS["BasicUNet"][0], "decoder_tap": ""}
    with pytest.raises(CollabError) as caught:
        foreign_trainer(student, tmp_path, monkeypatch)
    assert str(caught.value).startswith(
        "student 'Foreign': gamma_decoder is 2.0, so the decoder's feature map is needed"
    )
    assert "Name one as 'decoder_tap' in the student's settings, or set gamma_decoder to 0." in str(caught.value)
    trainer = foreign_trainer(student, tmp_path, monkeypatch, gamma_decoder=0.0)
    assert "Foreign/cfcl_decoder" not in trainer.train_step(make_batch(trainer))["terms"]


def build(path, **kwargs):
    entry = make_blueprint("S", path, kwargs, unet(), (32, 32))
    return build_network(entry, 2, 3, deep_supervision=False)


@pytest.fixture
def package(monkeypatch):
    """A package `strange` with networks of many manners."""

    class Channels(nn.Conv2d):
        def __init__(self, n_channels, n_classes, size=1):
            super().__init__(n_channels, n_classes, size)

    class Several(Channels):
        def forward(self, image):
            return [super().forward(image), "more"]

    class Nameless(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()

    class Failing(nn.Module):
        def __init__(self, in_channels, out_channels, kind="key"):
            raise {"key": KeyError("width"), "bare": AssertionError()}[kind]

    module = types.ModuleType("strange")
    for cls in (Channels, Several, Nameless, Failing):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "strange", module)


@pytest.mark.usefixtures("package")
def test_other_names_for_the_channels_are_known_and_of_several_outputs_the_first_is_taken():
    image = torch.randn(1, 2, 8, 8)
    network = build("strange.Channels", size=1)
    assert torch.equal(network(image), network.model(image))
    assert network(image).shape == (1, 3, 8, 8)
    assert build("strange.Several")(image).shape == (1, 3, 8, 8)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("path", "kwargs", "message"),
    [
        ("strange.Nope", {}, "network strange.Nope: there is no such class. Check the dotted path"),
        ("json.decoder", {}, "network json.decoder: there is no such class"),  # a module
        ("strange.Channels", {"widht": 1}, "must accept ['n_channels', 'n_classes', 'widht']; error: "),
        ("strange.Channels", {"widht": 1}, "Its parameters are n_channels, n_classes, size; set them under 'arch'"),
        ("strange.Channels", {"n_channels": 1}, "multiple values for keyword argument 'n_channels'"),
        ("strange.Channels", {"size": -1}, "must accept ['n_channels', 'n_classes', 'size']; error: "),
        ("strange.Failing", {}, "error: 'width'. Its parameters"),
        ("strange.Failing", {"kind": "bare"}, "error: AssertionError. Its parameters"),
        (
            "strange.Nameless",
            {},
            "must have a parameter called one of input_channels, in_channels, in_chans, n_channels",
        ),
        ("strange.Nameless", {}, "it has inputs, outputs. Wrap the class in your own class that has such parameters."),
    ],
)
def test_classes_that_cannot_be_built_are_refused_with_their_parameters(path, kwargs, message):
    with pytest.raises(CollabError) as caught:
        build(path, **kwargs)
    assert message in str(caught.value)


def test_an_import_that_fails_inside_the_package_is_told(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CollabError, match=r"half_installed\.Net: importing it failed: .*no_such_dependency.*Fix that"):
        build("half_installed.Net")


def test_predicting_where_the_package_is_missing_is_told_by_name():
    with pytest.raises(CollabError, match=r"no_such_package\.Net: there is no such class.*and that it is installed"):
        ForeignNetwork(1, 2, path="no_such_package.Net", kwargs={})
