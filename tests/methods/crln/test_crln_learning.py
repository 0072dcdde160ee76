"""CRLN: who learns from what, the teacher, and a run that is saved, published and resumed."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from crln_in_tests import NAMES, each_configuration, each_kind, look, make_crln, rectified, scatter, train
from teaching import (
    assert_each_teaches_its_student_alone,
    equal,
    gradients,
    is_zero,
    step_that_fails,
    terms_of,
    weights,
    without_gradient,
)
from tiny import finish_run, make_batch, make_semi_supervised_batch

from nnunet_collab.inference.publish import publish_fold


@pytest.fixture
def make(tmp_path, monkeypatch):
    return partial(make_crln, tmp_path, monkeypatch)


# ---------------------------------------------------------------- who learns from what


def reached(module):
    return {name for name, p in module.named_parameters() if not is_zero(p.grad)}


@each_configuration
@each_kind
def test_each_term_reaches_what_the_gradient_table_says(make, kind, configuration):
    trainer = scatter(make(kind=kind, configuration=configuration))
    terms = terms_of(trainer, kind)
    assert_each_teaches_its_student_alone(trainer, {k: t for k, t in terms.items() if k != "CNN/supervised"})
    student, teacher = trainer.group["CNN"], trainer.teacher.group["CNN"]
    own_gradient = trainer.rectifier.raw.grad.clone()
    found = {}
    for name in NAMES:
        trainer.optimizers.zero_grad()
        terms[f"CNN/{name}"].value.backward(retain_graph=True)
        found[name] = {
            "encoder": bool(reached(student.network.encoder)),
            "decoder": bool(reached(student.network.decoder)),
            "last stage": bool(reached(student.network.decoder.stages[-1])),
            "DIM": bool(reached(student.heads["interaction"])),
            "prototypes": not is_zero(student.heads["interaction"].prototypes.grad),
            "projection": bool(reached(student.heads["projection"])),
        }
        assert all(g is None for g in gradients(teacher))
        assert torch.equal(trainer.rectifier.raw.grad, own_gradient)  # of equation 16 alone
    network = {"encoder": True, "decoder": True, "last stage": True}
    nothing = {"DIM": False, "prototypes": False, "projection": False}
    assert found == {
        "supervised": network | nothing,
        "pseudo": network | nothing,
        "contrast": network | nothing | {"projection": True},
        "relations": network | nothing | {"last stage": False, "DIM": True, "prototypes": True},
    }


def test_the_gradient_of_mu_is_there_before_the_backward_pass_and_no_other(make):
    trainer = scatter(make())
    assert trainer.rectifier.raw.grad is None
    terms_of(trainer)
    assert trainer.rectifier.raw.grad is not None
    assert trainer.rectifier.raw.grad != 0
    assert all(g is None for g in [*gradients(trainer.group), *gradients(trainer.teacher.group)])


def test_the_students_own_optimizers_have_no_mu(make):
    trainer = make()
    (raw,) = trainer.rectifier.parameters()
    assert all(p is not raw for p in trainer.group.parameters())
    assert [p for g in trainer.rectifier_optimizer.param_groups for p in g["params"]] == [raw]
    assert all(g["weight_decay"] == 0 for g in trainer.rectifier_optimizer.param_groups)


@each_configuration
@each_kind
def test_after_a_step_no_parameter_that_learns_is_without_gradient(make, configuration, kind):
    trainer = make(configuration=configuration, kind=kind)
    before, mu = weights(trainer.group), trainer.rectifier.mu.item()
    (result,) = train(trainer, 1, kind)
    assert without_gradient(trainer) == []
    assert mu == 0.5 != trainer.rectifier.mu.item()
    now = weights(trainer.group)
    heads = [name for name in now if ".heads." in name]
    assert len(heads) > 10
    assert all(not torch.equal(now[n], before[n]) for n in heads if not n.endswith("key_1.bias"))
    assert result["loss"] == pytest.approx(sum(result["terms"].values()), rel=1e-12)


@pytest.mark.parametrize("iteration", [0, 5])
def test_parameters_have_gradients_where_no_voxel_is_sure_or_uncertain(make, iteration):
    trainer = make(changes={"tau": 0.999, "tau_weak": 0.998, "rectify_from_iteration": 3})
    trainer.iteration = iteration
    batch = make_semi_supervised_batch(trainer)
    for target in batch["target"]:
        target[:] = 1
    result = trainer.train_step(batch)
    assert result["terms"]["CNN/pseudo"] == result["terms"]["CNN/contrast"] == 0
    assert without_gradient(trainer) == []


def test_a_batch_without_any_annotated_voxel_is_finite(make):
    trainer = make(kind="ignore")
    batch = make_semi_supervised_batch(trainer, "ignore")
    for target in batch["target"]:
        target[:] = 3
    result = trainer.train_step(batch)
    assert all(math.isfinite(v) for v in result["terms"].values())
    assert without_gradient(trainer) == []
    assert math.isfinite(trainer.rectifier.mu.item())


def test_voxels_that_are_left_out_teach_nothing(make):
    trainer = scatter(make(changes={"noise": 0.0, "cutmix_probability": 0.0}))
    batch = make_semi_supervised_batch(trainer)
    batch["learn_mask"][:] = -1
    terms = {term.name: term for term in trainer.batch_terms(batch)}
    assert terms["pseudo"].value == 0
    terms["contrast"].value.backward()  # of the labeled voxels alone
    assert terms["contrast"].value > 0


# ---------------------------------------------------------------- the teacher


def test_the_teacher_averages_the_heads_too(make):
    trainer = make(changes={"ema_decay": 0.6})
    average = None
    for number in range(1, 4):
        train(trainer, 1, seed=number)
        now = {name: p.detach().double() for name, p in trainer.group.named_parameters()}
        decay = min(1 - 1 / number, 0.6)
        average = now if average is None else {n: decay * average[n] + (1 - decay) * p for n, p in now.items()}
        found = dict(trainer.teacher.group.named_parameters())
        assert found.keys() == now.keys()
        assert any("heads.interaction.prototypes" in name for name in found)
        for name, p in found.items():
            torch.testing.assert_close(p.double(), average[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("deploy", ["student", "teacher"])
def test_the_teachers_map_is_made_of_its_own_features_and_prototypes(make, deploy):
    trainer = scatter(make(changes={"deploy": deploy}))
    (teacher,) = trainer.teacher.group
    image = make_batch(trainer)["data"]
    with torch.no_grad():
        logits, relations, _ = look(teacher, image)
        found = trainer.pseudo_labelers(image, trainer.deployed(image))
    assert set(found) == {"CNN before", "CNN after"}
    before, after = (found[f"CNN {when}"].logits for when in ("before", "after"))
    torch.testing.assert_close(before.exp(), logits.softmax(1), rtol=1e-4, atol=1e-5)
    want = rectified(logits, relations, trainer.rectifier.mu.item()).softmax(1)
    torch.testing.assert_close(after.exp().double(), want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-2)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_was_not_taken_leaves_teacher_and_mu(make, where, monkeypatch):
    trainer = make()
    train(trainer, 1)
    before, mu = weights(trainer.teacher.group), trainer.rectifier.mu.item()
    batch = make_semi_supervised_batch(trainer)
    step_that_fails(trainer, batch, where, monkeypatch)
    assert equal(weights(trainer.teacher.group), before)
    assert trainer.rectifier.mu.item() == mu


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("changes", [{}, {"deploy": "student"}, {"rectification": "concatenation"}], ids=str)
def test_a_resumed_run_steps_alike(make, tmp_path, changes):
    trainer = make(changes={"rectify_from_iteration": 2, **changes})
    train(trainer, 3)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    resumed = make(changes={"rectify_from_iteration": 2, **changes})
    resumed.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert resumed.iteration == 3
    for step in (False, True, True):
        if step:
            for one in (trainer, resumed):
                torch.manual_seed(9)
                train(one, 1, seed=7)
        for a, b in (
            (resumed.group, trainer.group),
            (resumed.teacher.group, trainer.teacher.group),
            (resumed.rectifier, trainer.rectifier),
        ):
            assert equal(weights(a), weights(b))


@pytest.mark.parametrize("deploy", ["student", "teacher"])
def test_what_is_published_has_no_heads(make, deploy):
    trainer = make(changes={"deploy": deploy})
    train(trainer)
    fold = finish_run(trainer)
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    deployed = weights(trainer.group if deploy == "student" else trainer.teacher.group)
    want = {name: w for name, w in deployed.items() if ".heads." not in name}
    assert len(want) < len(deployed)
    assert equal(checkpoint["network_weights"], want)
    assert equal(checkpoint["nnunet_collab"]["trained_weights"], weights(trainer.group))
    (published,) = publish_fold(fold)
    content = torch.load(published / "checkpoint_final.pth", weights_only=True)
    network = (trainer.group if deploy == "student" else trainer.teacher.group)["CNN"].network
    assert equal(content["network_weights"], weights(network))


def test_mu_is_logged(make):
    trainer = make()
    trainer.on_train_epoch_end(train(trainer))
    assert trainer.curves.values["variable/mu"] == [trainer.rectifier.mu.item()]


def test_validation_knows_the_labels_before_and_after(make):
    trainer = scatter(make())
    trainer.group.eval()
    with torch.no_grad():
        found = trainer.validation_step(make_batch(trainer))["pseudo_labels"]
    assert set(found) == {"CNN before", "CNN after"}
    assert not np.array_equal(*(np.asarray(v) for v in found.values()))
