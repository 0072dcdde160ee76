"""CTRCL: which terms there are, whom each teaches, and that they are the losses called by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import LABELS, make_batch, make_trainer

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import region_truth
from nnunet_collab.losses.class_aware import class_aware_kl, region_class_aware_kl
from nnunet_collab.losses.collaborative_kl import as_two_classes, ensemble_kl, mutual_kl, rectified_kl, selective_kl
from nnunet_collab.methods.ctrcl import CTRCLTrainer
from nnunet_collab.training.trainer import CollabTrainer

STUDENTS = ("CNN", "Transformer")
ALL_TERMS = ("supervised", "rlcl", "cfcl_encoder", "cfcl_decoder")
VANILLA = {"beta": 0, "gamma_encoder": 0, "gamma_decoder": 0}


@pytest.fixture
def make(tmp_path, monkeypatch):
    return lambda trainer_class=CTRCLTrainer, **options: make_trainer(trainer_class, tmp_path, monkeypatch, **options)


def forward(trainer, kind="plain"):
    """Outputs of both students with the target and truth of a batch."""
    image, target, truth = trainer._to_device(make_batch(trainer, kind))
    return trainer.network(image), target, truth


def by_key(terms):
    return {f"{term.student}/{term.name}": term for term in terms}


def gradients(trainer, name):
    return [p.grad for p in trainer.group[name].parameters()]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", LABELS)
def test_each_term_teaches_the_student_it_names_and_no_other(make, kind, configuration):
    trainer = make(kind=kind, configuration=configuration)
    outputs, target, truth = forward(trainer, kind)
    terms = by_key(trainer.loss_terms(outputs, target, truth))
    assert set(terms) == {f"{student}/{name}" for student in STUDENTS for name in ALL_TERMS}
    for term in terms.values():
        assert term.value.dtype is torch.float32
        assert term.value.shape == ()
        assert term.value.isfinite()
        trainer.optimizers.zero_grad()
        term.value.backward(retain_graph=True)
        other = STUDENTS[1 - STUDENTS.index(term.student)]
        assert all(g is None or not g.any() for g in gradients(trainer, other))
        assert any(g is not None and g.any() for g in gradients(trainer, term.student))


def losses_by_hand(trainer, own, peer, truth, mode):
    """The three collaborative values of equation 17, from the loss functions alone."""
    logit_loss = {"rlcl": rectified_kl, "mutual": mutual_kl, "ensemble": ensemble_kl, "selective": selective_kl}[mode]
    if truth.regions is None:
        feature_loss = partial(class_aware_kl, truth=truth, num_classes=3)
        logits = logit_loss(own.logits, peer.logits, truth)
    else:
        feature_loss = partial(region_class_aware_kl, regions=truth.regions, keep=truth.keep)
        two_classes = region_truth(truth.regions, truth.keep)
        logits = logit_loss(as_two_classes(own.logits), as_two_classes(peer.logits), two_classes)
    features = [feature_loss(getattr(own, level), getattr(peer, level)) for level in ("encoder", "decoder")]
    return dict(zip((mode, "cfcl_encoder", "cfcl_decoder"), (logits, *features), strict=True))


@pytest.mark.parametrize("mode", ["rlcl", "mutual", "ensemble", "selective"])
@pytest.mark.parametrize("kind", LABELS)
def test_terms_are_the_losses_called_by_hand_with_the_weights_of_the_settings(make, kind, mode):
    trainer = make(kind=kind, changes={"logit_mode": mode})
    outputs, target, truth = forward(trainer, kind)
    terms = by_key(trainer.loss_terms(outputs, target, truth))
    for own, peer in (STUDENTS, STUDENTS[::-1]):
        supervised = terms[f"{own}/supervised"]
        assert supervised.weight == 1.0
        assert torch.equal(supervised.value, trainer.supervised(outputs[own], target))
        want = losses_by_hand(trainer, outputs[own], outputs[peer], truth, mode)
        for (name, value), weight in zip(
            want.items(), (3.0, 1.0, 2.0), strict=True
        ):  # beta, gamma1, gamma2 of the paper
            assert terms[f"{own}/{name}"].weight == weight
            torch.testing.assert_close(terms[f"{own}/{name}"].value, value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "level_options", "logit_options"),
    [
        ({"alpha": 5.0}, {"alpha": 5.0}, {}),
        ({"kl_order": "student_first"}, {"order": "student_first"}, {"order": "student_first"}),
        ({"cfcl_classes": "batch"}, {"classes": "batch"}, {}),
        ({"detach_prototypes": True}, {"detach_prototypes": True}, {}),
        ({"lambda_factors": ["certainty"]}, {}, {"factors": ("certainty",)}),
        ({"lambda_factors": []}, {}, {"factors": ()}),
        ({"unsure_peer": "skip"}, {}, {"unsure_peer": "skip"}),
    ],
)
def test_every_switch_reaches_its_loss(make, changes, level_options, logit_options):
    trainer = make(changes=changes)
    outputs, target, truth = forward(trainer)
    terms = by_key(trainer.loss_terms(outputs, target, truth))
    own, peer = (outputs[name] for name in STUDENTS)
    by_hand = [
        rectified_kl(own.logits, peer.logits, truth, **logit_options),
        class_aware_kl(own.encoder, peer.encoder, truth, num_classes=3, **level_options),
    ]
    parameters = list(trainer.group["CNN"].network.encoder.stages[0].parameters())
    for name, want in zip(("rlcl", "cfcl_encoder"), by_hand, strict=True):
        value = terms[f"CNN/{name}"].value
        torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-7)
        slopes = [torch.autograd.grad(v, parameters, retain_graph=True) for v in (value, want)]
        for got, expected in zip(*slopes, strict=True):  # a bias before a normalization has no gradient but rounding
            assert (got - expected).norm() <= 1e-3 * expected.norm() + 1e-5


@pytest.mark.parametrize(
    ("weight", "term"), [("beta", "rlcl"), ("gamma_encoder", "cfcl_encoder"), ("gamma_decoder", "cfcl_decoder")]
)
def test_a_weight_of_zero_removes_its_terms(make, weight, term):
    trainer = make(changes={weight: 0})
    terms = by_key(trainer.loss_terms(*forward(trainer)))
    assert set(terms) == {f"{student}/{name}" for student in STUDENTS for name in ALL_TERMS if name != term}


@pytest.mark.parametrize("teacher", STUDENTS)
def test_a_frozen_student_teaches_and_is_not_taught(make, teacher, tmp_path):
    trained = make()
    torch.save({"network_weights": trained.group[teacher].network.state_dict()}, tmp_path / "checkpoint_final.pth")
    trainer = make(changes={"students": {"Transformer": {"network": "segformer_b0"}, teacher: {
        "frozen": str(tmp_path), **({"network": "segformer_b0"} if teacher == "Transformer" else {})}}})  # fmt: skip
    learner = STUDENTS[1 - STUDENTS.index(teacher)]
    before = [p.clone() for p in trainer.group[teacher].parameters()]
    result = trainer.train_step(make_batch(trainer))
    assert trainer.group[teacher](make_batch(trainer)["data"]).auxiliary == ()  # nobody would use them
    assert set(result["terms"]) == {f"{learner}/{name}" for name in ALL_TERMS}
    assert all(map(torch.equal, trainer.group[teacher].parameters(), before))
    assert not trainer.group[teacher].training
    assert any(g is not None and g.any() for g in gradients(trainer, learner))


@pytest.mark.parametrize("kind", ["plain", "regions_ignore"])
def test_a_vanilla_pair_gives_each_student_the_gradient_it_gets_alone(make, kind):
    trainer = make(kind=kind, changes=VANILLA)
    batch = make_batch(trainer, kind)
    loss = {}
    for name in STUDENTS:  # each by itself, from the same weights
        trainer.group.train()
        torch.manual_seed(1)
        for other in STUDENTS[: STUDENTS.index(name)]:
            trainer.group[other](batch["data"])  # draws its dropout
        loss[name] = trainer.supervised(trainer.group[name](batch["data"]), batch["target"])
        loss[name].backward()
    want = {name: [None if g is None else g.clone() for g in gradients(trainer, name)] for name in STUDENTS}
    trainer.optimizers.zero_grad()
    torch.manual_seed(1)
    terms = trainer.loss_terms(*forward(trainer, kind))
    trainer.optimizers.backward(sum(t.weight * t.value for t in terms))
    for name in STUDENTS:
        for got, expected in zip(gradients(trainer, name), want[name], strict=True):
            assert (got is None and expected is None) or torch.equal(got, expected)


def test_the_total_is_the_sum_that_a_reader_adds_up(make):
    trainer = make()
    terms = by_key(trainer.loss_terms(*forward(trainer)))
    trainer = make()  # again, from the same weights and dropout
    result = trainer.train_step(make_batch(trainer))
    want = {key: term.weight * term.value.item() for key, term in terms.items()}
    assert result["terms"] == want
    assert result["loss"] == pytest.approx(sum(want.values()), rel=1e-12)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_after_a_step_no_parameter_that_learns_is_without_gradient(make, configuration, deep_supervision):
    trainer = make(configuration=configuration, changes={"deep_supervision": deep_supervision})
    trainer.train_step(make_batch(trainer))
    without = [name for name, p in trainer.group.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("kind", ["ignore", "regions_ignore"])
def test_a_batch_without_any_annotation_moves_nothing_to_nan(make, kind):
    trainer = make(kind=kind, changes={"seg_loss": "ce"})
    batch = make_batch(trainer, kind)
    for target in batch["target"]:
        target.fill_(3) if kind == "ignore" else target[:, -1].fill_(True)
    result = trainer.train_step(batch)
    assert set(result["terms"].values()) == {0.0}
    assert all(p.isfinite().all() for p in trainer.group.parameters())


def test_validation_counts_each_student_and_their_agreement(make):
    trainer = make()
    trainer.group.eval()
    with torch.no_grad():
        result = trainer.validation_step(make_batch(trainer))
    assert set(result["counts"]) == set(STUDENTS)
    assert result["agreement"].shape == result["counts"]["CNN"].shape == (2, 2)


def test_the_validation_loss_is_that_of_those_who_learn(make):
    trainer = make()
    trainer.group.eval()
    batch = make_batch(trainer)
    with torch.no_grad():
        alone = {
            name: float(trainer.supervised(out, batch["target"])) for name, out in trainer.group(batch["data"]).items()
        }
        assert trainer.validation_step(batch)["loss"] == pytest.approx(sum(alone.values()) / 2)
        cnn, transformer = trainer.settings.students
        trainer.settings = replace(trainer.settings, students=(replace(cnn, frozen="a model"), transformer))
        assert trainer.validation_step(batch)["loss"] == pytest.approx(alone["Transformer"])
    assert alone["CNN"] != pytest.approx(alone["Transformer"])


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_students_is_refused_unless_they_share_nothing(make, count):
    students = [{"name": f"S{i}", "network": "segformer_b0"} for i in range(count)]
    with pytest.raises(CollabError) as caught:
        make(changes={"students": students})
    assert f"CTRCLTrainer: two students teach each other, so 'students' must have 2 entries; got {count}." in str(
        caught.value
    )
    assert "Name two students, or set beta, gamma_encoder and gamma_decoder to 0 to train them separately." in str(
        caught.value
    )
    trainer = make(changes={"students": students, **VANILLA})
    assert set(trainer.train_step(make_batch(trainer))["terms"]) == {f"S{i}/supervised" for i in range(count)}


@pytest.mark.parametrize(
    "networks", [("plans", "plans"), ("segformer_b0", "segformer_b0"), ("segformer_b0", "fpn_mobilenetv2")]
)
def test_any_two_networks_make_a_pair(make, networks):
    small = {"fpn_mobilenetv2": {"width": 8, "branch_width": 8}}
    students = [{"name": f"S{i}", "network": n, "arch": small.get(n, {})} for i, n in enumerate(networks)]
    trainer = make(changes={"students": students})
    result = trainer.train_step(make_batch(trainer))
    assert set(result["terms"]) == {f"S{i}/{name}" for i in range(2) for name in ALL_TERMS}
    assert [name for name, p in trainer.group.named_parameters() if p.requires_grad and p.grad is None] == []


def test_without_the_method_the_base_trainer_supervises_each_student(make):
    trainer = make(CollabTrainer)
    assert set(by_key(trainer.loss_terms(*forward(trainer)))) == {f"{name}/supervised" for name in STUDENTS}
