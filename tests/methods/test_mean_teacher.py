"""Mean Teacher and UA-MT: the terms, the teacher that follows the steps that were taken, and what is published."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from teaching import (
    SEGFORMER,
    assert_each_teaches_its_student_alone,
    batch_of,
    equal,
    gradients,
    is_zero,
    make_method,
    step_that_fails,
    terms_of,
    weights,
    without_gradient,
)
from tiny import LABELS, finish_run, make_batch, make_semi_supervised_batch

from nnunet_collab.core.errors import CollabError
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.losses.consistency import MeanProbability, squared_difference
from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer, UAMTTrainer
from nnunet_collab.training.student_outputs import slice_output

METHODS = (MeanTeacherTrainer, UAMTTrainer)
FEW_PASSES = {MeanTeacherTrainer: {}, UAMTTrainer: {"mc_passes": 2, "entropy_threshold_start": 1.0}}
PAIR = [{"name": "CNN"}, {"name": "Transformer", **SEGFORMER}]


@pytest.fixture
def make(tmp_path, monkeypatch):
    return lambda trainer_class=MeanTeacherTrainer, **options: make_method(
        trainer_class, tmp_path, monkeypatch, **options
    )


def train(trainer, steps=2, kind="plain"):
    """Steps after which student, teacher and start differ from each other."""
    trainer.network.train()
    return [trainer.train_step(make_semi_supervised_batch(trainer, kind, seed)) for seed in range(steps)]


def by_hand(trainer, kind, mc_passes=0, entropy_threshold_start=1.0):
    """The supervised and the consistency value of the CNN, with the random numbers of `terms_of`."""
    batch = batch_of(trainer, kind)
    torch.manual_seed(5)
    output = trainer.network(torch.cat([batch.image, batch.weak]))["CNN"]
    count, noise, regions = len(batch.image), trainer.settings.noise, "regions" in kind

    def teacher():
        added = (torch.randn_like(batch.weak) * noise).clamp(-2 * noise, 2 * noise)
        with torch.no_grad():
            return trainer.teacher.group["CNN"].eval()(batch.weak + added).logits

    target = teacher()
    used = None
    if mc_passes:
        classes = 2 if regions else 3
        mean = MeanProbability(regions=regions)
        for _ in range(mc_passes):
            mean.add(teacher())
        used = mean.entropy() < entropy_threshold_start * math.log(classes)
    consistency = squared_difference(output.logits[count:], target, batch.keep, regions=regions, used=used)
    return trainer.supervised(slice_output(output, 0, count), batch.target), consistency


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("method", METHODS)
def test_each_term_teaches_the_student_it_names_and_no_other(make, method, kind, configuration):
    changes = {"students": PAIR, "ramp_up": 0, **FEW_PASSES[method]}
    trainer = make(method, kind=kind, configuration=configuration, changes=changes)
    train(trainer, 1, kind)
    terms = terms_of(trainer, kind)
    assert set(terms) == {f"{s['name']}/{name}" for s in PAIR for name in ("supervised", "consistency")}
    assert_each_teaches_its_student_alone(trainer, terms)
    assert all(map(is_zero, gradients(trainer.teacher.group)))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
def test_terms_are_the_losses_called_by_hand_with_the_weights_of_the_settings(make, kind, noise):
    trainer = make(kind=kind, changes={"ramp_up": 0, "noise": noise})
    train(trainer, 1, kind)
    terms = terms_of(trainer, kind)
    supervised, consistency = by_hand(trainer, kind)
    assert torch.equal(terms["CNN/supervised"].value, supervised)
    assert torch.equal(terms["CNN/consistency"].value, consistency)
    assert terms["CNN/supervised"].weight == 1.0
    assert terms["CNN/consistency"].weight == pytest.approx(0.2)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(
    ("mc_passes", "entropy_threshold_start", "ramp_up"), [(8, 0.9, 1.0), (3, 0.95, 0.3), (3, 0.95, 0.0)]
)
def test_ua_mt_counts_voxels_of_low_entropy_over_its_passes(make, kind, mc_passes, entropy_threshold_start, ramp_up):
    trainer = make(
        UAMTTrainer,
        kind=kind,
        changes={"mc_passes": mc_passes, "entropy_threshold_start": entropy_threshold_start, "ramp_up": ramp_up},
    )
    train(trainer, 1, kind)
    trainer.iteration = 0
    ramp = math.exp(-5)  # the threshold rises over the whole run, whatever the weight does
    want = by_hand(trainer, kind, mc_passes, entropy_threshold_start + (1 - entropy_threshold_start) * ramp)[1]
    terms = terms_of(trainer, kind)
    assert terms["CNN/consistency"].weight == pytest.approx(0.2 * (ramp if ramp_up else 1))
    assert torch.equal(terms["CNN/consistency"].value, want)
    assert not torch.equal(want, by_hand(trainer, kind)[1])  # some voxels are left out


def test_at_the_end_of_the_run_ua_mt_counts_every_voxel_that_is_not_a_tie(make):
    trainer = make(UAMTTrainer, changes={"ramp_up": 0, "mc_passes": 2})
    train(trainer, 1)
    trainer.iteration = trainer.settings.epochs * trainer.settings.iterations_per_epoch
    assert torch.equal(terms_of(trainer)["CNN/consistency"].value, by_hand(trainer, "plain")[1])


@pytest.mark.parametrize("ramp_up", [1.0, 0.25])
def test_the_weight_rises_over_its_share_of_the_run(make, ramp_up):
    trainer = make(changes={"epochs": 4, "iterations_per_epoch": 100, "ramp_up": ramp_up, "consistency_weight": 0.7})
    for iteration in (0, 50, 99, 100, 399):
        trainer.iteration = iteration
        share = math.floor(200 * min(1.0, iteration / (400 * ramp_up))) / 200
        want = 0.7 * math.exp(-5 * (1 - share) ** 2)
        assert terms_of(trainer)["CNN/consistency"].weight == pytest.approx(want, rel=1e-12)


def test_a_weight_of_zero_leaves_the_supervised_gradients_alone(make):
    trainer = make(changes={"consistency_weight": 0})
    train(trainer, 1)
    terms = terms_of(trainer)
    found = []
    for used in (terms.values(), [terms["CNN/supervised"]]):
        trainer.optimizers.zero_grad()
        sum(term.weight * term.value for term in used).backward(retain_graph=True)
        found.append([torch.zeros(()) if g is None else g.clone() for g in gradients(trainer.group)])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("method", METHODS)
def test_voxels_that_are_left_out_teach_nothing(make, method):
    trainer = make(method, changes=FEW_PASSES[method])
    train(trainer, 1)
    batch = make_semi_supervised_batch(trainer)
    batch["learn_mask"][:] = -1
    trainer.optimizers.zero_grad()
    consistency = trainer.batch_terms(batch)[1]
    consistency.value.backward()
    assert consistency.name == "consistency"
    assert consistency.value == 0
    assert all(map(is_zero, gradients(trainer.group)))


# ---------------------------------------------------------------- the teacher


def test_the_teacher_is_the_average_of_the_students_after_each_step(make):
    trainer = make(changes={"ema_decay": 0.6})
    average = None
    for number, seed in enumerate(range(4), start=1):
        trainer.train_step(make_semi_supervised_batch(trainer, seed=seed))
        now = {name: p.detach().double() for name, p in trainer.group.named_parameters()}
        decay = min(1 - 1 / number, 0.6)
        average = (
            now
            if average is None
            else {name: decay * average[name] + (1 - decay) * value for name, value in now.items()}
        )
        for name, p in trainer.teacher.group.named_parameters():
            torch.testing.assert_close(p.double(), average[name], rtol=1e-5, atol=1e-7)
    assert trainer.teacher.updates == 4


def test_the_backward_pass_leaves_the_teacher_without_gradient_and_unchanged(make):
    trainer = make()
    train(trainer)
    before = weights(trainer.teacher.group)
    sum(term.weight * term.value for term in terms_of(trainer).values()).backward()
    assert all(g is None for g in gradients(trainer.teacher.group))
    assert equal(weights(trainer.teacher.group), before)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_was_not_taken_leaves_the_teacher(make, where, monkeypatch):
    trainer = make()
    train(trainer)
    before, student = weights(trainer.teacher.group), weights(trainer.group)
    batch = make_semi_supervised_batch(trainer)
    step_that_fails(trainer, batch, where, monkeypatch)
    assert trainer.iteration == 3
    assert trainer.teacher.updates == 2
    assert equal(weights(trainer.teacher.group), before)
    assert equal(weights(trainer.group), student)


def test_the_teacher_predicts_without_dropout_and_without_deep_supervision(make):
    trainer = make(changes={"students": PAIR})
    trainer.network.train()
    image = make_batch(trainer)["data"]
    first, second = trainer.teacher(image), trainer.teacher(image)
    for name in ("CNN", "Transformer"):
        assert torch.equal(first[name].logits, second[name].logits)
        assert first[name].auxiliary == ()
    assert len(trainer.network(image)["CNN"].auxiliary) > 0


@pytest.mark.parametrize("deploy", ["student", "teacher"])
def test_a_resumed_run_has_student_teacher_and_count_and_steps_alike(make, tmp_path, deploy):
    trainer = make(changes={"deploy": deploy})
    train(trainer, 3)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    resumed = make(changes={"deploy": deploy, "students": {"CNN": {}}})
    resumed.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert resumed.teacher.updates == 3
    for step in (False, True):
        if step:
            for one in (trainer, resumed):
                torch.manual_seed(9)
                train(one, 1)
        assert equal(weights(resumed.group), weights(trainer.group))
        assert equal(weights(resumed.teacher.group), weights(trainer.teacher.group))
    assert not equal(weights(trainer.group), weights(trainer.teacher.group))


@pytest.mark.parametrize("deploy", ["student", "teacher"])
def test_the_deployed_network_is_validated_saved_and_published(make, deploy):
    trainer = make(changes={"deploy": deploy})
    train(trainer, 3)
    deployed, other = (trainer.group, trainer.teacher.group)[:: 1 if deploy == "student" else -1]
    assert trainer.deployed is deployed
    fold = finish_run(trainer)
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert equal(checkpoint["network_weights"], weights(deployed))
    trained = checkpoint["nnunet_collab"]["trained_weights"]
    assert trained is None if deploy == "student" else equal(trained, weights(other))
    (published,) = publish_fold(fold)
    content = torch.load(published / "checkpoint_final.pth", weights_only=True)
    assert equal(content["network_weights"], weights(deployed["CNN"].network))
    trainer.group.eval()
    with torch.no_grad():
        result = trainer.validation_step(make_batch(trainer))
        output = deployed["CNN"](make_batch(trainer)["data"])
        assert result["loss"] == pytest.approx(float(trainer.supervised(output, make_batch(trainer)["target"])))


@pytest.mark.parametrize("deploy", ["student", "teacher"])
def test_the_quality_of_pseudo_labels_is_that_of_the_teacher(make, deploy):
    trainer = make(changes={"deploy": deploy})
    train(trainer, 3)
    trainer.group.eval()
    batch = make_batch(trainer)
    with torch.no_grad():
        result = trainer.validation_step(batch)["pseudo_labels"]["CNN"]
        labels = trainer.teacher.group["CNN"](batch["data"]).logits.argmax(1)
    truth = batch["target"][0][:, 0]
    for k in (1, 2):
        assert result[0, k - 1] == ((labels == k) & (truth == k)).sum()
        assert result[1, k - 1] == (labels == k).sum() + (truth == k).sum()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("method", METHODS)
def test_after_a_step_no_parameter_that_learns_is_without_gradient(make, method, configuration):
    trainer = make(method, configuration=configuration, changes=FEW_PASSES[method])
    (result,) = train(trainer, 1)
    assert without_gradient(trainer) == []
    assert result["loss"] == pytest.approx(sum(result["terms"].values()), rel=1e-12)


# ---------------------------------------------------------------- settings


def test_a_frozen_student_is_refused(make):
    with pytest.raises(CollabError) as caught:
        make(changes={"students": [{"name": "CNN", "frozen": "somewhere"}, {"name": "CNN2"}]})
    assert str(caught.value) == (
        "MeanTeacherTrainer: the teacher is the average of the student it teaches, so every student must learn; "
        "CNN is frozen. Remove 'frozen'."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 1.0}, "setting 'ema_decay' must be a finite number in [0, 1)"),
        ({"consistency_weight": -1}, "setting 'consistency_weight' must be a finite number >= 0"),
        ({"ramp_up": -0.1}, "setting 'ramp_up' must be a finite number in [0, 1]"),
        ({"noise": -1}, "setting 'noise' must be a finite number >= 0"),
        ({"deploy": "both"}, "one of 'student', 'teacher'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes=changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mc_passes": 0}, "setting 'mc_passes' must be an integer in [1, 2147483648)"),
        ({"entropy_threshold_start": 0}, "setting 'entropy_threshold_start' must be a finite number in (0, 1]"),
    ],
)
def test_settings_of_ua_mt_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(UAMTTrainer, changes=changes)
    assert message in str(caught.value)


def test_mean_teacher_has_no_settings_of_ua_mt(make):
    with pytest.raises(CollabError, match="mc_passes"):
        make(changes={"mc_passes": 2})


def test_uamt_keeps_no_pass_until_the_next(make):
    trainer = make(UAMTTrainer, changes={"mc_passes": 5})
    teacher, alive, refs = trainer.teacher, [], []

    def watched(image):
        alive.append(sum(ref() is not None for ref in refs))
        outputs = teacher(image)
        refs.extend(weakref.ref(output.logits) for output in outputs.values())
        return outputs

    watched.group = teacher.group
    trainer.teacher = watched
    trainer._certain_voxels(batch_of(trainer).weak)
    assert alive == [0] * 5
