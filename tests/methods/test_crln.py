"""CRLN: every term and the gradient of mu by hand, who learns from what, its switches, and a run that is resumed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from teaching import (
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
from tiny import finish_run, make_batch, make_plans, make_semi_supervised_batch

import nnunet_collab.losses.positive_supervision as positive_supervision_module
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import StudentOutput
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.losses.positive_supervision import Supervision, positive_supervision
from nnunet_collab.methods.crln import CRLNTrainer

NAMES = ("supervised", "relations", "pseudo", "contrast")
# Thresholds that random weights reach; few draws.
LOW = {"tau": 0.4, "tau_weak": 0.36, "anchors": 8, "negatives": 4, "prototypes": 3}
NO_CHANCE = {**LOW, "noise": 0.0, "temperature": 0.05}
each_configuration = pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
each_kind = pytest.mark.parametrize("kind", ["plain", "ignore"])


@pytest.fixture
def make(tmp_path, monkeypatch):
    def make(*, changes=None, **options):
        changes = {**LOW, "start": 0, **(changes or {})}
        return make_method(CRLNTrainer, tmp_path, monkeypatch, changes=changes, **options)

    return make


@pytest.fixture
def no_chance(monkeypatch):
    """CutMix takes halves, and CPS every n-th voxel."""
    use_half_boxes(monkeypatch)
    monkeypatch.setattr(
        positive_supervision_module, "_draw", lambda voxels, count: voxels[torch.arange(count) * 7 % len(voxels)]
    )


def train(trainer, steps=2, kind="plain", seed=0):
    trainer.network.train()
    return [trainer.train_step(make_semi_supervised_batch(trainer, kind, seed + k)) for k in range(steps)]


def scatter(trainer):
    """Student and teacher far apart from each other, maps that tell the classes apart, mu away from a half."""
    torch.manual_seed(11)
    with torch.no_grad():
        for group in (trainer.group, trainer.teacher.group):
            for name, p in group.named_parameters():
                p.add_((0.5 if "heads.interaction" in name else 0.1) * torch.randn_like(p))
        if trainer.rectifier is not None:
            for p in trainer.rectifier.parameters():
                p.add_(0.7)
    return trainer


# ---------------------------------------------------------------- by hand


def look(student, images):
    """Logits, relationship map and f_4 of each image alone, from hooks of our own."""
    stages = list(student.network.decoder.stages)[-3:]
    found = []
    for image in images.split(1):
        seen = []
        hooks = [stage.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out)) for stage in stages]
        output = student.network(image)
        for hook in hooks:
            hook.remove()
        logits = output[0] if isinstance(output, list) else output
        found.append((logits, student.heads["interaction"](*seen[:2], image.shape[2:]), seen[2]))
    return [torch.cat(tensors) for tensors in zip(*found, strict=True)]


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


def rectified(logits, relations, mu):
    return logits.detach().double() + (1 - mu) * relations.detach().double()


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
    own, further = trainer.divide(batch_of(trainer, kind))
    (student,), (teacher,) = trainer.group, trainer.teacher.group

    def box(tensor, other):
        if not mixed:
            return tensor
        return HalfBox(side=0, within_batch=further is None)(tensor, other)

    truth = own.truth.target
    with torch.no_grad():
        z_l, m_l, f_l = look(student, own.image)
        z_u, _, f_u = look(student, box(own.weak, further and further.weak))
        labels = []
        for weak in (own.weak, further.weak if further else None):
            if weak is None:
                labels.append(None)
                continue
            z, m, _ = look(teacher, weak)
            mu = trainer.rectifier.mu.item() if after_start else 1.0
            labels.append(rectified(z, m, mu))
        target = box(*labels)
        keep = box(own.keep, further and further.keep)
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


@pytest.mark.parametrize("mixing", ["batch", "further"])
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
    changes = {"supervised_weight": 0.3, "unlabeled_weight": 0.7, "contrast_weight": 0.2}
    assert {key: term.weight for key, term in terms_of(make(changes=changes)).items()} == {
        "CNN/supervised": 0.3,
        "CNN/relations": 0.3,
        "CNN/pseudo": 0.7,
        "CNN/contrast": 0.2,
    }


def test_the_weight_of_pseudo_labels_may_rise(make):
    trainer = make(changes={"epochs": 4, "iterations_per_epoch": 100, "ramp_up": 0.5})
    for iteration, want in ((0, math.exp(-5)), (100, math.exp(-1.25)), (200, 1.0), (300, 1.0)):
        trainer.iteration = iteration
        assert terms_of(trainer)["CNN/pseudo"].weight == pytest.approx(want)


@pytest.mark.parametrize("iteration", [0, 2, 3, 4])
def test_before_its_start_labels_are_the_teachers_own(make, no_chance, iteration):
    trainer = scatter(make(changes={**NO_CHANCE, "start": 3}))
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


@pytest.mark.parametrize("mixing", ["batch", "further"])
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


def test_the_students_own_optimisers_have_no_mu(make):
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
    trainer = make(changes={"tau": 0.999, "tau_weak": 0.998, "start": 3})
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
    batch["where"][:] = -1
    terms = {term.name: term for term in trainer.batch_terms(batch)}
    assert terms["pseudo"].value == 0
    terms["contrast"].value.backward()  # of the labelled voxels alone
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


def test_the_teachers_map_is_made_of_its_own_features_and_prototypes(make):
    trainer = scatter(make())
    (teacher,) = trainer.teacher.group
    image = make_batch(trainer)["data"]
    with torch.no_grad():
        logits, relations, _ = look(teacher, image)
        found = trainer.labeler(image, {})
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
    if where == "loss":
        batch["data"][0] = float("nan")
    else:
        step = trainer.optimizers.step
        monkeypatch.setattr(trainer.optimizers, "step", lambda: {n: g * float("nan") for n, g in step().items()})
    trainer.train_step(batch)
    assert equal(weights(trainer.teacher.group), before)
    assert trainer.rectifier.mu.item() == mu


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("changes", [{}, {"deploy": "student"}, {"rectification": "concatenation"}], ids=str)
def test_a_resumed_run_steps_alike(make, tmp_path, changes):
    trainer = make(changes={"start": 2, **changes})
    train(trainer, 3)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    resumed = make(changes={"start": 2, **changes})
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
    assert trainer.curves.values["mu"] == [trainer.rectifier.mu.item()]


def test_validation_knows_the_labels_before_and_after(make):
    trainer = scatter(make())
    trainer.group.eval()
    with torch.no_grad():
        found = trainer.validation_step(make_batch(trainer))["pseudo_labels"]
    assert set(found) == {"CNN before", "CNN after"}
    assert not np.array_equal(*(np.asarray(v) for v in found.values()))


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


@pytest.mark.parametrize("changes", [{"positive": "none"}, {"contrast_weight": 0}], ids=str)
def test_without_positive_supervision_there_is_no_projection(make, changes):
    trainer = make(changes=changes)
    assert set(trainer.group["CNN"].heads) == {"interaction"}
    assert set(terms_of(trainer)) == {f"CNN/{name}" for name in NAMES[:3]}
    train(trainer, 1)
    assert without_gradient(trainer) == []


@pytest.mark.parametrize("aggregation", ["sum", "spatial", "convolutional"])
def test_every_aggregation_trains(make, aggregation):
    trainer = make(changes={"aggregation": aggregation})
    train(trainer, 1)
    assert without_gradient(trainer) == []


def test_a_single_unlabelled_sample_is_mixed_with_a_further_image(make):
    trainer = make(changes={"batch_size": 2})
    assert (trainer.unlabeled_per_batch, trainer.views_per_batch()) == (1, 2)
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
    [({"start": 12}, True), ({"start": 11}, False), ({"start": 12, "rectification": "none"}, False)],
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
            "WARNING: setting 'start' is 12, the whole training has 12 iterations: pseudo labels will never be "
            "rectified. Lower it."
        ]
        if warned
        else []
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": [{"name": "CNN"}, {"name": "CNN2"}]}, "setting 'students': must be one"),
        ({"prototypes": 0}, "setting 'prototypes': must be >= 1"),
        ({"anchors": 0}, "setting 'anchors': must be >= 1"),
        ({"negatives": 0}, "setting 'negatives': must be >= 1"),
        ({"tau": 1.0}, "setting 'tau': must be in (0, 1)"),
        ({"tau": 0.7, "tau_weak": 0.7}, "setting 'tau_weak': must be in [0, tau), tau is 0.7"),
        ({"tau": 0.7, "tau_weak": 0.8}, "setting 'tau_weak': must be in [0, tau), tau is 0.7"),
        ({"tau_weak": -0.1}, "setting 'tau_weak': must be in [0, tau)"),
        ({"start": -1}, "setting 'start': must be >= 0"),
        ({"unlabeled_weight": -1}, "setting 'unlabeled_weight': must be >= 0"),
        ({"contrast_weight": -1}, "setting 'contrast_weight': must be >= 0"),
        ({"xi": -1}, "setting 'xi': must be >= 0"),
        ({"noise": -1}, "setting 'noise': must be >= 0"),
        ({"ramp_up": 1.1}, "setting 'ramp_up': must be a share of the run, in [0, 1]"),
        ({"temperature": 0}, "setting 'temperature': must be > 0"),
        ({"mu_lr": 0}, "setting 'mu_lr': must be > 0"),
        ({"ema_decay": 1.0}, "setting 'ema_decay': must be in [0, 1)"),
        ({"rectification": "v3"}, "one of 'none', 'fixed', 'concatenation', 'learnable'"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes=changes)
    assert message in str(caught.value)
