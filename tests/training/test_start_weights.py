"""Weights to start from: a published teacher's, ImageNet's, or random ones with a loud warning."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny import build_tiny_students, shrink_segformer, unet

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.blueprint import build_network
from nnunet_collab.networks.pretrained import PretrainedUnavailable
from nnunet_collab.training import starting as starting_module
from nnunet_collab.training.settings import StudentSettings

SEGFORMER = StudentSettings(name="Transformer", network="segformer_b0")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    shrink_segformer(monkeypatch)


@pytest.fixture
def published(tmp_path):
    """A fold folder of a model whose network is the planned UNet."""
    torch.manual_seed(7)
    network = build_network(unet(), 1, 3, deep_supervision=False)
    torch.save(
        {"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer"}, tmp_path / "checkpoint_final.pth"
    )
    return tmp_path, network


@pytest.mark.parametrize("whole_folder", [True, False])
def test_a_frozen_student_has_the_published_weights_and_only_teaches(published, whole_folder):
    folder, network = published
    path = folder if whole_folder else folder / "checkpoint_final.pth"
    log = []
    group = build_tiny_students(StudentSettings(name="CNN", frozen=str(path)), SEGFORMER, log=log)
    teacher = group.train()["CNN"]
    assert all(map(torch.equal, teacher.network.state_dict().values(), network.state_dict().values()))
    assert teacher.origin == f"frozen, from {path}"
    assert f"student CNN: frozen, from {path}" in log
    output = teacher(torch.randn(2, 1, 32, 32))
    assert (output.logits.requires_grad, output.encoder.requires_grad, teacher.training) == (False, False, False)
    assert output.auxiliary == ()


class _Stranger:
    """Something that a file may hold and that cannot be found again."""


@pytest.mark.parametrize("content", ["missing", "text", "other network", "no weights", "a list", "a foreign class"])
def test_a_model_that_cannot_teach_is_refused(published, content, monkeypatch):
    folder, network = published
    path = folder / "checkpoint_final.pth"
    weights = dict(list(network.state_dict().items())[1:])
    if content == "missing":
        path.unlink()
    elif content == "text":
        path.write_text("not a checkpoint")
    elif content == "a foreign class":
        torch.save(_Stranger(), path)
        monkeypatch.delattr(sys.modules[__name__], "_Stranger")
    else:
        torch.save({"other network": {"network_weights": weights}, "no weights": {}, "a list": [1]}[content], path)
    with pytest.raises(CollabError) as caught:
        build_tiny_students(StudentSettings(name="CNN", frozen=str(folder)), SEGFORMER)
    assert "student 'CNN': setting 'frozen' must name the fold folder of a model with the same network" in str(
        caught.value
    )
    assert f"loading {path} failed: " in str(caught.value)


def unavailable(_):
    raise PretrainedUnavailable("no way to the hub.")


@pytest.mark.parametrize("required", ["", "0", "1", "True"])
def test_imagenet_weights_are_recorded_missed_loudly_or_demanded(required, monkeypatch):
    settings = StudentSettings(name="Transformer", network="segformer_b0", pretrained=True)
    monkeypatch.setenv("nnUNet_collab_require_pretrained", required)
    monkeypatch.setattr(starting_module, "load_imagenet_weights", lambda *_: "hub/mit-b0")
    assert build_tiny_students(settings)["Transformer"].origin == "hub/mit-b0"
    monkeypatch.setattr(starting_module, "load_imagenet_weights", unavailable)
    if required in ("1", "True"):
        with pytest.raises(CollabError, match="no way to the hub"):
            build_tiny_students(settings)
        return
    log = []
    assert build_tiny_students(settings, log=log)["Transformer"].origin == "random initialization"
    assert log[0] == (
        "WARNING: student Transformer starts from RANDOM weights, not from ImageNet: no way to the hub. "
        "(Set nnUNet_collab_require_pretrained=1 to make this an error.)"
    )


def test_a_local_file_that_cannot_be_loaded_is_an_error_never_a_warning(tmp_path):
    settings = StudentSettings(
        name="Transformer", network="segformer_b0", pretrained=str(tmp_path / "none.safetensors")
    )
    with pytest.raises(CollabError, match=r"none\.safetensors must be a file with the weights of nvidia/mit-b0"):
        build_tiny_students(settings)
