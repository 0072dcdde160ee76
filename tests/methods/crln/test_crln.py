"""CRLN: every term and the gradient of mu by hand."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from crln_in_tests import LOW, NAMES, each_configuration, each_kind, look, make_crln, rectified, scatter
from drawing import class_by_class
from teaching import HalfBox, batch_of, terms_of, use_half_boxes

import nnunet_collab.losses.positive_supervision as positive_supervision_module
from nnunet_collab.losses.positive_supervision import Supervision, positive_supervision
from nnunet_collab.methods.crln import trainer as crln

NO_CHANCE = {**LOW, "noise": 0.0, "temperature": 0.05}


@pytest.fixture
def make(tmp_path, monkeypatch):
    return partial(make_crln, tmp_path, monkeypatch)


@pytest.fixture
def no_chance(monkeypatch):
    """CutMix takes halves, and CPS every n-th voxel."""
    use_half_boxes(monkeypatch)
    monkeypatch.setattr(
        positive_supervision_module,
        "_draw",
        class_by_class(lambda voxels, count: voxels[torch.arange(count) * 7 % len(voxels)]),
    )


# ---------------------------------------------------------------- by hand


def rows(tensor, keep):
    """The classes' values of every kept voxel."""
    return tensor.detach().movedim(1, -1)[keep].tolist()


def log_softmax(row):
    norm = max(row) + math.log(sum(math.exp(v - max(row)) for v in row))
    return [v - norm for v in row]


def ce_and_dice(logits, labels, keep):
    """nnU-Net's loss with batch Dice over the kept voxels: mean cross-entropy - mean Dice of classes 1 and 2."""
    ce, overlap, predicted, real, count = 0.0, [0.0] * 3, [0.0] * 3, [0.0] * 3, 0
    for row, label in zip(rows(logits, keep), labels[keep].tolist(), strict=True):
        log_p = log_softmax(row)
        ce -= log_p[label]
        count += 1
        real[label] += 1
        overlap[label] += math.exp(log_p[label])
        predicted = [p + math.exp(q) for p, q in zip(predicted, log_p, strict=True)]
    dice = [(2 * overlap[k] + 1e-5) / (predicted[k] + real[k] + 1e-5) for k in (1, 2)]
    return ce / max(count, 1) - sum(dice) / 2


def pseudo(student, teacher, keep, tau):
    """Equation 2."""
    total = 0.0
    for own, other in zip(rows(student, keep), rows(teacher, keep), strict=True):
        log_q = log_softmax(other)
        if math.exp(max(log_q)) >= tau:
            total -= log_softmax(own)[log_q.index(max(log_q))]
    return total / int(keep.sum())


def by_hand(trainer, kind, *, after_start=True, mixed=True):
    """Values of all terms, and the loss of mu as a function of its raw parameter."""
    own, second = trainer.divide(batch_of(trainer, kind))
    (student,), (teacher,) = trainer.group, trainer.teacher.group

    def box(tensor, other):
        if not mixed:
            return tensor
        return HalfBox(side=0, within_batch=second is None)(tensor, other)

    truth = own.truth
    with torch.no_grad():
        z_l, m_l, f_l = look(student, own.image)
        z_u, _, f_u = look(student, box(own.weak, second and second.weak))
        labels = []
        for weak in (own.weak, second.weak if second else None):
            if weak is None:
                labels.append(None)
                continue
            z, m, _ = look(teacher, weak)
            mu = trainer.rectifier.mu.item() if after_start else 1.0
            labels.append(rectified(z, m, mu))
        target = box(*labels)
        keep = box(own.keep, second and second.keep)
        q = target.softmax(1)
        known = Supervision(
            torch.cat([truth.labels, q.argmax(1)]),
            torch.cat([truth.keep, keep & (q.amax(1) > trainer.settings.tau_weak)]),
            torch.cat([z_l, z_u]).softmax(1),
        )
        s = trainer.settings
        contrast = positive_supervision(
            student.heads["projection"],
            torch.cat([f_l, f_u]),
            student.heads["interaction"].prototypes,
            known,
            tau=s.tau,
            xi=s.xi,
            temperature=s.temperature,
            positives="both",
            anchors=s.anchors,
            negatives=s.negatives,
        )

    def loss_of_mu(raw):
        return ce_and_dice(rectified(z_l, m_l, 1 / (1 + math.exp(-raw))), truth.labels, truth.keep)

    values = {
        "supervised": trainer.supervised(student(own.image), own.target).item(),
        "relations": ce_and_dice(m_l, truth.labels, truth.keep),
        "pseudo": pseudo(z_u, target, keep, s.tau),
        "contrast": contrast.item(),
    }
    return values, loss_of_mu


@pytest.mark.parametrize("mixing", ["batch", "second_batch"])
@each_configuration
@each_kind
def test_terms_and_the_gradient_of_mu_are_the_equations_by_hand(make, no_chance, kind, configuration, mixing):
    trainer = scatter(make(kind=kind, configuration=configuration, changes={**NO_CHANCE, "mixing": mixing}))
    terms = terms_of(trainer, kind)
    values, loss_of_mu = by_hand(trainer, kind)
    assert set(terms) == {f"CNN/{name}" for name in NAMES}
    for name, want in values.items():
        assert abs(want) > 1e-3
        assert terms[f"CNN/{name}"].value.item() == pytest.approx(want, rel=2e-4, abs=1e-5), name
    raw, h = trainer.rectifier.raw.item(), 1e-4
    slope = (loss_of_mu(raw + h) - loss_of_mu(raw - h)) / (2 * h)
    assert trainer.rectifier.raw.grad.item() == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_weights_are_those_of_the_settings(make):
    changes = {"relations_weight": 0.6, "unlabeled_weight": 0.7, "contrast_weight": 0.2, "loss_scale": 0.5}
    assert {key: term.weight for key, term in terms_of(make(changes=changes)).items()} == {
        "CNN/supervised": 0.5,
        "CNN/relations": 0.3,
        "CNN/pseudo": 0.35,
        "CNN/contrast": 0.1,
    }


def test_equation_15_weighs_all_its_terms_alike(make):
    assert {term.weight for term in terms_of(make()).values()} == {1.0}


def test_the_weight_of_pseudo_labels_may_rise(make):
    trainer = make(changes={"epochs": 4, "iterations_per_epoch": 100, "ramp_up": 0.5})
    for iteration, want in ((0, math.exp(-5)), (100, math.exp(-1.25)), (200, 1.0), (300, 1.0)):
        trainer.iteration = iteration
        terms = terms_of(trainer)
        assert terms["CNN/pseudo"].weight == terms["CNN/contrast"].weight == pytest.approx(want)
        assert terms["CNN/relations"].weight == 1


@pytest.mark.parametrize("iteration", [0, 2, 3, 4])
def test_before_its_start_labels_are_the_teachers_own(make, no_chance, iteration):
    trainer = scatter(make(changes={**NO_CHANCE, "rectify_from_iteration": 3}))
    trainer.iteration = iteration
    terms = terms_of(trainer)
    values = [by_hand(trainer, "plain", after_start=after)[0] for after in (False, True)]
    for name in ("pseudo", "contrast"):
        assert values[0][name] != pytest.approx(values[1][name], rel=2e-4)
        assert terms[f"CNN/{name}"].value.item() == pytest.approx(values[iteration >= 3][name], rel=2e-5)


def test_soft_targets_are_the_whole_distribution(make):
    changes = {"soft_target": True, "noise": 0.0, "cutmix_probability": 0.0}
    trainer = scatter(make(changes=changes))
    batch = batch_of(trainer)
    with torch.no_grad():
        z, m, _ = look(next(iter(trainer.teacher.group)), batch.weak)
        student, _, _ = look(trainer.group["CNN"], batch.weak)
    q = rectified(z, m, trainer.rectifier.mu.item()).softmax(1)
    kl = (q * (q.log() - student.double().log_softmax(1))).sum(1)
    want = kl[(q.amax(1) >= trainer.settings.tau) & batch.keep].sum() / batch.keep.sum()
    assert terms_of(trainer)["CNN/pseudo"].value.item() == pytest.approx(want.item(), rel=1e-4)


def test_thresholds_and_mu_of_values_as_printed_are_not_of_their_shares(make, monkeypatch):
    """Equation 8 without normalization: y + (1 - mu) softmax(M), whose sum is 2 - mu."""
    changes = {
        "rectification_space": "probability_raw",
        "tau": 0.8,
        "tau_weak": 0.7,
        "noise": 0.0,
        "cutmix_probability": 0.0,
    }
    trainer = scatter(make(changes=changes))
    known = []
    monkeypatch.setattr(crln, "positive_supervision", lambda *args, **_: known.append(args[3]) or torch.zeros(()))
    terms = terms_of(trainer)
    batch, s, mu = batch_of(trainer), trainer.settings, trainer.rectifier.mu.item()
    with torch.no_grad():
        z, m, _ = look(next(iter(trainer.teacher.group)), batch.weak)
        values = z.softmax(1) + (1 - mu) * m.softmax(1)
        student, _, _ = look(trainer.group["CNN"], batch.weak)
        z_l, m_l, _ = look(trainer.group["CNN"], batch.image)
    highest, labels = values.max(1)
    used = batch.keep & (highest >= s.tau)
    assert (used != (batch.keep & (highest >= s.tau * (2 - mu)))).sum() > 20
    nll = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    assert terms["CNN/pseudo"].value.item() == pytest.approx((nll[used].sum() / batch.keep.sum()).item(), rel=1e-4)
    assert trainer.pseudo_label_curves.sums["CNN after"][1] == used.sum()
    assert torch.equal(known[0].reliable[len(batch.image) :], batch.keep & (highest > s.tau_weak))
    assert float(trainer.threshold()) == pytest.approx(s.tau / (2 - mu))
    truth = batch.truth

    def loss_of_mu(raw):
        mu = 1 / (1 + math.exp(-raw))
        shares = (z_l.double().softmax(1) + (1 - mu) * m_l.double().softmax(1)) / (2 - mu)
        return ce_and_dice(shares.log(), truth.labels, truth.keep) - math.log(2 - mu)

    raw, h = trainer.rectifier.raw.item(), 1e-4
    slope = (loss_of_mu(raw + h) - loss_of_mu(raw - h)) / (2 * h)
    assert trainer.rectifier.raw.grad.item() == pytest.approx(slope, rel=1e-3, abs=1e-7)
    trainer.settings = dataclasses.replace(s, rectify_from_iteration=1)  # not rectified yet
    assert trainer.threshold() == s.tau


@pytest.mark.parametrize("mixing", ["batch", "second_batch"])
def test_the_strong_view_is_the_weak_one_with_uniform_noise(make, mixing):
    trainer = make(changes={"noise": 0.3, "cutmix_probability": 0.0, "mixing": mixing})
    seen = []
    hook = trainer.group.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    terms_of(trainer)
    hook.remove()
    batch = batch_of(trainer)
    count = len(batch.image)
    assert torch.equal(seen[0][:count], batch.image)
    noise = seen[0][count:] - batch.weak
    assert noise.abs().max().item() <= 0.3 + 1e-6
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(0.3 / math.sqrt(3), rel=0.05)
