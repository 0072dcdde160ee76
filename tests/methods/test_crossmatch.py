"""CrossMatch: all terms by hand from separate passes, its totals and switches, and dropout that is never left on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
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
from tiny import LABELS, make_batch, make_semi_supervised_batch

from nnunet_collab.core.errors import CollabError
from nnunet_collab.losses.pseudo_labels import pseudo_label_loss
from nnunet_collab.methods.crossmatch import CrossMatchSettings, CrossMatchTrainer

NAMES = ("supervised", "image", "teacher", "assistant")
NO_BOX = {"cutmix_probability": 0.0}


def low(kind):
    """A threshold that random weights reach."""
    return {"tau": 0.55 if "regions" in kind else 0.38}


@pytest.fixture
def make(tmp_path, monkeypatch):
    return lambda **options: make_method(CrossMatchTrainer, tmp_path, monkeypatch, **options)


@pytest.fixture
def halves(monkeypatch):
    """Dropout that is no chance: it drops the first channels, as many as the rate says."""

    def drop(features, rate, training):
        assert training
        kept = torch.ones_like(features[:1, :, :1])
        kept[:, : round(rate * features.shape[1])] = 0
        return features * kept.flatten(2)[:, :, :1].view(1, -1, *[1] * (features.ndim - 2)) / (1 - rate)

    monkeypatch.setattr(F, "dropout2d", drop)
    monkeypatch.setattr(F, "dropout3d", drop)
    return drop


def separately(trainer, image, rate=0.0, at="all", drop=None):
    """Logits of one view alone, each through an encoder pass and a decoder pass of its own."""
    network = trainer.group["CNN"].network
    features = list(network.encoder(image))
    for level in range(len(features)):
        if rate and (at == "all" or level == len(features) - 1):
            features[level] = drop(features[level], rate, training=True)
    return network.decoder(features)[0]


def no_box(tensor, second=None):
    return tensor


def by_hand(trainer, batch, kind, drop, *, boxes=(no_box, no_box), second=None, at="all", **options):
    """The L_ip, L_tkd and L_dkd of the module's docstring, one view and one perturbed_pass at a time."""
    options = {"criterion": "dice", "threshold": trainer.settings.tau, "smooth": 1e-4, **options}
    rates = trainer.settings.drop_rates

    def distance(student, teacher, keep):
        return pseudo_label_loss(student, teacher, keep, regions="regions" in kind, **options)

    views = [boxes[i](view, second and second.strong[i]) for i, view in enumerate(batch.strong)]
    keep_1, keep = (box(batch.keep, second and second.keep) for box in boxes)
    s1, s2 = (separately(trainer, view) for view in views)
    (w, w_w, w_s), (s2_w, s2_s) = (
        [separately(trainer, batch.weak, rate, at, drop) for rate in (0.0, *rates)],
        [separately(trainer, views[1], rate, at, drop) for rate in rates],
    )
    fill = [None] * 3
    if second is not None:
        fill = [separately(trainer, second.weak, rate, at, drop) for rate in (0.0, *rates)]
    t, t_w, t_s = (boxes[1](x, y) for x, y in zip((w, w_w, w_s), fill, strict=True))
    image = (distance(s1, boxes[0](w, fill[0]), keep_1) + distance(s2, t, keep)) / 2
    tkd = (
        distance(w_w, w, batch.keep) + distance(w_s, w, batch.keep) + distance(s2_w, t, keep) + distance(s2_s, t, keep)
    ) / 4
    dkd = (distance(s2_w, t_w, keep) + distance(s2_s, t_s, keep)) / 2
    return {"image": image, "teacher": tkd, "assistant": dkd}


def assert_terms_are(terms, want):
    for name, value in want.items():
        torch.testing.assert_close(terms[f"CNN/{name}"].value, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", LABELS)
def test_each_term_teaches_the_one_student(make, kind, configuration):
    trainer = make(kind=kind, configuration=configuration, changes={"tau": 0.5 if "regions" in kind else 0.34})
    terms = terms_of(trainer, kind)
    assert set(terms) == {f"CNN/{name}" for name in NAMES}
    assert_each_teaches_its_student_alone(trainer, terms)


@pytest.mark.parametrize(
    ("kind", "configuration"),
    [("plain", "2d"), ("ignore", "3d_fullres"), ("regions", "2d"), ("regions_ignore", "3d_fullres")],
)
def test_batched_flows_equal_separate_passes(make, halves, kind, configuration):
    trainer = make(kind=kind, configuration=configuration, changes={**low(kind), **NO_BOX})
    batch = batch_of(trainer, kind)
    terms = terms_of(trainer, kind)
    want = by_hand(trainer, batch, kind, halves)
    supervised = trainer.supervised(trainer.group["CNN"](batch.image), batch.target)
    assert_terms_are(terms, {"supervised": supervised, **want})
    assert len({float(value.detach()) for value in want.values()}) == 3


@pytest.mark.parametrize("kind", ["plain", "regions"])
@pytest.mark.parametrize("mode", ["batch", "second_batch"])
def test_image_label_assistants_and_place_are_mixed_alike(make, halves, kind, mode, monkeypatch):
    use_half_boxes(monkeypatch)
    trainer = make(kind=kind, changes={**low(kind), "mixing": mode})
    terms = terms_of(trainer, kind)
    own, second = trainer.divide(batch_of(trainer, kind))
    assert (second is None) == (mode == "batch")
    boxes = [HalfBox(side=side, within_batch=second is None) for side in (0, 1)]
    assert_terms_are(terms, by_hand(trainer, own, kind, halves, boxes=boxes, second=second))


@pytest.mark.parametrize(
    ("changes", "factors"),
    [
        ({}, (1, 1, 1)),  # equation 12, with nnU-Net's whole loss
        ({"image_weight": 3.0, "distillation_weight": 0.5, "loss_scale": 0.5}, (0.5, 1.5, 0.25)),
    ],
)
def test_weights_are_relative_to_nnunets_loss_and_scaled_as_a_whole(make, changes, factors):
    terms = terms_of(make(changes={**changes, "eta": 0.3}))
    of_sup, of_ip, of_kd = factors
    want = {"supervised": of_sup, "image": of_ip, "teacher": of_kd * 0.7, "assistant": of_kd * 0.3}
    assert {name: terms[f"CNN/{name}"].weight for name in NAMES} == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"criterion": "dice_foreground"}, {"criterion": "dice_foreground"}),
        ({"criterion": "ce"}, {"criterion": "ce"}),
        ({"criterion": "kl", "temperature": 2.0}, {"criterion": "kl", "temperature": 2.0}),
        ({"smooth": 10.0}, {"smooth": 10.0}),
        ({"tau": 0.45}, {"threshold": 0.45}),
        ({"performance_gap": 0.0}, {}),
        ({"performance_gap": 0.8}, {}),
        ({"perturb": "bottleneck"}, {"at": "bottleneck"}),
    ],
)
def test_every_switch_reaches_its_losses(make, halves, changes, options):
    trainer = make(changes={**low("plain"), **NO_BOX, **changes})
    terms, batch = terms_of(trainer), batch_of(trainer)
    assert_terms_are(terms, by_hand(trainer, batch, "plain", halves, **options))
    default = make(changes={**low("plain"), **NO_BOX})
    before = terms_of(default)
    changed = [name for name in NAMES if abs(terms[f"CNN/{name}"].value - before[f"CNN/{name}"].value) > 1e-5]
    assert {"teacher", "assistant"} <= set(changed)


@pytest.mark.parametrize(("gap", "rates"), [(0.5, (0.25, 0.75)), (0, (0.5, 0.5)), (0.9, (0.05, 0.95))])
def test_dropout_rates_lie_the_gap_apart_around_one_half(gap, rates):
    assert CrossMatchSettings(performance_gap=gap).drop_rates == pytest.approx(rates)


def test_the_threshold_of_the_code_for_la_rises_whatever_the_length_of_the_run(make):
    trainer = make(changes={"tau": 0.85, "tau_schedule": "la_code", "epochs": 1})
    for iteration, share in ((0, 0), (8500, 0.5), (17000, 1), (30000, 1)):
        trainer.iteration = iteration
        want = (0.85 + 0.15 * math.exp(-5 * (1 - share) ** 2)) * math.log(2)
        assert trainer.threshold() == pytest.approx(want, rel=1e-12)
    constant = make()
    constant.iteration = 9999
    assert constant.threshold() == 0.95


def test_pseudo_labels_carry_no_gradient(make, halves):
    """Gradients equal those of terms whose teachers were made without any graph."""
    trainer = make(changes={**low("plain"), **NO_BOX})
    batch = batch_of(trainer)
    terms = terms_of(trainer)
    sum(terms[f"CNN/{name}"].value for name in NAMES[1:]).backward()
    got = [None if g is None else g.clone() for g in gradients(trainer.group)]
    trainer.optimizers.zero_grad()
    sum(by_hand(trainer, batch, "plain", halves).values()).backward()
    for a, b in zip(got, gradients(trainer.group), strict=True):
        if b is not None and b.norm() > 1e-5:
            torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-5)


def test_where_nothing_is_confident_nothing_is_learned(make):
    trainer = make(changes={"tau": 0.9999})
    for name, term in ((t.name, t) for t in terms_of(trainer).values()):
        if name != "supervised":
            assert term.value == 0
            term.value.backward(retain_graph=True)
    assert all(map(is_zero, gradients(trainer.group)))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_share_of_zero_leaves_its_term_out(make, eta):
    trainer = make(changes={**low("plain"), "eta": eta})
    assert terms_of(trainer).keys() == {f"CNN/{name}" for name in NAMES} - {
        "CNN/assistant" if eta == 0 else "CNN/teacher"
    }


def test_nothing_is_dropped_in_validation(make, monkeypatch):
    trainer = make()
    trainer.train_step(make_semi_supervised_batch(trainer))

    def never(*args, **kwargs):
        raise AssertionError("dropped")

    monkeypatch.setattr(F, "dropout2d", never)
    monkeypatch.setattr(F, "dropout3d", never)
    batch = make_batch(trainer)
    results = []
    for training in (False, True):  # even if somebody forgets to switch the mode
        trainer.group.train(training)
        with torch.no_grad():
            results.append(trainer.validation_step(batch))
            results.append({"loss": float(trainer.group["CNN"].network(batch["data"])[0].sum())})
    assert results[0]["loss"] == results[2]["loss"]
    assert results[1] == results[3]
    with pytest.raises(AssertionError, match="dropped"):
        trainer.train_step(make_semi_supervised_batch(trainer))


def test_a_mixing_image_is_never_its_own_partner(make):
    trainer = make(changes={"batch_size": 3, "cutmix_probability": 1.0})
    batch = batch_of(trainer)
    for seed in range(50):
        torch.manual_seed(seed)
        cut = trainer.draw_cutmix(batch)
        names = torch.arange(3.0).view(3, 1, 1).expand(batch.keep.shape)
        mixed = cut(names)
        assert cut.boxes.flatten(1).any(1).all()
        for sample in range(3):
            inside = mixed[sample][cut.boxes[sample]].unique().tolist()
            assert len(inside) == 1
            assert inside != [sample]
            assert mixed[sample][~cut.boxes[sample]].unique().tolist() in ([sample], [])


def test_a_single_unlabeled_sample_is_mixed_with_a_further_image(make):
    trainer = make(changes={**low("plain"), "batch_size": 1})
    assert (trainer.unlabeled_per_batch, trainer.unlabeled_crops_per_batch()) == (1, 2)
    result = trainer.train_step(make_semi_supervised_batch(trainer))
    assert set(result["terms"]) == {f"CNN/{name}" for name in NAMES}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("network", ["plans", "segformer_b0"])
def test_after_a_step_no_parameter_that_learns_is_without_gradient(make, configuration, network):
    student = {"name": "One", "network": network}
    trainer = make(configuration=configuration, changes={"students": [student]})
    before = weights(trainer.group)
    result = trainer.train_step(make_semi_supervised_batch(trainer))
    assert without_gradient(trainer) == []
    assert not equal(weights(trainer.group), before)
    assert result["loss"] == pytest.approx(sum(result["terms"].values()), rel=1e-12)


@pytest.mark.parametrize("mode", ["batch", "second_batch"])
def test_what_teaches_is_not_dropped_by_the_network_itself(make, halves, monkeypatch, mode):
    """A SegFormer drops branches at random: with the method's own dropout fixed, targets do not depend on chance."""
    student = {"name": "T", **SEGFORMER, "arch": {"drop_path": 0.9, "head_dropout": 0.5}}
    trainer = make(changes={**low("plain"), "students": [student], "mixing": mode, "cutmix_probability": 0.0})
    targets, students = [], []
    monkeypatch.setattr(
        trainer,
        "_distance",
        lambda own, teacher, keep: students.append(own.logits) or targets.append(teacher) or own.logits.mean(),
    )
    batch = batch_of(trainer)
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer.semi_supervised_terms(batch)
    half = len(targets) // 2
    independent = [i for i in range(half) if torch.equal(targets[i], targets[half + i])]
    assert independent == list(range(half)) == list(range(8))
    assert not any(torch.equal(a, b) for a, b in zip(students[:half], students[half:], strict=True))


def test_a_network_without_encoder_is_refused_before_anything_is_written(make):
    student = {"name": "N", "network": "torch.nn.Conv2d", "decoder_tap": "", "encoder_tap": "",
               "arch": {"kernel_size": 3, "padding": 1}}  # fmt: skip
    with pytest.raises(CollabError, match="needs a submodule called 'encoder'; ForeignNetwork has none"):
        make(changes={"students": [student]})


def test_more_than_one_student_is_refused(make):
    with pytest.raises(CollabError) as caught:
        make(changes={"students": [{"name": "CNN"}, {"name": "Transformer", **SEGFORMER}]})
    assert str(caught.value) == (
        "CrossMatchTrainer: one network learns from itself, so 'students' must have 1 entry; got 2. Name one student."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 1.0}, "setting 'tau' must be a finite number in (0, 1)"),
        ({"tau": 0}, "setting 'tau' must be a finite number in (0, 1)"),
        ({"tau_ramp_iterations": 0}, "setting 'tau_ramp_iterations' must be an integer in [1, 2147483648)"),
        ({"eta": 1.1}, "setting 'eta' must be a finite number in [0, 1]"),
        ({"performance_gap": 1.0}, "setting 'performance_gap' must be a finite number in [0, 1)"),
        ({"temperature": 0}, "setting 'temperature' must be a finite number > 0"),
        ({"temperature": 2.0}, "setting 'temperature': has no effect with criterion 'dice'"),
        ({"tau_ramp_iterations": 9}, "setting 'tau_ramp_iterations': has no effect with a constant tau"),
        ({"smooth": 0}, "setting 'smooth' must be a finite number > 0"),
        ({"image_weight": -1}, "setting 'image_weight' must be a finite number >= 0"),
        ({"teacher": "average", "ema_decay": 1.0}, "setting 'ema_decay' must be a finite number in [0, 1)"),
        ({"ema_decay": 0.5}, "setting 'ema_decay': has no effect with the teacher 'student'"),
        ({"loss_scale": 0}, "setting 'loss_scale' must be a finite number > 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes=changes)
    assert message in str(caught.value)
