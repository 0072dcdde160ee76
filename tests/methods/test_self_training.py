"""Self-training: the loss by hand, views and labels turned alike, CutMix, thresholds, and who learns."""

from __future__ import annotations

import pytest
import torch
from reference_hard_labels import reference
from teaching import (
    HalfBox,
    assert_each_teaches_its_student_alone,
    batch_of,
    gradients,
    is_zero,
    make_method,
    terms_of,
    use_half_boxes,
    without_gradient,
)
from tiny import LABELS, make_semi_supervised_batch

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import Truth
from nnunet_collab.methods import self_training
from nnunet_collab.methods.self_training import SelfTrainingTrainer
from nnunet_collab.training.symmetries import Symmetry

PLAIN = {"start": 0.0, "cutmix_probability": 0.0, "deep_supervision": False}
PAIR = [{"name": "CNN"}, {"name": "Other"}]
TURN = Symmetry(1, (-1,))


@pytest.fixture
def make(tmp_path, monkeypatch):
    def made(changes=None, **options):
        return make_method(SelfTrainingTrainer, tmp_path, monkeypatch, changes={**PLAIN, **(changes or {})}, **options)

    return made


def teacher_logits(trainer, image):
    """Without dropout and gradient, of the average or of the student."""
    with torch.no_grad():
        group = trainer.teacher.group if trainer.has_teacher else trainer.group
        return group["CNN"].eval()(image).logits


def hard(logits, keep, kind, threshold=0.0):
    """Labels by argmax (sign, for regions), and the voxels whose confidence reaches the threshold."""
    if "regions" in kind:
        sure = torch.stack([p if p >= 0.5 else 1 - p for p in logits.double().sigmoid().flatten()]).view_as(logits)
        return Truth(torch.zeros_like(keep, dtype=torch.long), keep & (sure.amin(1) >= threshold), logits > 0)
    return Truth(logits.argmax(1), keep & (logits.double().softmax(1).amax(1) >= threshold))


@pytest.mark.parametrize("teacher", ["student", "average"])
@pytest.mark.parametrize("threshold", [0.0, 0.37])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", LABELS)
def test_the_loss_by_hand(make, kind, configuration, threshold, teacher):
    """nnU-Net's whole loss of the strong view, in float64, a voxel at a time, times the share that is confident."""
    threshold = threshold and (0.52 if "regions" in kind else threshold)
    changes = {"unlabeled_weight": 0.7, "threshold": threshold, "teacher": teacher, "weigh_dice_by_share": True}
    trainer = make(changes, kind=kind, configuration=configuration)
    if teacher == "average":
        with torch.no_grad():  # another network than the student, as later in a training
            for parameter in trainer.teacher.group.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    terms, batch = terms_of(trainer, kind), batch_of(trainer, kind)
    truth = hard(teacher_logits(trainer, batch.weak), batch.keep, kind, threshold)
    student = trainer.group["CNN"].train()(batch.strong[0]).logits
    share = float(truth.keep.sum() / batch.keep.sum())
    assert (share == 1) == (threshold == 0)
    assert share > 0
    want = share * reference(student.double(), truth, trainer.form)
    assert float(terms["CNN/unlabeled"].value.detach()) == pytest.approx(want, rel=1e-4)
    labeled = trainer.group["CNN"](batch.image)
    torch.testing.assert_close(terms["CNN/supervised"].value, trainer.supervised(labeled, batch.target))
    assert {key: term.weight for key, term in terms.items()} == {"CNN/supervised": 1.0, "CNN/unlabeled": 0.7}


def test_a_threshold_without_the_share_pushes_as_strongly_as_a_whole_patch(make):
    values = [
        terms_of(make({"threshold": 0.4, "weigh_dice_by_share": by_share}))["CNN/unlabeled"].value
        for by_share in (True, False)
    ]
    assert 0 < values[0] < 0.9 * values[1]


@pytest.mark.parametrize("strong_view", ["turns", "both"])
@pytest.mark.parametrize("kind", LABELS)
def test_turned_views_have_turned_labels(make, kind, strong_view, monkeypatch):
    monkeypatch.setattr(self_training, "draw_symmetry", lambda size: TURN)
    trainer = make({"strong_view": strong_view}, kind=kind)
    assert trainer.strong_views == (1 if strong_view == "both" else 0)
    terms, batch = terms_of(trainer, kind), batch_of(trainer, kind)
    labels = hard(teacher_logits(trainer, batch.weak), batch.keep, kind)
    turned = Truth(*(None if part is None else TURN(part) for part in labels))
    view = TURN(batch.strong[0] if strong_view == "both" else batch.weak)
    student = trainer.group["CNN"].train()(view).logits
    want = reference(student.double(), turned, trainer.form)
    assert float(terms["CNN/unlabeled"].value.detach()) == pytest.approx(want, rel=1e-4)


def test_the_weak_view_of_turns_has_nnunets_whole_augmentation(make):
    from nnunet_collab.data.augmentation import without_timing

    for strong_view, kinds in {"turns": "RandomTransform", "both": None, "intensities": None}.items():
        trainer = make({"strong_view": strong_view})
        rotation, dummy, _, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        planned = trainer.get_training_transforms((32, 32), rotation, None, axes, dummy, use_mask_for_norm=[False])
        names = {type(t).__name__ for t in trainer.unlabeled_views(without_timing(planned)).weak.transforms}
        assert ("RandomTransform" in names) == (kinds is not None)
        assert {"SpatialTransform", "MirrorTransform"} <= names


@pytest.mark.parametrize("mixing", ["batch", "second_batch"])
@pytest.mark.parametrize("strong_view", ["intensities", "turns"])
def test_image_label_and_place_are_turned_and_mixed_alike(make, mixing, strong_view, monkeypatch):
    use_half_boxes(monkeypatch)
    monkeypatch.setattr(self_training, "draw_symmetry", lambda size: TURN)
    turn = TURN if strong_view == "turns" else (lambda tensor: tensor)
    trainer = make({"cutmix_probability": 0.5, "mixing": mixing, "strong_view": strong_view})
    terms, batch = terms_of(trainer), batch_of(trainer)
    own, second = trainer.divide(batch)
    box = HalfBox(side=0, within_batch=second is None)

    def changed(of):
        return box(turn(of(own)), None if second is None else turn(of(second)))

    labels = changed(lambda b: hard(teacher_logits(trainer, b.weak), b.keep, "plain").labels)
    view = changed(lambda b: b.strong[0] if b.strong else b.weak)
    student = trainer.group["CNN"].train()(view).logits
    want = reference(student.double(), Truth(labels, changed(lambda b: b.keep)), trainer.form)
    assert float(terms["CNN/unlabeled"].value.detach()) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_each_term_teaches_the_student_it_names_and_no_other(make, kind, configuration):
    trainer = make({"students": PAIR}, kind=kind, configuration=configuration)
    terms = terms_of(trainer, kind)
    assert set(terms) == {f"{s['name']}/{name}" for s in PAIR for name in ("supervised", "unlabeled")}
    assert_each_teaches_its_student_alone(trainer, terms)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_weights_as_of_one_batch_add_up_to_one(make, weight):
    terms = terms_of(make({"as_one_batch": True, "unlabeled_weight": weight}))
    assert {name: term.weight for name, term in terms.items()} == pytest.approx(
        {"CNN/supervised": 1 / (1 + weight), "CNN/unlabeled": weight / (1 + weight)}
    )


def test_where_nothing_is_confident_nothing_is_learned(make):
    trainer = make({"threshold": 0.9999})
    term = terms_of(trainer)["CNN/unlabeled"]
    assert term.value == 0
    term.value.backward()
    assert all(map(is_zero, gradients(trainer.group)))


@pytest.mark.parametrize("strong_view", ["intensities", "turns", "both"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_after_a_step_no_parameter_that_learns_is_without_gradient(make, configuration, strong_view):
    changes = {"cutmix_probability": 0.5, "strong_view": strong_view, "deep_supervision": True}
    trainer = make({**changes, "batch_size": 1}, configuration=configuration)
    result = trainer.train_step(make_semi_supervised_batch(trainer))
    assert without_gradient(trainer) == []
    assert result["loss"] == pytest.approx(sum(result["terms"].values()), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.0}, "setting 'threshold' must be a finite number in [0, 1)"),
        ({"unlabeled_weight": -1}, "setting 'unlabeled_weight' must be a finite number >= 0"),
        ({"strong_view": "none"}, "one of 'intensities', 'turns', 'both'"),
        ({"teacher": "student", "ema_decay": 0.9}, "setting 'ema_decay': has no effect with the teacher 'student'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes)
    assert message in str(caught.value)
