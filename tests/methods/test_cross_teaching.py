"""Cross Teaching and CPS: which terms there are, whom each teaches, and that they are the losses called by hand."""

from __future__ import annotations

import math

import pytest
import torch
from teaching import (
    SEGFORMER,
    assert_each_teaches_its_student_alone,
    batch_of,
    by_key,
    equal,
    gradients,
    make_method,
    terms_of,
    weights,
    without_gradient,
)
from tiny import LABELS, make_semi_supervised_batch

from nnunet_collab.core.errors import CollabError
from nnunet_collab.losses.pseudo_labels import pseudo_label_loss
from nnunet_collab.methods.cross_teaching import CPSTrainer, CrossTeachingTrainer
from nnunet_collab.training.student_outputs import slice_output

STUDENTS = {CrossTeachingTrainer: ("CNN", "Transformer"), CPSTrainer: ("CNN1", "CNN2")}


@pytest.fixture
def make(tmp_path, monkeypatch):
    return lambda trainer_class=CrossTeachingTrainer, **options: make_method(
        trainer_class, tmp_path, monkeypatch, **options
    )


def forward(trainer, kind="plain"):
    """Outputs of `terms_of` on the labeled and on the unlabeled samples, and the batch."""
    batch = batch_of(trainer, kind)
    torch.manual_seed(5)
    outputs = trainer.network(torch.cat([batch.image, batch.weak]))
    count = len(batch.image)
    labeled = {name: slice_output(output, 0, count) for name, output in outputs.items()}
    return labeled, {name: output.logits[count:] for name, output in outputs.items()}, batch


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("method", STUDENTS)
def test_each_term_teaches_the_student_it_names_and_no_other(make, method, kind, configuration):
    trainer = make(method, kind=kind, configuration=configuration)
    terms = terms_of(trainer, kind)
    assert set(terms) == {f"{s}/{name}" for s in STUDENTS[method] for name in ("supervised", "pseudo")}
    assert_each_teaches_its_student_alone(trainer, terms)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(("method", "criterion"), [(CrossTeachingTrainer, "dice"), (CPSTrainer, "ce")])
def test_terms_are_the_losses_called_by_hand_with_the_weights_of_the_settings(make, method, criterion, kind):
    trainer = make(method, kind=kind, changes={"ramp_up": 0})
    terms = terms_of(trainer, kind)
    labeled, unlabeled, batch = forward(trainer, kind)
    for own, peer in (STUDENTS[method], STUDENTS[method][::-1]):
        assert terms[f"{own}/supervised"].weight == 1.0
        assert torch.equal(terms[f"{own}/supervised"].value, trainer.supervised(labeled[own], batch.target))
        want = pseudo_label_loss(
            unlabeled[own], unlabeled[peer], batch.keep, regions="regions" in kind, criterion=criterion
        )
        assert terms[f"{own}/pseudo"].weight == pytest.approx(0.2)
        assert torch.equal(terms[f"{own}/pseudo"].value, want)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"pseudo_loss": "ce"}, {"criterion": "ce"}),
        ({"pseudo_loss": "dice_ce"}, {"criterion": "dice_ce"}),
        ({"threshold": 0.45}, {"criterion": "dice", "threshold": 0.45}),
    ],
)
def test_every_switch_reaches_the_loss(make, changes, options):
    trainer = make(changes=changes)
    _, unlabeled, batch = forward(trainer)
    want = pseudo_label_loss(unlabeled["CNN"], unlabeled["Transformer"], batch.keep, regions=False, **options)
    plain = pseudo_label_loss(unlabeled["CNN"], unlabeled["Transformer"], batch.keep, regions=False, criterion="dice")
    assert torch.equal(terms_of(trainer)["CNN/pseudo"].value, want)
    assert not torch.equal(want, plain)


def test_weights_of_the_settings_are_those_of_the_terms(make):
    terms = terms_of(make(changes={"pseudo_weight": 0.7, "loss_scale": 2, "ramp_up": 0}))
    assert {key: term.weight for key, term in terms.items()} == {
        "CNN/supervised": 2, "CNN/pseudo": 1.4, "Transformer/supervised": 2, "Transformer/pseudo": 1.4,
    }  # fmt: skip


@pytest.mark.parametrize("ramp_up", [1.0, 0.5])
def test_the_weight_rises_over_its_share_of_the_run_in_two_hundred_steps(make, ramp_up):
    trainer = make(changes={"epochs": 10, "iterations_per_epoch": 100, "ramp_up": ramp_up})
    for iteration in (0, 3, 4, 250, 499, 500, 999):
        trainer.iteration = iteration
        share = min(1.0, iteration / (1000 * ramp_up))
        share = math.floor(200 * share) / 200
        weight = terms_of(trainer)["CNN/pseudo"].weight
        assert weight == pytest.approx(0.2 * math.exp(-5 * (1 - share) ** 2), rel=1e-12)
    assert weight == pytest.approx(0.2, rel=1e-3)


def test_a_weight_of_zero_leaves_the_term_out(make):
    assert {term.name for term in terms_of(make(changes={"pseudo_weight": 0})).values()} == {"supervised"}


def test_a_weight_above_zero_changes_them(make):
    found = []
    for weight in (0, 1):
        trainer = make(changes={"pseudo_weight": weight, "ramp_up": 0})
        sum(term.weight * term.value for term in terms_of(trainer).values()).backward()
        found.append([g.clone() for g in gradients(trainer.group["CNN"]) if g is not None])
    assert not all(map(torch.equal, *found))


@pytest.mark.parametrize("kind", ["plain", "regions_ignore"])
def test_voxels_that_are_left_out_teach_nothing(make, kind):
    trainer = make(kind=kind)
    batch = make_semi_supervised_batch(trainer, kind)
    batch["learn_mask"][:] = -1
    torch.manual_seed(5)
    terms = by_key(trainer.batch_terms(batch))
    (terms["CNN/pseudo"].value + terms["Transformer/pseudo"].value).backward()
    assert terms["CNN/pseudo"].value == terms["Transformer/pseudo"].value == 0
    assert all(g is None or not g.any() for g in gradients(trainer.group))


@pytest.mark.parametrize("teacher", ["CNN", "Transformer"])
def test_a_frozen_student_teaches_and_is_not_taught(make, teacher, tmp_path):
    trained = make()
    torch.save({"network_weights": trained.group[teacher].network.state_dict()}, tmp_path / "checkpoint_final.pth")
    students = {"Transformer": SEGFORMER}
    students[teacher] = {**students.get(teacher, {}), "frozen": str(tmp_path)}
    trainer = make(changes={"students": students})
    before = weights(trainer.group[teacher])
    learner = {"CNN": "Transformer", "Transformer": "CNN"}[teacher]
    result = trainer.train_step(make_semi_supervised_batch(trainer))
    assert set(result["terms"]) == {f"{learner}/supervised", f"{learner}/pseudo"}
    assert equal(weights(trainer.group[teacher]), before)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("method", STUDENTS)
def test_after_a_step_no_parameter_that_learns_is_without_gradient(make, method, configuration):
    trainer = make(method, configuration=configuration)
    result = trainer.train_step(make_semi_supervised_batch(trainer))
    assert without_gradient(trainer) == []
    assert result["loss"] == pytest.approx(sum(result["terms"].values()), rel=1e-12)
    assert set(result["weights"]) == set(result["terms"])


def test_the_quality_of_pseudo_labels_is_that_of_the_labels_a_student_gets(make):
    """As its share used, entropy and classes are: the peer makes them."""
    trainer = make()
    outputs = {"CNN": object(), "Transformer": object()}
    found = trainer.pseudo_labelers(torch.zeros(1), outputs)
    assert found == {"CNN": outputs["Transformer"], "Transformer": outputs["CNN"]}


def test_the_two_networks_of_cps_start_from_different_weights(make):
    first, second = (weights(student.network) for student in make(CPSTrainer).group)
    assert not equal(first, second)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_students_is_refused(make, count):
    with pytest.raises(CollabError) as caught:
        make(changes={"students": [{"name": f"S{i}"} for i in range(count)]})
    assert str(caught.value) == (
        f"CrossTeachingTrainer: two students teach each other, so 'students' must have 2 entries; got {count}. "
        "Name two students."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pseudo_weight": -0.1}, "setting 'pseudo_weight' must be a finite number >= 0"),
        ({"ramp_up": 1.5}, "setting 'ramp_up' must be a finite number in [0, 1]"),
        ({"threshold": 1.0}, "setting 'threshold' must be a finite number in [0, 1)"),
        ({"threshold": -0.1}, "setting 'threshold' must be a finite number in [0, 1)"),
        ({"pseudo_loss": "mse"}, "'dice', 'dice_foreground', 'dice_nnunet', 'ce', 'dice_ce', 'kl'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes=changes)
    assert message in str(caught.value)
