"""Primus as a student: nnU-Net's own network, with maps to learn from, published for nnU-Net's own trainer."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.primus import primus_trainers
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from start_sources import PATCH_3D, TINY_PRIMUS
from tiny import STRIDES_2D, STRIDES_3D, build_tiny_students, make_plans, unet

from nnunet_collab.core.errors import CollabError
from nnunet_collab.inference.stock_trainers import stock_trainer, trainer_class
from nnunet_collab.networks.blueprint import build_network, make_blueprint
from nnunet_collab.networks.perturbation import PerturbedPass
from nnunet_collab.networks.primus_entry import PRIMUS, STOCK, is_primus
from nnunet_collab.training.settings import CNN, StudentSettings

SMALL = StudentSettings(name="Transformer", network="primus_s", arch=TINY_PRIMUS)
PATCH = (8, 32, 32)


@pytest.mark.parametrize("name", PRIMUS)
def test_the_keywords_are_those_of_nnunets_trainers(name, monkeypatch):
    entry = make_blueprint("S", name, {"drop_path_rate": 0.1}, unet(STRIDES_3D), PATCH)
    assert entry["network_class_name"] == STOCK
    assert entry["arch_kwargs"].pop("drop_path_rate") == 0.1
    trainer = trainer_class(stock_trainer(entry))
    assert trainer.__name__ == f"nnUNet_Primus_{name[-1].upper()}_Trainer"
    signature, built = inspect.signature(primus_trainers.Primus.__init__), []
    monkeypatch.setattr(
        primus_trainers, "Primus", lambda *args, **kwargs: built.append(signature.bind(None, *args, **kwargs))
    )
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = list(PATCH)
    manager = PlansManager(plans)
    trainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3, False)
    arguments = dict(built[0].arguments)
    assert [arguments.pop(key) for key in ("self", "input_channels", "num_classes", "drop_path_rate")] == [
        None,
        1,
        3,
        0.2,
    ]
    assert json.loads(json.dumps(arguments)) == entry["arch_kwargs"]


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (
            (32, 32),
            "student 'S': primus_b is a 3D network; got a patch of [32, 32]. Train the 3d_fullres configuration",
        ),
        ((12, 32, 36), "a multiple of that along every axis; got [12, 32, 36]. Set patch_size to [8, 32, 32], for"),
        ((4, 32, 32), "cuts the patch into parts of [8, 8, 8] voxels, so its size"),
    ],
)
def test_patches_that_cannot_be_cut_are_refused_with_the_reason(patch, words):
    with pytest.raises(CollabError) as caught:
        make_blueprint("S", "primus_b", {}, unet(STRIDES_2D if len(patch) == 2 else STRIDES_3D), patch)
    assert words in str(caught.value)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_beside_a_unet_it_has_maps_and_every_parameter_learns(deep_supervision):
    log = []
    group = build_tiny_students(CNN, SMALL, strides=STRIDES_3D, patch=PATCH, deep_supervision=deep_supervision, log=log)
    student = group.train()["Transformer"]
    assert is_primus(student.network)
    assert not is_primus(group["CNN"].network)
    assert student.taps == {"encoder": "up_projection:input", "decoder": "up_projection.decode.1"}
    outputs = group(torch.randn(2, 1, *PATCH))
    output = outputs["Transformer"]
    assert (output.logits.shape, output.auxiliary) == ((2, 3, *PATCH), ())
    assert output.encoder.shape == (2, 24, 1, 4, 4)  # patches of 8 voxels
    assert output.encoder.shape[2:] == outputs["CNN"].encoder.shape[2:]
    assert output.decoder.shape[2:] == outputs["CNN"].decoder.shape[2:] == (4, 16, 16)
    (output.logits.sum() + output.encoder.square().sum() + output.decoder.square().sum()).backward()
    assert all(p.grad is not None for p in student.network.parameters())
    assert not [line for line in log if "Transformer: no loss reaches" in line]


def test_its_encoders_map_is_what_the_decoder_gets():
    student = build_tiny_students(SMALL, strides=STRIDES_3D, patch=PATCH)["Transformer"].eval()
    with torch.no_grad():
        output = student(torch.randn(1, 1, *PATCH))
        assert torch.equal(student.network.up_projection(output.encoder), output.logits)


def test_perturbed_passes_equal_passes_of_their_own():
    student = build_tiny_students(SMALL, strides=STRIDES_3D, patch=PATCH)["Transformer"].eval()
    image = torch.randn(2, 1, *PATCH)
    with torch.no_grad():
        clean = student(image)
        output = student(image, [PerturbedPass(1, 2, 0.0), PerturbedPass(0, 2, 0.5)])
        assert output.logits.shape[0] == 5
        assert output.encoder.shape[0] == 2
        torch.testing.assert_close(output.logits[:3], clean.logits[[0, 1, 1]])
        torch.manual_seed(3)
        dropped = student(image, [PerturbedPass(0, 2, 0.5)]).logits[2:]
        torch.manual_seed(3)
        mask = torch.nn.functional.dropout3d(torch.ones(2, 24, 1, 1, 1), 0.5, training=True)
        torch.testing.assert_close(dropped, student.network.up_projection(clean.encoder * mask))


def test_a_copy_has_maps_of_its_own():
    student = build_tiny_students(SMALL, strides=STRIDES_3D, patch=PATCH)["Transformer"].eval()
    copied = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        image = torch.randn(1, 1, *PATCH)
        assert not copied(image).encoder.any()
        assert student(image).encoder.any()


def test_other_keywords_are_built_by_a_class_of_this_package():
    entry = json.loads(json.dumps(make_blueprint("S", "primus_s", TINY_PRIMUS, unet(STRIDES_3D), PATCH_3D)))
    assert entry["network_class_name"] == "nnunet_collab.networks.primus.Primus"
    assert stock_trainer(entry) == "nnUNetTrainer"
    network = build_network(entry, 2, 5, deep_supervision=True)
    assert network(torch.zeros(1, 2, *PATCH_3D)).shape == (1, 5, *PATCH_3D)
    wrong = make_blueprint("S", "primus_s", {"embed_dims": 3}, unet(STRIDES_3D), PATCH)
    with pytest.raises(CollabError, match="unexpected keyword argument 'embed_dims'"):
        build_network(wrong, 1, 3, deep_supervision=False)
