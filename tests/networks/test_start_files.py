"""Weights to start from, of every source: what fits arrives layer by layer, the rest is told, code is never run."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from start_sources import NNSSL_PRIMUS, NNSSL_RESENC, clones, moved, nnssl, primus, residual
from tiny import STRIDES_2D, STRIDES_3D, unet

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.blueprint import build_network
from nnunet_collab.networks.start_files import read_start_file, weights_for
from nnunet_collab.networks.start_weights import encoder_prefixes, fit, start


def started(path, network, student="CNN"):
    return start("here", network, weights_for(read_start_file(path), student, network))


def written(path, content):
    torch.save(content, path)
    return path


def equal_but(network, weights, *others):
    """Every tensor of the network equals that of the weights, except those whose name contains one of `others`."""
    for name, value in network.state_dict().items():
        if not any(part in name for part in others):
            assert torch.equal(value, weights[name]), name


def differ(network, before, weights, part):
    """The tensors with this part in their name are still the network's own."""
    names = [name for name in before if part in name]
    assert names
    for name in names:
        assert torch.equal(network.state_dict()[name], before[name]), name
        assert name not in weights or not torch.equal(weights[name], before[name]) or not before[name].any(), name


# ---------------------------------------------------------------- layer by layer, for each source


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("make", [residual, primus])
def test_every_layer_of_nnunets_checkpoint_arrives(tmp_path, make, folder):
    weights = clones(make())
    path = written(
        tmp_path / "checkpoint_final.pth",
        {"network_weights": weights, "trainer_name": "nnUNetTrainer_X", "logging": {}},
    )
    network = make(seed=2)
    report = started(tmp_path if folder else path, network)
    equal_but(network, weights)
    assert (report.share, report.left_out()) == (1.0, [])
    assert read_start_file(path).kind == "nnUNetTrainer_X"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_wrappers_of_distributed_training_and_compilation_are_taken_off(tmp_path, prefix):
    weights = clones(residual())
    path = written(tmp_path / "c.pth", {"network_weights": {f"{prefix}{n}": v for n, v in weights.items()}})
    network = residual(seed=2)
    started(path, network)
    equal_but(network, weights)


def run_of(tmp_path, **networks):
    """A run of this package with several students."""
    weights = {f"students.{s}.network.{n}": v for s, network in networks.items() for n, v in clones(network).items()}
    return written(
        tmp_path / "run.pth", {"network_weights": weights, "nnunet_collab": {}, "trainer_name": "CTRCLTrainer"}
    )


def test_of_a_run_the_student_of_the_same_name_is_taken(tmp_path):
    first, second = residual(), residual(seed=5)
    path = run_of(tmp_path, A=first, B=second)
    for name, source in (("A", first), ("B", second)):
        network = residual(seed=2)
        started(path, network, name)
        equal_but(network, source.state_dict())
    with pytest.raises(CollabError, match=r"run\.pth: holds several students, so one .* 'C'; it holds A, B\. Rename"):
        started(path, residual(), "C")


def test_the_only_student_of_a_run_fits_every_name(tmp_path):
    source, network = residual(), residual(seed=2)
    started(run_of(tmp_path, A=source), network, "Other")
    equal_but(network, source.state_dict())


@pytest.mark.parametrize(
    ("plan", "renames"),
    [
        (NNSSL_RESENC, {}),
        (  # of a trainer with two encoders
            {**NNSSL_RESENC, "key_to_encoder": "online_encoder.stages", "key_to_stem": "online_encoder.stem"},
            {"encoder.": "online_encoder."},
        ),
    ],
    ids=["autoencoder", "two encoders"],
)
def test_every_layer_of_nnssls_resenc_arrives_but_the_head(tmp_path, plan, renames):
    weights = clones(residual(heads=1))
    content = moved(weights, renames)
    if renames:  # the second encoder must not be mistaken for the first
        content.update({n: torch.full_like(v, 7.0) for n, v in weights.items() if n.startswith("encoder.")})
        content = {n: v for n, v in content.items() if not n.startswith("decoder.")}
    path = written(tmp_path / "openmind.pth", nnssl(content, plan))
    network = residual(seed=2)
    before = clones(network)
    report = started(path, network)
    others = ("seg_layers", "decoder.stages", "decoder.transpconvs") if renames else ("seg_layers",)
    equal_but(network, weights, *others)
    differ(network, before, weights, "seg_layers.0.weight")
    assert report.share == 1.0
    assert "nnssl" in read_start_file(path).kind


def test_a_head_of_nnssl_is_left_out_even_if_it_fits(tmp_path):
    network, weights = residual(heads=1, seed=2), clones(residual(heads=1))
    before = clones(network)
    started(written(tmp_path / "c.pth", nnssl(weights, NNSSL_RESENC)), network)
    differ(network, before, weights, "seg_layers.1.weight")
    equal_but(network, weights, "seg_layers")


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_every_layer_of_nnssls_primus_arrives_but_the_decoder(tmp_path, prefix):
    weights = clones(primus(heads=1))
    keys = {k: v if k == "keys_to_in_proj" else f"{prefix}{v}" for k, v in NNSSL_PRIMUS.items()}
    content = moved(weights, {"eva.": f"{prefix}eva.", "down_projection.": f"{prefix}down_projection."})
    path = written(tmp_path / "openmind.pth", nnssl(content, keys, "PrimusM"))
    network = primus(seed=2)
    before = clones(network)
    report = started(path, network)
    equal_but(network, weights, "up_projection", "mask_token")
    differ(network, before, weights, "up_projection")
    assert report.share == 1.0


# ---------------------------------------------------------------- what does not fit


def test_a_first_layer_and_heads_of_other_sizes_stay_random_and_are_listed(tmp_path):
    weights = clones(residual(channels=4, heads=5))
    path = written(tmp_path / "c.pth", {"network_weights": {**weights, "extra.weight": torch.ones(2)}})
    network = residual(seed=2)
    before = clones(network)
    report = started(path, network)
    first = "encoder.stem.convs.0.conv.weight"
    equal_but(network, weights, first.removesuffix("conv.weight"), "seg_layers")
    assert torch.equal(network.state_dict()[first], before[first])
    (shapes, unused) = report.left_out()
    assert shapes.startswith(f"other shape, stays random (7): {first} (file (4, 4, 3, 3, 3), here (4, 1, 3, 3, 3)), ")
    assert "decoder.seg_layers.0.weight (file (5, 8, 1, 1, 1), here (3, 8, 1, 1, 1))" in shapes
    assert unused == "not in the network, not used (1): extra.weight"
    parameters = sum(p.numel() for n, p in network.named_parameters() if n.startswith("encoder."))
    assert report.encoder == parameters
    assert report.share == 1 - before[first].numel() / parameters
    total = len(list(network.parameters()))
    assert report.summary() == f"{report.share:.1%} of the encoder's parameters, {total - 7} of {total} tensors"


def test_positions_of_another_patch_stay_random(tmp_path):
    network, weights = primus(seed=2), clones(primus(patch=(16, 16, 16)))
    report = started(written(tmp_path / "c.pth", {"network_weights": weights}), network)
    assert report.other_shape == ["eva.pos_embed (file (1, 8, 24), here (1, 4, 24))"]
    equal_but(network, weights, "pos_embed")


def test_the_encoder_decides_whether_a_file_fits():
    network = residual()
    names = [n for n, _ in network.named_parameters() if n.startswith("encoder.")]
    sizes = {name: network.state_dict()[name].numel() for name in names}
    kept, share = dict(network.state_dict()), 1.0
    for name in names:  # each under all its names
        same = [n for n, v in network.state_dict(keep_vars=True).items() if v is network.get_parameter(name)]
        kept = {n: v for n, v in kept.items() if n not in same}
        share -= sizes[name] / sum(sizes.values())
        if share < 0.8:
            break
        assert fit(network, kept).share == pytest.approx(share)
    with pytest.raises(CollabError, match="at least 80% of the encoder's parameters must fit by name and shape; 7"):
        start("here", network, kept)


@pytest.mark.parametrize(
    ("make", "prefixes"),
    [
        (residual, ("encoder.stem.", "encoder.stages.")),
        (primus, ("down_projection.", "eva.")),
        (lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), ("",)),
        (lambda: torch.nn.ModuleDict({"encoder": torch.nn.Conv2d(1, 1, 1)}), ("encoder.",)),
        (
            lambda: torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"encoder": torch.nn.Conv2d(1, 1, 1)})}),
            ("model.encoder.",),
        ),
    ],
)
def test_the_encoder_is_known_by_its_names(make, prefixes):
    assert encoder_prefixes(make()) == prefixes


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (lambda: unet(STRIDES_2D), lambda: unet(STRIDES_3D), "The file's network is 2D, this one is 3D. "),
        (lambda: unet(STRIDES_3D), lambda: unet(STRIDES_2D), "The file's network is 3D, this one is 2D. "),
        (lambda: unet(STRIDES_3D, residual=True), lambda: unet(STRIDES_3D), "Not in the file: encoder.stages.0.0.conv"),
    ],
    ids=["2D into 3D", "3D into 2D", "another architecture"],
)
def test_another_network_is_refused_and_nothing_changes(tmp_path, source, target, words):
    weights = build_network(source(), 1, 3, deep_supervision=True).state_dict()
    network = build_network(target(), 1, 3, deep_supervision=True)
    before = clones(network)
    with pytest.raises(CollabError) as caught:
        started(written(tmp_path / "c.pth", {"network_weights": weights}), network)
    message = str(caught.value)
    assert words in message
    assert "compared with" in message
    assert "of PlainConvUNet" in message
    assert "Name a checkpoint of the same architecture" in message
    equal_but(network, before)


def test_nnssl_and_a_network_that_it_does_not_pretrain(tmp_path):
    path = written(tmp_path / "c.pth", nnssl(clones(residual()), NNSSL_RESENC))
    with pytest.raises(CollabError, match=r"nnssl pretrains networks of dynamic_network_arch.* 'CNN' is a Conv2d"):
        started(path, torch.nn.Conv2d(1, 1, 1))


# ---------------------------------------------------------------- files that are none


def no_plan(content):
    return {**content, "nnssl_adaptation_plan": {"key_to_stem": 3}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "it holds nothing. Name another file"),
        ({"state": 1, "b": 2}, "with the weights under 'network_weights'; it holds b, state"),
        ({"network_weights": {}}, "it holds network_weights"),
        ({"network_weights": [torch.ones(1)]}, "it holds network_weights"),
        ({"network_weights": {"a": 1}}, "it holds network_weights"),
        ({"network_weights": {3: torch.ones(1)}}, "it holds network_weights"),
        ({"network_weights": {"a": torch.tensor([1.0, float("nan")])}}, "weights must be finite numbers; 1 tensors"),
        ({"network_weights": {"a": torch.ones(1)}, "nnssl_adaptation_plan": [1]}, "must be a dictionary; it is a list"),
        (no_plan({"network_weights": {"a": torch.ones(1)}}), "it lacks key_to_encoder, key_to_stem. Name another"),
        ([1], "must hold a dictionary; it holds a list"),
    ],
)
def test_contents_that_are_no_start_are_refused(tmp_path, content, words):
    with pytest.raises(CollabError) as caught:
        started(written(tmp_path / "c.pth", content), residual())
    assert words in str(caught.value)
    assert str(tmp_path / "c.pth") in str(caught.value)


def test_a_file_or_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(CollabError, match="there is no such file"):
        read_start_file(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(CollabError, match="must be a complete file"):
        read_start_file(tmp_path / "text.pth")
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(CollabError, match=r"a fold folder with a checkpoint_final\.pth; the folder holds fold_0, text"):
        read_start_file(tmp_path)
    with pytest.raises(CollabError, match="the folder holds nothing"):
        read_start_file(tmp_path / "fold_0")


class _Runs:
    """Pickled code: it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_third_partys_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path, form):
    trap, path = tmp_path / "code_was_run", tmp_path / "third_party.pth"
    content = {"network_weights": clones(residual()), "logger": _Runs(str(trap))}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"network_weights": {}, "logger": _Runs(str(trap))}))
    with pytest.raises(CollabError) as caught:
        read_start_file(path)
    assert not trap.exists()
    if form == "torch":
        assert "mkdir" in str(caught.value)
        assert "loading these would run code of the file" in str(caught.value)
