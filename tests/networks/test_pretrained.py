"""Pretrained encoders: the right weights at the right place, honest words, and a clear no when they cannot be had."""

from __future__ import annotations

import os
import socket

import huggingface_hub.constants
import pytest
import timm
import torch
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import SegformerConfig, SegformerForImageClassification, SegformerForSemanticSegmentation

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks import pretrained
from nnunet_collab.networks.pretrained import PretrainedUnavailable, from_huggingface, load_imagenet_weights
from nnunet_collab.networks.segformer import SegFormer
from nnunet_collab.networks.semantic_fpn import SemanticFPN

ISO_2D = [[1, 1]] + 6 * [[2, 2]]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    """No test sees the network or what this machine has downloaded before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def classifier():
    """A random model of the kind that the hub has: an ImageNet classifier on three channels."""
    torch.manual_seed(0)
    return SegformerForImageClassification(SegformerConfig(num_labels=10)).eval()


def published_names(state):
    """The names in the public files, which older `transformers` use throughout; written by hand."""
    renames = {
        "layernorm_before": "layer_norm_1", "layernorm_after": "layer_norm_2", "q_proj": "self.query",
        "k_proj": "self.key", "v_proj": "self.value", "o_proj": "output.dense",
        "sequence_reduction.sequence_reduction": "self.sr", "sequence_reduction.layer_norm": "self.layer_norm",
        "fc1": "dense1", "fc2": "dense2", "linear_projections": "linear_c",
    }  # fmt: skip
    out = {}
    for name, value in state.items():
        for new, old in renames.items():
            name = name.replace(new, old)
        parts = name.split(".")
        if parts[:2] == ["segformer", "stages"]:
            stage, kind, rest = parts[2], parts[3], parts[4:]
            kind = {"blocks": "block"}.get(kind, kind)
            name = ".".join(["segformer", "encoder", kind, stage, *rest])
        out[name] = value.clone()
    return out


@pytest.fixture
def hub(monkeypatch, tmp_path, classifier):
    """A hub with one repository, whose only file is of the kind asked for; records what was asked."""

    def start(filename):
        asked = []
        path = tmp_path / filename
        state = published_names(classifier.state_dict())
        save_file(state, path) if filename.endswith("safetensors") else torch.save(state, path)

        def download(repository, name):
            asked.append((repository, name))
            if name != filename:
                raise EntryNotFoundError(f"no {name}")
            return str(path)

        monkeypatch.setattr(pretrained, "hf_hub_download", download)
        return asked

    return start


def test_the_public_names_are_those_of_the_reference_model(classifier):
    names = published_names(classifier.state_dict())
    for name in (
        "segformer.encoder.patch_embeddings.0.proj.weight",
        "segformer.encoder.block.0.1.attention.self.sr.bias",
        "segformer.encoder.block.2.0.attention.self.layer_norm.weight",
        "segformer.encoder.block.3.1.attention.output.dense.weight",
        "segformer.encoder.block.1.0.mlp.dwconv.dwconv.weight",
        "segformer.encoder.layer_norm.3.bias",
        "classifier.weight",
    ):
        assert name in names


@pytest.mark.parametrize("kind", [SegformerForImageClassification, SegformerForSemanticSegmentation])
def test_both_namings_give_the_same_weights_and_all_that_the_network_has(kind):
    state = kind(SegformerConfig(num_labels=4)).state_dict()
    new, old = from_huggingface(state), from_huggingface(published_names(state))
    ours = SegFormer(3, 4, variant="b0", strides=ISO_2D, head_norm="batch").state_dict()
    wanted = {n for n in ours if n.startswith("encoder.") or kind is SegformerForSemanticSegmentation}
    assert new.keys() == old.keys() == wanted
    assert all(torch.equal(new[name], old[name]) for name in new)


def b0(channels, strides=ISO_2D):
    torch.manual_seed(5)
    return SegFormer(channels, 4, variant="b0", strides=strides)


@pytest.mark.parametrize(
    ("filename", "questions"), [("model.safetensors", 1), ("pytorch_model.bin", 2)], ids=["safetensors", "torch"]
)
def test_encoder_becomes_the_downloaded_one_and_the_decoder_stays(hub, classifier, filename, questions):
    asked = hub(filename)
    network = b0(3).eval()
    decoder = {name: value.clone() for name, value in network.decoder.state_dict().items()}
    line = load_imagenet_weights(network)
    assert "nvidia/mit-b0" in line
    assert "NVIDIA Source Code License for SegFormer, non-commercial use only" in line
    assert "stay random" not in line
    assert "\n" not in line
    assert asked == [("nvidia/mit-b0", "model.safetensors"), ("nvidia/mit-b0", "pytorch_model.bin")][:questions]
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        want = classifier.segformer(x).last_hidden_state
        torch.testing.assert_close(network.encoder(x)[-1], want, rtol=0, atol=1e-5)
    assert all(torch.equal(value, decoder[name]) for name, value in network.decoder.state_dict().items())


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_first_layer_is_summed_for_one_channel_else_repeated_and_rescaled(hub, classifier, channels):
    hub("model.safetensors")
    network = b0(channels)
    load_imagenet_weights(network)
    rgb = published_names(classifier.state_dict())["segformer.encoder.patch_embeddings.0.proj.weight"]
    want = rgb.sum(1, keepdim=True) if channels == 1 else torch.cat([rgb, rgb], 1)[:, :channels] * 3 / channels
    torch.testing.assert_close(network.encoder.stages[0].embedding.weight.detach(), want)


def test_cached_weights_are_found_without_network_whatever_their_format(monkeypatch, tmp_path, classifier):
    path = tmp_path / "cached.bin"
    torch.save(published_names(classifier.state_dict()), path)
    monkeypatch.setattr(
        pretrained, "try_to_load_from_cache", lambda repository, name: str(path) if name.endswith(".bin") else None
    )
    assert "nvidia/mit-b0" in load_imagenet_weights(b0(3))


def test_kernels_of_other_sizes_stay_random_and_the_line_says_so(hub):
    hub("model.safetensors")
    network = b0(3, [[1, 1], [2, 2], [2, 2], [2, 2]])
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    line = load_imagenet_weights(network)
    same = {name for name, value in network.encoder.state_dict().items() if torch.equal(value, before[name])}
    random = {name for name in same if name.endswith((".embedding.weight", ".reduction.weight"))}
    # Stage 1 has reduction 2 instead of 8 in its two blocks; stages 3 and 4 have patches of size 1 instead of 3.
    assert random == {
        *(f"stages.0.blocks.{block}.attention.reduction.weight" for block in (0, 1)),
        *(f"stages.{stage}.embedding.weight" for stage in (2, 3)),
    }
    assert f"{len(before) - 4} of the encoder's {len(before)} tensors" in line
    assert "stay random: the plans' strides need kernels of other sizes" in line


@pytest.mark.parametrize("network", ["segformer", "fpn"])
def test_offline_is_a_clear_error_that_asks_no_other_machine_and_changes_nothing(network, monkeypatch):
    network = b0(1) if network == "segformer" else SemanticFPN(1, 2, width=8, branch_width=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    with pytest.raises(PretrainedUnavailable, match="must be in the Hugging Face cache or downloadable; found Local"):
        load_imagenet_weights(network)
    assert asked == []
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_without_connection_only_one_file_is_tried(monkeypatch):
    asked = []

    def download(repository, name):
        asked.append(name)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    with pytest.raises(PretrainedUnavailable, match=r"LocalEntryNotFoundError: no connection\. Download it once"):
        load_imagenet_weights(b0(1))
    assert asked == ["model.safetensors"]


def test_a_file_that_is_no_mix_transformer_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda repository, name: str(path))
    with pytest.raises(PretrainedUnavailable, match=r"nvidia/mit-b0 .* found KeyError"):
        load_imagenet_weights(b0(1))


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "resnet50"])
def test_backbone_gets_timms_weights_adapted_to_one_channel(monkeypatch, tmp_path, backbone):
    torch.manual_seed(0)
    whole = timm.create_model(backbone, pretrained=False)
    path = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), path)
    create = timm.create_model

    def create_from_file(name, **kwargs):
        overlay = {"pretrained_cfg_overlay": {"file": str(path)}} if kwargs.get("pretrained") else {}
        return create(name, **kwargs, **overlay)

    monkeypatch.setattr(timm, "create_model", create_from_file)
    network = SemanticFPN(1, 2, backbone=backbone, width=8, branch_width=8).eval()
    line = load_imagenet_weights(network)
    assert line.startswith(f"timm/{backbone}.")
    assert line.endswith("license: apache-2.0")
    network, whole, gray = network.double(), whole.double(), torch.randn(1, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        want = whole.eval().forward_intermediates(gray.expand(-1, 3, -1, -1), intermediates_only=True)[-1]
        torch.testing.assert_close(network.encoder(gray)[-1], want, rtol=1e-4, atol=1e-5)


def test_there_are_no_weights_for_3d_nor_for_other_networks():
    assert issubclass(PretrainedUnavailable, CollabError)
    with pytest.raises(PretrainedUnavailable, match="for 2D networks; found a SegFormer in 3D"):
        load_imagenet_weights(b0(1, [[1, 1, 1], [2, 2, 2]]))
    with pytest.raises(PretrainedUnavailable, match="SegFormer and SemanticFPN only; found Conv2d"):
        load_imagenet_weights(torch.nn.Conv2d(1, 1, 1))


# ---------------------------------------------------------------- a local file


@pytest.mark.parametrize("form", ["safetensors", "torch", "nested"])
def test_a_local_file_gives_the_same_weights_as_the_hub(hub, classifier, tmp_path, form):
    hub("model.safetensors")
    wanted, network = b0(1), b0(1)
    load_imagenet_weights(wanted)
    state = published_names(classifier.state_dict())
    file = tmp_path / ("mine.safetensors" if form == "safetensors" else "mine.pth")
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "nested" else state, file)
    line = load_imagenet_weights(network, file)
    assert line.startswith(f"{file}: ")
    assert line.endswith("license: that of the file's source")
    assert all(map(torch.equal, network.encoder.state_dict().values(), wanted.encoder.state_dict().values()))


@pytest.mark.parametrize(
    ("backbone", "suffix"),
    [("mobilenetv2_100", "safetensors"), ("mobilenetv2_100", "pth"), ("resnet50", "safetensors")],
)
def test_a_local_file_of_timm_gives_every_layer(tmp_path, backbone, suffix):
    torch.manual_seed(0)
    state = {k: v for k, v in timm.create_model(backbone).state_dict().items() if not k.endswith("batches_tracked")}
    file = tmp_path / f"weights.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    network = SemanticFPN(3, 2, backbone=backbone, width=8, branch_width=8)
    line = load_imagenet_weights(network, file)
    assert line.startswith(f"{file}: the whole encoder")
    own = {k: v for k, v in network.encoder.state_dict().items() if not k.endswith("batches_tracked")}
    assert all(torch.equal(value, state[name]) for name, value in own.items())


class _Runs:
    """Pickled code: it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("network", ["segformer", "fpn"])
@pytest.mark.parametrize("content", ["missing", "text", "other network", "code", "numbers"])
def test_a_local_file_that_is_none_is_refused_and_changes_nothing(tmp_path, network, content):
    network = b0(1) if network == "segformer" else SemanticFPN(1, 2, width=8, branch_width=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    file, trap = tmp_path / "weights.pth", tmp_path / "code_was_run"
    if content == "text":
        file.write_text("not weights")
    elif content != "missing":
        held = {"other network": {"a": torch.ones(1)}, "code": {"a": _Runs(str(trap))}, "numbers": {"a": 1}}
        torch.save(held[content], file)
    with pytest.raises(PretrainedUnavailable) as caught:
        load_imagenet_weights(network, file)
    assert f"pretrained weights: {file} must be a file with the weights of " in str(caught.value)
    assert not trap.exists()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
