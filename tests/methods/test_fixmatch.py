"""FixMatch and UniMatch: the terms by hand, CutMix from the batch or from a second batch of images, and who learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from teaching import (
    SEGFORMER,
    HalfBox,
    assert_each_teaches_its_student_alone,
    batch_of,
    equal,
    gradients,
    is_zero,
    make_method,
    terms_of,
    use_half_boxes,
    weights,
    without_gradient,
)
from tiny import LABELS, make_semi_supervised_batch

from nnunet_collab.core.errors import CollabError
from nnunet_collab.losses.pseudo_labels import pseudo_label_loss
from nnunet_collab.methods.fixmatch import FixMatchTrainer, UniMatchTrainer
from nnunet_collab.networks.perturbation import PerturbedPass

METHODS = (FixMatchTrainer, UniMatchTrainer)
PAIR = [{"name": "CNN"}, {"name": "Transformer", **SEGFORMER}]
TERMS = {FixMatchTrainer: ("supervised", "strong"), UniMatchTrainer: ("supervised", "strong", "feature")}
LOW = {"tau": 0.4}  # that random weights reach
NO_BOX = {"cutmix_probability": 0.0}


@pytest.fixture
def make(tmp_path, monkeypatch):
    return lambda trainer_class=FixMatchTrainer, **options: make_method(trainer_class, tmp_path, monkeypatch, **options)


def clean(trainer, image, name="CNN"):
    """Logits without dropout and gradient."""
    with torch.no_grad():
        return trainer.group[name].eval()(image).logits


def distance(trainer, student, teacher, keep, kind="plain", **options):
    options = {"criterion": "dice", "threshold": trainer.settings.tau, **options}
    return pseudo_label_loss(student, teacher, keep, regions="regions" in kind, **options)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("method", METHODS)
def test_each_term_teaches_the_student_it_names_and_no_other(make, method, kind, configuration):
    low = {"tau": 0.5 if "regions" in kind else 0.35}
    trainer = make(method, kind=kind, configuration=configuration, changes={**low, "students": PAIR})
    terms = terms_of(trainer, kind)
    assert set(terms) == {f"{s['name']}/{name}" for s in PAIR for name in TERMS[method]}
    assert_each_teaches_its_student_alone(trainer, terms)


@pytest.mark.parametrize("kind", LABELS)
def test_fixmatch_by_hand(make, kind):
    low = {"tau": 0.6 if "regions" in kind else 0.4}
    trainer = make(kind=kind, changes={**low, **NO_BOX})
    terms, batch = terms_of(trainer, kind), batch_of(trainer, kind)
    # One sample of each kind at a time: with instance normalization this is the same network.
    labeled, strong = (trainer.group["CNN"].train()(image) for image in (batch.image, batch.strong[0]))
    want = distance(trainer, strong.logits, clean(trainer, batch.weak), batch.keep, kind)
    torch.testing.assert_close(terms["CNN/supervised"].value, trainer.supervised(labeled, batch.target))
    torch.testing.assert_close(terms["CNN/strong"].value, want)
    assert {key: term.weight for key, term in terms.items()} == {"CNN/supervised": 1.0, "CNN/strong": 1.0}


@pytest.mark.parametrize("kind", LABELS)
def test_unimatch_by_hand(make, kind):
    low = {"tau": 0.6 if "regions" in kind else 0.4}
    trainer = make(UniMatchTrainer, kind=kind, changes={**low, **NO_BOX})
    terms, batch = terms_of(trainer, kind), batch_of(trainer, kind)
    teacher = clean(trainer, batch.weak)
    student = trainer.group["CNN"].train()
    strong = [distance(trainer, student(view).logits, teacher, batch.keep, kind) for view in batch.strong]
    torch.testing.assert_close(terms["CNN/strong"].value, (strong[0] + strong[1]) / 2)
    # The drop is the only random thing; the same numbers are drawn for as many samples in the same order.
    count = len(batch.image) + 3 * len(batch.weak)
    torch.manual_seed(5)
    [trainer.draw_cutmix(batch) for _ in range(2)]
    images = torch.cat([batch.image, *batch.strong, batch.weak])
    dropped = student(images, [PerturbedPass(count - len(batch.weak), count, 0.5)]).logits[count:]
    torch.testing.assert_close(terms["CNN/feature"].value, distance(trainer, dropped, teacher, batch.keep, kind))
    # L_sup + [L_s1 + L_s2] / 4 + L_fp / 2
    assert {key: term.weight for key, term in terms.items()} == {
        "CNN/supervised": 1.0, "CNN/strong": 0.5, "CNN/feature": 0.5,
    }  # fmt: skip
    assert strong[0] != strong[1]


def test_features_are_dropped_from_the_weak_view_at_the_rate_of_the_settings(make, monkeypatch):
    trainer = make(UniMatchTrainer, changes={**LOW, "feature_drop": 0.25})
    seen = []
    network = trainer.network
    trainer.network = lambda image, perturbed_passes, *more: (
        seen.append((image, perturbed_passes)) or network(image, perturbed_passes, *more)
    )
    batch = batch_of(trainer)
    terms_of(trainer)
    ((image, perturbed_passes),) = seen
    assert [(perturbed_pass.rate, perturbed_pass.at) for perturbed_pass in perturbed_passes] == [(0.25, "all")]
    assert torch.equal(image[perturbed_passes[0].start : perturbed_passes[0].stop], batch.weak)


@pytest.mark.parametrize("mixing_mode", ["batch", "second_batch"])
@pytest.mark.parametrize("method", METHODS)
def test_image_label_and_place_are_mixed_alike(make, method, mixing_mode, monkeypatch):
    use_half_boxes(monkeypatch)
    trainer = make(method, changes={**LOW, "mixing": mixing_mode})
    terms, batch = terms_of(trainer), batch_of(trainer)
    assert len(batch.weak) == (4 if mixing_mode == "second_batch" else 2)
    own, second = trainer.divide(batch)
    assert (second is None) == (mixing_mode == "batch")
    teachers = [clean(trainer, own.weak), None if second is None else clean(trainer, second.weak)]
    student = trainer.group["CNN"].train()
    values = []
    for i, view in enumerate(own.strong):
        box = HalfBox(side=i, within_batch=second is None)
        mixed = box(view, second and second.strong[i])
        keep = box(own.keep, second and second.keep)
        values.append(distance(trainer, student(mixed).logits, box(*teachers), keep))
    torch.testing.assert_close(terms["CNN/strong"].value, torch.stack(values).mean())


@pytest.mark.parametrize("method", METHODS)
def test_a_single_unlabeled_sample_is_mixed_with_a_further_image(make, method):
    trainer = make(method, changes={**LOW, "batch_size": 1})
    assert (trainer.unlabeled_per_batch, trainer.unlabeled_crops_per_batch()) == (1, 2)
    trainer.train_step(make_semi_supervised_batch(trainer))
    without = make(method, changes={**LOW, **NO_BOX, "batch_size": 1})
    assert without.unlabeled_crops_per_batch() == 1
    without.train_step(make_semi_supervised_batch(without))
    log = "".join(path.read_text() for path in sorted(Path(trainer.output_folder).glob("training_log*.txt")))
    assert "one unlabeled sample per batch: CutMix needs a second image for each" in log


@pytest.mark.parametrize(
    ("changes", "options"),
    [({"criterion": "ce"}, {"criterion": "ce"}), ({"tau": 0.5}, {"threshold": 0.5})],
)
def test_every_switch_reaches_the_loss(make, changes, options):
    trainer = make(changes={**LOW, **NO_BOX, **changes})
    value, batch = terms_of(trainer)["CNN/strong"].value, batch_of(trainer)
    student, teacher = trainer.group["CNN"].train()(batch.strong[0]).logits, clean(trainer, batch.weak)
    torch.testing.assert_close(value, distance(trainer, student, teacher, batch.keep, **options))
    other = distance(trainer, student, teacher, batch.keep, criterion="dice", threshold=0.4)
    assert abs(value - other) > 1e-4


def test_weights_of_the_settings_are_those_of_the_terms(make):
    trainer = make(UniMatchTrainer, changes={"strong_weight": 3, "feature_weight": 0.2, "loss_scale": 0.5})
    assert {term.name: term.weight for term in terms_of(trainer).values()} == {
        "supervised": 0.5, "strong": 1.5, "feature": 0.1,
    }  # fmt: skip


def test_a_feature_weight_of_zero_makes_unimatch_fixmatch_with_two_views(make):
    assert set(terms_of(make(UniMatchTrainer, changes={"feature_weight": 0}))) == {"CNN/supervised", "CNN/strong"}


def test_a_strong_weight_of_zero_leaves_the_labels_alone(make):
    assert set(terms_of(make(changes={**LOW, "strong_weight": 0}))) == {"CNN/supervised"}


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_is_confident_nothing_is_learned(make, method):
    trainer = make(method, changes={"tau": 0.9999})
    for term in terms_of(trainer).values():
        if term.name == "supervised":
            continue
        assert term.value == 0
        term.value.backward(retain_graph=True)
    assert all(map(is_zero, gradients(trainer.group)))


@pytest.mark.parametrize("method", METHODS)
def test_the_weak_view_is_a_label_and_gives_no_gradient(make, method):
    """The gradient of the strong term is that of the strong views: a weak view with a gradient would add its own."""
    trainer = make(method, changes={**LOW, **NO_BOX, "feature_weight": 0.0})
    batch = batch_of(trainer)
    terms_of(trainer)["CNN/strong"].value.backward()
    got = [g.clone() for g in gradients(trainer.group["CNN"]) if g is not None]
    trainer.optimizers.zero_grad()
    teacher, student = clean(trainer, batch.weak), trainer.group["CNN"].train()
    values = [distance(trainer, student(view).logits, teacher, batch.keep) for view in batch.strong]
    torch.stack(values).mean().backward()
    want = [g for g in gradients(trainer.group["CNN"]) if g is not None]
    for a, b in zip(got, want, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_student_is_not_taught(make, method, tmp_path):
    trained = make(method)
    torch.save({"network_weights": trained.group["CNN"].network.state_dict()}, tmp_path / "checkpoint_final.pth")
    students = [{"name": "CNN"}, {"name": "Frozen", "frozen": str(tmp_path)}]
    trainer = make(method, changes={**LOW, "students": students})
    before = weights(trainer.group["Frozen"])
    result = trainer.train_step(make_semi_supervised_batch(trainer))
    assert set(result["terms"]) == {f"CNN/{name}" for name in TERMS[method]}
    assert equal(weights(trainer.group["Frozen"]), before)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("method", METHODS)
def test_after_a_step_no_parameter_that_learns_is_without_gradient(make, method, configuration):
    trainer = make(method, configuration=configuration)
    result = trainer.train_step(make_semi_supervised_batch(trainer))
    assert without_gradient(trainer) == []
    assert result["loss"] == pytest.approx(sum(result["terms"].values()), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_what_teaches_is_not_dropped_by_the_network_itself(make, method, monkeypatch):
    student = {"name": "T", **SEGFORMER, "arch": {"drop_path": 0.9, "head_dropout": 0.5}}
    trainer = make(method, changes={**LOW, **NO_BOX, "students": [student]})
    targets = []
    monkeypatch.setattr(trainer, "_distance", lambda own, teacher, keep: targets.append(teacher) or own.logits.mean())
    batch = batch_of(trainer)
    want = clean(trainer, batch.weak, "T")
    trainer.group.train()
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer.semi_supervised_terms(batch)
    assert targets
    assert all(torch.equal(target, want) for target in targets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 0.0}, "setting 'tau' must be a finite number in (0, 1)"),
        ({"tau": 1.0}, "setting 'tau' must be a finite number in (0, 1)"),
        ({"strong_weight": -1}, "setting 'strong_weight' must be a finite number >= 0"),
        ({"feature_weight": -1}, "setting 'feature_weight' must be a finite number >= 0"),
        ({"feature_drop": 1.0}, "setting 'feature_drop' must be a finite number in [0, 1)"),
        ({"feature_drop": 0.2}, "setting 'feature_drop': has no effect with feature_weight 0"),
        ({"cutmix_probability": 1.1}, "setting 'cutmix_probability' must be a finite number in [0, 1]"),
        ({"mixing": "other"}, "one of 'batch', 'second_batch'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes=changes)
    assert message in str(caught.value)
