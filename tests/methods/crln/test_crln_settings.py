"""CRLN: its switches, and what it refuses."""

from __future__ import annotations

from functools import partial
from typing import get_args

import pytest
import torch
from crln_in_tests import NAMES, each_configuration, look, make_crln, scatter, train
from teaching import batch_of, terms_of, weights, without_gradient
from tiny import make_plans

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import from_json, to_json
from nnunet_collab.core.types import StudentOutput
from nnunet_collab.losses.positive_supervision import positive_supervision
from nnunet_collab.methods.crln import trainer as crln
from nnunet_collab.methods.crln.rectifier import Space
from nnunet_collab.methods.crln.settings import CRLNSettings
from nnunet_collab.methods.crln.trainer import CRLNTrainer


@pytest.fixture
def make(tmp_path, monkeypatch):
    return partial(make_crln, tmp_path, monkeypatch)


# ---------------------------------------------------------------- switches


@pytest.mark.parametrize("rectification", ["none", "fixed", "concatenation", "learnable"])
@each_configuration
def test_every_rectification_trains(make, rectification, configuration):
    trainer = make(configuration=configuration, changes={"rectification": rectification})
    before = None if trainer.rectifier is None else weights(trainer.rectifier)
    train(trainer, 1)
    assert (trainer.rectifier is None) == (rectification == "none")
    assert (trainer.rectifier_optimizer is None) == (rectification in ("none", "fixed"))
    if trainer.rectifier_optimizer is not None:
        assert all(not torch.equal(w, before[n]) for n, w in weights(trainer.rectifier).items())


@pytest.mark.parametrize("space", get_args(Space))
def test_mu_learns_in_every_space(make, space):
    trainer = make(changes={"rectification_space": space})
    train(trainer, 1)
    assert trainer.rectifier.mu.item() != 0.5


@pytest.mark.parametrize("changes", [{"positives": "none"}, {"contrast_weight": 0}], ids=str)
def test_without_positive_supervision_there_is_no_projection(make, changes):
    trainer = make(changes=changes)
    assert set(trainer.group["CNN"].heads) == {"interaction"}
    assert set(terms_of(trainer)) == {f"CNN/{name}" for name in NAMES[:3]}
    train(trainer, 1)
    assert without_gradient(trainer) == []


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({"positives": "none"}, set()),
        ({"contrast_weight": 0}, set()),
        ({"positives": "mean"}, {"projection"}),
        ({"positives": "learned"}, {"projection", "interaction"}),
        ({}, {"projection", "interaction"}),
    ],
    ids=["none", "weight 0", "mean", "learned", "default"],
)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_without_rectification_only_learned_prototypes_need_the_interaction_module(make, changes, heads, share):
    trainer = make(changes={"rectification": "none", "context_crop": share, **changes})
    assert set(trainer.group["CNN"].heads) == set(trainer.teacher.group["CNN"].heads) == heads
    terms = {"interaction": "relations", "projection": "contrast"}
    assert set(terms_of(trainer)) == {"CNN/supervised", "CNN/pseudo"} | {f"CNN/{terms[head]}" for head in heads}
    train(trainer, 1)
    assert without_gradient(trainer) == []


def test_xi_may_be_drawn_anew_in_every_step(make, monkeypatch):
    found = []

    def record(*args, xi, **options):
        found.append(xi)
        return positive_supervision(*args, xi=xi, **options)

    monkeypatch.setattr(crln, "positive_supervision", record)
    trainer = make(changes={"xi": "uniform"})
    for seed in (1, 2):
        torch.manual_seed(seed)
        train(trainer, 20)
    assert len(set(found)) == 40
    assert min(found) < 0.2 < 0.8 < max(found) < 1
    assert sum(found) / 40 == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("aggregation", ["sum", "spatial", "convolutional"])
def test_every_aggregation_trains(make, aggregation):
    trainer = make(changes={"aggregation": aggregation})
    train(trainer, 1)
    assert without_gradient(trainer) == []


def test_a_single_unlabeled_sample_is_mixed_with_a_further_image(make):
    trainer = make(changes={"batch_size": 1})
    assert (trainer.unlabeled_per_batch, trainer.unlabeled_crops_per_batch()) == (1, 2)
    (result,) = train(trainer, 1)
    assert set(result["terms"]) == {f"CNN/{name}" for name in NAMES}


def test_the_map_is_supervised_at_full_resolution(make):
    trainer = scatter(make())
    batch = batch_of(trainer)
    with torch.no_grad():
        _, relations, _ = look(trainer.group["CNN"], batch.image)
    assert relations.shape[2:] == batch.image.shape[2:]
    want = trainer.supervised(StudentOutput(relations, None, None), batch.target)
    torch.testing.assert_close(terms_of(trainer)["CNN/relations"].value, want, rtol=1e-5, atol=1e-6)


def test_looking_for_the_widths_of_the_maps_moves_no_running_statistics(make):
    plans = make_plans()
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    trainer = make(plans=plans)
    variances = [b for name, b in trainer.group.named_buffers() if name.endswith("running_var")]
    assert len(variances) > 0
    assert all((b == 1).all() for b in variances)


# ---------------------------------------------------------------- refusals


def test_regions_are_refused(make):
    with pytest.raises(CollabError) as caught:
        make(kind="regions")
    assert str(caught.value) == (
        "CRLNTrainer: prototypes are of exclusive classes, and this dataset has overlapping regions. Use "
        "CrossMatchTrainer or MeanTeacherTrainer, which treat every region by itself."
    )


def shallow_plans():
    plans = make_plans()
    architecture = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    architecture["n_stages"] = 3
    for name in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
        architecture[name] = architecture[name][:3]
    architecture["n_conv_per_stage_decoder"] = architecture["n_conv_per_stage_decoder"][:2]
    return plans


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"plans": shallow_plans()}, "PlainConvUNet of 2d has 2"),
        ({"changes": {"students": [{"name": "CNN", "network": "segformer_b0"}]}}, "SegFormer of 2d has 0"),
    ],
    ids=["shallow", "no UNet"],
)
def test_a_decoder_of_fewer_than_three_stages_is_refused(make, options, found):
    with pytest.raises(CollabError) as caught:
        make(**options)
    assert str(caught.value) == (
        "CRLNTrainer: needs a UNet whose decoder has 3 stages or more, so a network of 4 resolutions; "
        f"{found}. Use 'plans' as the student's network, in a configuration with larger patches (3d_fullres rather "
        "than 3d_lowres, or 2d)."
    )


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"rectify_from_iteration": 12}, True),
        ({"rectify_from_iteration": 11}, False),
        ({"rectify_from_iteration": 12, "rectification": "none"}, False),
    ],
    ids=str,
)
def test_a_start_beyond_the_run_is_warned_of(make, changes, warned, monkeypatch):
    lines = []
    monkeypatch.setattr(
        CRLNTrainer, "print_to_log_file", lambda self, *args, **_: lines.append(" ".join(map(str, args)))
    )
    make(changes={"epochs": 4, "iterations_per_epoch": 3, **changes})
    found = [line for line in lines if line.startswith("WARNING")]
    assert found == (
        [
            "WARNING: setting 'rectify_from_iteration' is 12, the training has 12 iterations: pseudo labels will never "
            "be rectified. Lower it."
        ]
        if warned
        else []
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": [{"name": "CNN"}, {"name": "CNN2"}]}, "setting 'students': must be one"),
        ({"prototypes": 0}, "setting 'prototypes' must be an integer in [1, 2147483648)"),
        ({"anchors": 0}, "setting 'anchors' must be an integer in [1, 2147483648)"),
        ({"negatives": 0}, "setting 'negatives' must be an integer in [1, 2147483648)"),
        ({"tau": 1.0}, "setting 'tau' must be a finite number in (0, 1)"),
        ({"tau": 0.7, "tau_weak": 0.7}, "setting 'tau_weak': must be in [0, tau), where tau is 0.7"),
        ({"tau": 0.7, "tau_weak": 0.8}, "setting 'tau_weak': must be in [0, tau), where tau is 0.7"),
        ({"tau_weak": -0.1}, "setting 'tau_weak' must be a finite number in [0, 1)"),
        ({"rectify_from_iteration": -1}, "setting 'rectify_from_iteration' must be an integer in [0, 2147483648)"),
        ({"unlabeled_weight": -1}, "setting 'unlabeled_weight' must be a finite number >= 0"),
        ({"contrast_weight": -1}, "setting 'contrast_weight' must be a finite number >= 0"),
        ({"xi": -1}, "setting 'xi' must be a finite number >= 0 or 'uniform'; got -1 (int)"),
        ({"xi": "normal"}, "setting 'xi' must be a finite number >= 0 or 'uniform'; got 'normal' (str)"),
        (
            {"rectification_space": "replace"},
            "setting 'rectification_space' must be one of 'logit', 'probability', 'probability_raw'; got 'replace'",
        ),
        ({"noise": -1}, "setting 'noise' must be a finite number >= 0"),
        ({"ramp_up": 1.1}, "setting 'ramp_up' must be a finite number in [0, 1]"),
        ({"temperature": 0}, "setting 'temperature' must be a finite number > 0"),
        ({"mu_lr": 0}, "setting 'mu_lr' must be a finite number > 0"),
        ({"ema_decay": 1.0}, "setting 'ema_decay' must be a finite number in [0, 1)"),
        ({"rectification": "v3"}, "one of 'none', 'fixed', 'concatenation', 'learnable'"),
        (
            {"rectification": "fixed", "rectification_space": "probability"},
            "setting 'rectification_space': has no effect with rectification 'fixed', so it must stay "
            "'logit'; got 'probability'",
        ),
        ({"rectification": "none", "mu_lr": 1.0}, "setting 'mu_lr': has no effect with rectification 'none'"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes=changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("xi", [0.25, "uniform"])
def test_a_number_or_a_word_survives_the_checkpoint(xi):
    settings = CRLNSettings(xi=xi)
    assert from_json(CRLNSettings, to_json(settings)) == settings
