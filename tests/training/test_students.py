"""Students built from plans: taps that fit each other, parameters that all learn, first weights, and refusals."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from tiny import STRIDES_2D, STRIDES_3D, build_tiny_students, make_batch, make_trainer, shrink_segformer, unet
from torch import nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.blueprint import build_network, make_blueprint
from nnunet_collab.training.settings import CNN, TRANSFORMER, StudentSettings
from nnunet_collab.training.students import build_ensemble
from nnunet_collab.training.trainer import CollabTrainer

SEGFORMER = StudentSettings(name="Transformer", network="segformer_b0")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    shrink_segformer(monkeypatch)


@pytest.mark.parametrize(
    ("strides", "patch", "stage"),
    [
        (STRIDES_2D, (32, 32), 3),
        ([*STRIDES_2D, [2, 2], [2, 2]][:4], (32, 64), 3),
        (STRIDES_3D, (4, 32, 32), 3),
        ([[1, 1], [2, 2], [2, 2]], (32, 32), 2),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_the_unets_encoder_stage_matches_the_transformers_map(strides, patch, stage, residual):
    group = build_tiny_students(CNN, SEGFORMER, strides=strides, patch=patch, residual=residual)
    assert group["CNN"].taps == {
        "encoder": f"encoder.stages.{stage}",
        "decoder": f"decoder.stages.{len(strides) - 2}",
    }
    assert group["Transformer"].taps == {"encoder": "encoder", "decoder": "decoder.fusion"}
    outputs = group(torch.randn(2, 1, *patch))
    assert outputs["CNN"].encoder.shape[2:] == outputs["Transformer"].encoder.shape[2:]
    assert outputs["CNN"].decoder.shape[2:] == outputs["Transformer"].decoder.shape[2:] != patch  # pooled at its tap


def test_the_match_is_the_nearest_stage_not_the_deepest():
    arch = {"n_stages": 3, "features_per_stage": [4, 6, 8], "kernel_sizes": [[3, 3]] * 3, "strides": STRIDES_2D[:3]}
    arch.update({"n_conv_per_stage": [1] * 3, "n_conv_per_stage_decoder": [1] * 2})
    shallow = StudentSettings(name="Other", arch=arch, encoder_tap="encoder.stages.2")
    group = build_tiny_students(CNN, shallow)
    assert group["CNN"].taps["encoder"] == "encoder.stages.2"
    assert group(torch.randn(2, 1, 32, 32))["CNN"].encoder.shape[2:] == (8, 8)


def test_two_unets_are_compared_at_their_bottlenecks():
    group = build_tiny_students(CNN, StudentSettings(name="Two"))
    assert {s.taps["encoder"] for s in group} == {"encoder.stages.3"}


def test_the_users_taps_win():
    settings = StudentSettings(name="CNN", encoder_tap="encoder.stages.1", decoder_tap="decoder.stages.0")
    group = build_tiny_students(settings, SEGFORMER)
    assert group["CNN"].taps == {"encoder": "encoder.stages.1", "decoder": "decoder.stages.0"}


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_parameters_that_no_loss_reaches_are_frozen_and_told_all_others_learn(deep_supervision):
    log = []
    group = build_tiny_students(CNN, SEGFORMER, deep_supervision=deep_supervision, log=log)
    still = [name for name, p in group.named_parameters() if not p.requires_grad]
    heads = [0] if deep_supervision else [0, 1]  # of lower resolutions; the last is full resolution
    assert still == [f"students.CNN.network.decoder.seg_layers.{i}.{p}" for i in heads for p in ("weight", "bias")]
    assert log[1] == (
        f"student CNN: no loss reaches {len(still)} parameters, which stay as they are: "
        f"{[name.removeprefix('students.CNN.network.') for name in still]}"
    )
    assert all(p.grad is None for p in group.parameters())
    assert all(student.training for student in group)


def test_the_trial_changes_no_weight_no_statistic_and_no_random_number():
    norms = StudentSettings(name="CNN", arch={"norm_op": "torch.nn.modules.batchnorm.BatchNorm2d"})
    group = build_tiny_students(norms)
    after = torch.rand(3)
    torch.manual_seed(0)
    alone = build_network(
        unet() | {"arch_kwargs": {**unet()["arch_kwargs"], **norms.arch}}, 1, 3, deep_supervision=True
    )
    assert torch.equal(torch.rand(3), after)
    assert all(map(torch.equal, group["CNN"].network.state_dict().values(), alone.state_dict().values()))


@pytest.fixture
def strange(monkeypatch):
    """A package of networks that break the rules, by name."""

    class Base(nn.Module):
        def __init__(self, in_channels, out_channels):
            super().__init__()
            self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
            self.never_called = nn.Conv2d(1, 1, 1)
            self.flat = nn.Flatten()

        def forward(self, image):
            self.flat(image)
            return self.conv(image)

    class Half(Base):
        def forward(self, image):
            return super().forward(image)[..., ::2]

    class Dictionary(Base):
        def forward(self, image):
            return {"out": super().forward(image)}

    class Refusing(Base):
        def forward(self, image):
            raise AssertionError("only 224 x 224")

    module = types.ModuleType("strange")
    for cls in (Base, Half, Dictionary, Refusing):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "strange", module)


@pytest.mark.usefixtures("strange")
@pytest.mark.parametrize(
    ("name", "tap", "message"),
    [
        (
            "Half",
            "",
            "must return logits of shape (1, 3, 32, 32); got (1, 3, 32, 16). Choose a network that predicts at full",
        ),
        ("Dictionary", "", "must return logits of shape (1, 3, 32, 32); got dict."),
        (
            "Refusing",
            "",
            "must accept the patch of [32, 32] voxels with 1 channels; error: only 224 x 224. Set patch_size",
        ),
        ("Base", "model.nope", "a tapped layer must exist in ForeignNetwork; it has no 'model.nope'"),
        (
            "Base",
            "model.never_called",
            "tap 'model.never_called' must give a map with 4 axes (B, D, *s); got NoneType. Tap",
        ),
        (
            "Base",
            "model.flat",
            "tap 'model.flat' must give a map with 4 axes (B, D, *s); got (1, 1024). Tap another layer.",
        ),
    ],
)
@pytest.mark.parametrize("level", ["encoder", "decoder"])
def test_networks_that_do_not_fit_are_refused_by_name(name, tap, message, level):
    settings = StudentSettings(name="F", network=f"strange.{name}", **{f"{level}_tap": tap})
    with pytest.raises(CollabError) as caught:
        build_tiny_students(CNN, settings)
    assert str(caught.value).startswith("student 'F': ")
    assert message in str(caught.value)


@pytest.mark.usefixtures("strange")
def test_an_unused_branch_of_a_foreign_network_is_frozen():
    group = build_tiny_students(StudentSettings(name="F", network="strange.Base"))
    still = {name for name, p in group["F"].network.named_parameters() if not p.requires_grad}
    assert still == {"model.never_called.weight", "model.never_called.bias"}


@pytest.mark.parametrize("regions", [False, True])
def test_the_ensemble_for_prediction_takes_the_weights_of_the_trained_group(regions):
    group = build_tiny_students(CNN, SEGFORMER)
    blueprints = {s.name: make_blueprint(s.name, s.network, {}, unet(), (32, 32)) for s in (CNN, SEGFORMER)}
    ensemble = build_ensemble(blueprints, 1, 3, regions=regions)
    ensemble.load_state_dict(copy.deepcopy(group.state_dict()))
    assert ensemble.regions is regions
    assert ensemble(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    assert not any(module._forward_hooks for module in ensemble.modules())


def test_a_trainer_is_initialized_once(tmp_path, monkeypatch):
    trainer = make_trainer(CollabTrainer, tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match=r"CollabTrainer\.initialize: must be called once; it was called again"):
        trainer.initialize()


@pytest.mark.parametrize("augmentation", ["nnunet", "flips_and_rotations"])
def test_training_transforms_are_the_chosen_ones_and_free_of_timing(augmentation, tmp_path, monkeypatch):
    trainer = make_trainer(CollabTrainer, tmp_path, monkeypatch, changes={"augmentation": augmentation})
    transforms = trainer.get_training_transforms((32, 32), (-0.1, 0.1), None, (0, 1), False).transforms
    blurs = [t.transform for t in transforms if "Blur" in type(getattr(t, "transform", None)).__name__]
    assert [blur.benchmark for blur in blurs] == ([False] if augmentation == "nnunet" else [])


def test_the_same_seed_makes_the_same_students_and_another_seed_others(tmp_path, monkeypatch):
    def first(seed):
        trainer = make_trainer(CollabTrainer, tmp_path, monkeypatch, changes={"seed": seed})
        return [p.detach().clone() for p in trainer.group.parameters()] + [
            torch.tensor(trainer.train_step(make_batch(trainer))["loss"])
        ]

    one, same, other = first(0), first(0), first(1)
    assert all(map(torch.equal, one, same))
    assert not torch.equal(one[0], other[0])


def test_transformer_defaults_are_a_segformer_b2():
    assert make_blueprint("T", TRANSFORMER.network, {}, unet(), (32, 32))["arch_kwargs"]["variant"] == "b2"
