"""What settings change in the plans, and what is refused before anything is written."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
from tiny import STRIDES_2D, make_plans, unet

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import change, to_json
from nnunet_collab.methods.ctrcl import CTRCLSettings
from nnunet_collab.training.planning import KEY, adapt_plans
from nnunet_collab.training.preflight import check_environment, check_processes

PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRANSFORMERS = {"students": [{"name": "A", "network": "segformer_b0"}, {"name": "B", "network": "segformer_b1"}]}


def adapt(configuration="2d", plans=None, **changes):
    plans = make_plans() if plans is None else plans
    settings = change(CTRCLSettings(), changes, "V")
    adapt_plans(plans, configuration, settings, "CTRCLTrainer", {})
    return plans, settings


@pytest.mark.parametrize(
    ("size", "processes", "nearest"), [(5, 2, "4 or 6"), (49, 4, "48 or 52"), (1, 2, "2"), (4, 2, ""), (3, 1, "")]
)
@pytest.mark.parametrize("batch_dice", [True, False])
def test_processes_share_the_batch_evenly_where_nnunets_dice_gathers_it(size, processes, nearest, batch_dice):
    configuration = SimpleNamespace(batch_size=size, batch_dice=batch_dice)
    if nearest and batch_dice:
        with pytest.raises(CollabError, match=rf"got {size}\. Set batch_size to {nearest}, or change the number"):
            check_processes(configuration, processes)
    else:
        check_processes(configuration, processes)


@pytest.mark.parametrize("missing", PATHS)
@pytest.mark.parametrize("value", [None, ""])
def test_a_path_that_is_not_set_is_named_with_the_command_to_set_it(missing, value, monkeypatch):
    for name in PATHS:
        monkeypatch.setenv(name, "/data")
    check_environment()
    monkeypatch.delenv(missing) if value is None else monkeypatch.setenv(missing, value)
    with pytest.raises(CollabError) as caught:
        check_environment()
    assert str(caught.value).startswith(f"environment variable {missing}: must name a folder; it is not set.")
    assert f"`export {missing}=$HOME/nnunet/{missing.removeprefix('nnUNet_')}`" in str(caught.value)


def test_the_plans_record_trainer_settings_and_every_students_blueprint():
    plans, settings = adapt()
    assert plans[KEY]["trainer"] == "CTRCLTrainer"
    assert plans[KEY]["settings"] == to_json(settings)
    assert plans[KEY]["students"] == {
        "CNN": unet(),
        "Transformer": {
            "network_class_name": "nnunet_collab.networks.segformer.SegFormer",
            "arch_kwargs": {"variant": "b2", "strides": STRIDES_2D},
            "_kw_requires_import": [],
        },
    }
    assert json.loads(json.dumps(plans)) == plans
    untouched = make_plans()
    assert {key: value for key, value in plans.items() if key != KEY} == untouched


def test_patch_and_batch_size_are_those_of_the_settings_in_the_trained_configuration_alone():
    plans, _ = adapt(patch_size=[16, 24], batch_size=5)
    entry = plans["configurations"]["2d"]
    assert (entry["patch_size"], entry["batch_size"]) == ([16, 24], 5)
    assert plans["configurations"]["3d_fullres"] == make_plans()["configurations"]["3d_fullres"]


def test_a_configuration_that_inherits_is_resolved_before_it_is_adapted():
    plans = make_plans()
    plans["configurations"]["2d_small"] = {"inherits_from": "2d", "batch_size": 7}
    before = copy.deepcopy(plans["configurations"]["2d"])
    adapt("2d_small", plans, patch_size=[16, 16])
    assert plans["configurations"]["2d_small"] == {"inherits_from": "2d", "batch_size": 7, "patch_size": [16, 16]}
    assert plans["configurations"]["2d"] == before
    assert plans[KEY]["students"]["CNN"] == unet()


def test_foreign_networks_are_told_the_patch_of_the_settings():
    student = {"name": "F", "network": "json.JSONDecoder", "arch": {"img_size": "$patch_size", "dims": "$dims"}}
    plans, _ = adapt("3d_fullres", students=[student], beta=0, gamma_encoder=0, gamma_decoder=0, patch_size=[2, 16, 24])
    assert plans[KEY]["students"]["F"]["arch_kwargs"]["kwargs"] == {"img_size": [2, 16, 24], "dims": 3}


@pytest.mark.parametrize(
    ("configuration", "changes", "parts"),
    [
        (
            "2d_lowres",
            {},
            ["configuration '2d_lowres': must be in the plans; they have 2d, 3d_fullres", "Run nnUNetv2_plan_and"],
        ),
        (
            "3d_cascade_fullres",
            {},
            [
                "'3d_cascade_fullres': must not be a cascade",
                "CTRCLTrainer trains from images alone. Use 3d_fullres or 3d_lowres",
            ],
        ),
        ("2d", {"patch_size": [8, 8, 8]}, ["setting 'patch_size': 2d is 2D and takes 2 sizes; got [8, 8, 8]."]),
        (
            "3d_fullres",
            {"patch_size": [8, 8]},
            ["setting 'patch_size': 3d_fullres is 3D and takes 3 sizes; got [8, 8]."],
        ),
        (
            "2d",
            {"patch_size": [32, 30]},
            ["divides axis 1 by 8, so the patch must be a multiple of it; got [32, 30]", "Use 24 or 32 there."],
        ),
        ("2d", {"patch_size": [4, 32]}, ["divides axis 0 by 8", "Use 8 there."]),
        ("3d_fullres", {"patch_size": [3, 32, 32]}, ["divides axis 0 by 2", "Use 2 or 4 there."]),
        ("3d_fullres", {"students": {"Transformer": {"network": "fpn_resnet50"}}}, ["fpn_resnet50 is a 2D network"]),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_mend(configuration, changes, parts):
    with pytest.raises(CollabError) as caught:
        adapt(configuration, **changes)
    for part in parts:
        assert part in str(caught.value)


def test_students_that_take_any_patch_are_not_held_to_the_unets_multiples():
    plans, _ = adapt(patch_size=[30, 45], **TRANSFORMERS)
    assert plans["configurations"]["2d"]["patch_size"] == [30, 45]
