"""Blueprints: every name becomes a plans entry that nnU-Net alone can build, or a message."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from tiny import STRIDES_2D, STRIDES_3D, unet

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.blueprint import NAMED, NETWORKS, build_network, is_unet, make_blueprint, unet_encoder_stage

SMALL = {
    "fpn_mobilenetv2": {"width": 8, "branch_width": 8},
    "fpn_resnet50": {"width": 8, "branch_width": 8},
    "cmaformer": {"features": [4, 4, 4, 8, 8, 8], "num_heads": 2},
}
BIG = ("segformer_b1", "segformer_b2", "segformer_b3", "segformer_b4", "segformer_b5")
IN_2D = [name for name in NETWORKS if name not in BIG and (name == "plans" or NAMED[name].dims != 3)]


def stock_build(entry, deep_supervision):
    """As nnU-Net's own trainer builds what plans describe."""
    return get_network_from_plans(
        entry["network_class_name"], entry["arch_kwargs"], entry["_kw_requires_import"], 1, 3, True, deep_supervision
    )


@pytest.mark.parametrize("name", IN_2D)
def test_every_network_is_built_by_nnunet_from_json_and_predicts_at_full_resolution(name):
    entry = json.loads(json.dumps(make_blueprint("S", name, SMALL.get(name, {}), unet(), (32, 32))))
    network = stock_build(entry, False).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", BIG)
def test_bigger_segformers_are_named_by_variant_and_follow_the_plans_strides(name):
    entry = make_blueprint("S", name, {"head_norm": "batch"}, unet(STRIDES_3D), (4, 32, 32))
    assert entry == {
        "network_class_name": "nnunet_collab.networks.segformer.SegFormer",
        "arch_kwargs": {"variant": name[-2:], "strides": STRIDES_3D, "head_norm": "batch"},
        "_kw_requires_import": [],
    }


def test_a_cmaformer_follows_the_plans_strides_and_takes_the_users_keywords():
    entry = make_blueprint("S", "cmaformer", {"use_vit_block": False}, unet(STRIDES_3D), (4, 32, 32))
    assert entry == {
        "network_class_name": "nnunet_collab.networks.cmaformer.CMAformer",
        "arch_kwargs": {"strides": STRIDES_3D, "use_vit_block": False},
        "_kw_requires_import": [],
    }
    planned = {"network_class_name": "some.Primus", "arch_kwargs": {"embed_dim": 8}, "_kw_requires_import": []}
    with pytest.raises(CollabError, match="cmaformer takes its strides from the plans"):
        make_blueprint("S", "cmaformer", {}, planned, (32, 32))


def test_the_planned_network_is_the_plans_own_with_the_users_keywords_on_top():
    planned = unet(residual=True)
    before = copy.deepcopy(planned)
    assert make_blueprint("S", "plans", {}, planned, (32, 32)) == planned
    wider = make_blueprint("S", "plans", {"features_per_stage": [2, 2, 2, 2]}, planned, (32, 32))
    assert wider["arch_kwargs"]["features_per_stage"] == [2, 2, 2, 2]
    assert {**wider["arch_kwargs"], "features_per_stage": [4, 6, 8, 8]} == planned["arch_kwargs"]
    assert planned == before


def test_building_is_nnunets_building_with_the_same_first_weights():
    torch.manual_seed(3)
    ours = build_network(unet(), 1, 3, deep_supervision=True)
    torch.manual_seed(3)
    theirs = stock_build(unet(), True)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert ours.decoder.deep_supervision


def test_placeholders_of_foreign_networks_are_filled_in():
    arch = {"spatial_dims": "$dims", "img_size": "$patch_size", "norm": "instance", "depths": [1, 2]}
    entry = make_blueprint("S", "json.JSONDecoder", arch, unet(STRIDES_3D), (4, 32, 32))
    assert entry["network_class_name"] == "nnunet_collab.networks.foreign.ForeignNetwork"
    kwargs = {"spatial_dims": 3, "img_size": [4, 32, 32], "norm": "instance", "depths": [1, 2]}
    assert entry["arch_kwargs"] == {"path": "json.JSONDecoder", "kwargs": kwargs}


def test_strides_may_come_from_the_user_where_the_plans_have_none():
    planned = {"network_class_name": "some.Primus", "arch_kwargs": {"embed_dim": 8}, "_kw_requires_import": []}
    entry = make_blueprint("S", "segformer_b0", {"strides": STRIDES_2D}, planned, (32, 32))
    assert entry["arch_kwargs"] == {"variant": "b0", "strides": STRIDES_2D}
    with pytest.raises(
        CollabError, match=r"segformer_b0 takes its strides from the plans, but their some\.Primus has none"
    ):
        make_blueprint("S", "segformer_b0", {}, planned, (32, 32))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("nope", "student 'S': network must be one of plans, segformer_b0, segformer_b1"),
        ("nope", "or the dotted path of a class; got 'nope'"),
        ("no_such_package.nets.UNet", "must be importable; package 'no_such_package' is not installed. Install it"),
        (".nets.UNet", "package '' is not installed"),
        ("fpn_resnet50", "student 'S': fpn_resnet50 is a 2D network; got a patch of [4, 32, 32]. Train the 2d"),
    ],
)
def test_networks_that_cannot_be_are_refused(network, message):
    with pytest.raises(CollabError) as caught:
        make_blueprint("S", network, {}, unet(STRIDES_3D), (4, 32, 32))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("network", "arch", "message"),
    [
        ("segformer_b0", {"head_nrom": "batch"}, "unexpected keyword argument 'head_nrom'"),
        ("plans", {"n_stages": 9}, "error: "),
        ("plans", {"filters": 9}, "unexpected keyword argument 'filters'"),
        *[
            ("plans", {name: value}, "error: ")
            for name, value in (
                ("features_per_stage", [4, 6, -8, 8]),
                ("features_per_stage", [4, 6, 2**70, 8]),
                ("features_per_stage", [4, 6, 0.5, 8]),
                ("features_per_stage", "4688"),
                ("n_stages", -1),
                ("kernel_sizes", [[3, 3], [3, -3], [3, 3], [3, 3]]),
                ("conv_op", "torch.nn.modules.conv.Conv9d"),
                ("norm_op_kwargs", {"eps": 1e-5, "nope": True}),
                ("n_conv_per_stage", [1, -1, 1, 1]),
            )
        ],
    ],
)
def test_keywords_that_a_constructor_does_not_take_are_refused(network, arch, message):
    entry = make_blueprint("S", network, arch, unet(), (32, 32))
    with pytest.raises(CollabError) as caught:
        build_network(entry, 1, 3, deep_supervision=False)
    assert str(caught.value).startswith(
        f"network {entry['network_class_name']}: its constructor must accept the keywords ["
    )
    assert message in str(caught.value)
    assert "Correct 'arch' in the student's settings" in str(caught.value)


@pytest.mark.parametrize(
    ("strides", "patch", "wanted", "stage"),
    [
        (STRIDES_2D, (32, 32), (4, 4), 3),
        (STRIDES_2D, (32, 32), (8, 8), 2),
        (STRIDES_2D, (32, 32), (1, 1), 3),  # smaller than any: the deepest
        (STRIDES_2D, (32, 32), (64, 64), 0),
        ([[1, 1]] + 6 * [[2, 2]], (224, 224), (7, 7), 5),  # the paper's stride 32 in a UNet of seven stages
        (STRIDES_3D, (4, 32, 32), (2, 8, 8), 2),
        (STRIDES_3D, (4, 32, 32), (4, 16, 16), 1),
        ([[1, 1], [2, 2], [1, 1]], (32, 32), (16, 16), 2),  # two of the same size: the deeper one
    ],
)
def test_the_encoder_stage_is_the_one_nearest_in_size_to_the_peers_map(strides, patch, wanted, stage):
    assert unet_encoder_stage(strides, patch, wanted) == stage


def test_only_nnunets_unets_count_as_unets():
    networks = {
        name: make_blueprint("S", name, {}, unet(), (32, 32)) for name in ("plans", "segformer_b0", "fpn_mobilenetv2")
    }
    found = {name: is_unet(build_network(entry, 1, 3, deep_supervision=False)) for name, entry in networks.items()}
    assert found == {"plans": True, "segformer_b0": False, "fpn_mobilenetv2": False}
    assert is_unet(build_network(unet(STRIDES_3D, residual=True), 1, 3, deep_supervision=False))
    assert not is_unet(torch.nn.Conv2d(1, 1, 1))
