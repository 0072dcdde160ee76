"""CRLN whose student sees the middle of the unlabeled patches: its terms by hand, who sees what, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from crln_in_tests import LOW, NAMES, each_configuration, each_kind, look, make_crln, rectified, scatter, train
from drawing import class_by_class
from teaching import HalfBox, batch_of, equal, gradients, is_zero, terms_of, use_half_boxes, weights, without_gradient

import nnunet_collab.losses.positive_supervision as positive_supervision_module
from nnunet_collab.core.errors import CollabError

HALF = {**LOW, "context_crop": 0.5}
# Half of each side of 32 x 32 and of 4 x 32 x 32.
MIDDLE = {"2d": (..., slice(8, 24), slice(8, 24)), "3d_fullres": (..., slice(1, 3), slice(8, 24), slice(8, 24))}


@pytest.fixture
def make(tmp_path, monkeypatch):
    def make(*, changes=None, **options):
        return make_crln(tmp_path, monkeypatch, changes={**HALF, **(changes or {})}, **options)

    return make


def every_seventh(voxels, count):
    return voxels[torch.arange(count) * 7 % len(voxels)]


def info_nce(trainer, maps, known):
    """CPS by hand on the projected maps of labeled patches and of boxes, whose sizes differ."""
    s, (student,) = trainer.settings, trainer.group
    heads = student.heads

    def voxels(parts):
        """`(n, C)`, those of the first part first."""
        return torch.cat([part.movedim(1, -1).flatten(0, -2) for part in parts])

    r = voxels([heads["projection"](part) for part in maps])
    labels, reliable, confidence = map(voxels, known)
    labels, reliable = labels[:, 0], reliable[:, 0]
    losses = []
    for c in range(3):
        members = reliable & (labels == c)
        anchors = r[every_seventh((members & (confidence[:, c] < s.tau)).nonzero()[:, 0], s.anchors)]
        negatives = r[every_seventh((reliable & (labels != c)).nonzero()[:, 0], s.anchors * s.negatives)]
        positive = (r[members].mean(0) + s.xi * heads["interaction"].prototypes[c].mean(0)) / (1 + s.xi)
        near = F.cosine_similarity(anchors, positive.unsqueeze(0), dim=1) / s.temperature
        far = F.cosine_similarity(anchors.unsqueeze(1), negatives.unflatten(0, (-1, s.negatives)), dim=2)
        losses.append(torch.cat([near.unsqueeze(1), far / s.temperature], dim=1).logsumexp(1).sub(near).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mixing", ["batch", "second_batch"])
@each_configuration
@each_kind
def test_terms_are_the_equations_with_the_teachers_whole_patch(make, monkeypatch, kind, configuration, mixing):
    use_half_boxes(monkeypatch)
    monkeypatch.setattr(positive_supervision_module, "_draw", class_by_class(every_seventh))
    trainer = scatter(make(kind=kind, configuration=configuration, changes={"noise": 0.0, "mixing": mixing}))
    terms = terms_of(trainer, kind)
    own, second = trainer.divide(batch_of(trainer, kind))
    (student,), (teacher,), s = trainer.group, trainer.teacher.group, trainer.settings
    middle, box = MIDDLE[configuration], HalfBox(side=0, within_batch=second is None)

    def taken(values, others):
        return box(values[middle], None if others is None else others[middle])

    with torch.no_grad():
        labels = []
        for weak in (own.weak, second.weak if second else None):
            if weak is not None:
                logits, relations, _ = look(teacher, weak)
                weak = rectified(logits, relations, trainer.rectifier.mu.item())
            labels.append(weak)
        q = taken(*labels).softmax(1)
        keep = taken(own.keep, second and second.keep)
        z_l, _, f_l = look(student, own.image)
        z_u, _, f_u = look(student, taken(own.weak, second and second.weak))
        confidence, hard = q.max(1)
        nll = F.cross_entropy(z_u.double(), hard, reduction="none")
        want = nll[keep & (confidence >= s.tau)].sum() / keep.sum()
        truth = own.truth
        known = [
            [truth.labels.unsqueeze(1), hard.unsqueeze(1)],
            [truth.keep.unsqueeze(1), (keep & (confidence > s.tau_weak)).unsqueeze(1)],
            [z_l.softmax(1), z_u.softmax(1)],
        ]
        contrast = info_nce(trainer, [f_l, f_u], known)
    assert set(terms) == {f"CNN/{name}" for name in NAMES}
    assert terms["CNN/pseudo"].value.item() == pytest.approx(want.item(), rel=2e-4)
    assert terms["CNN/contrast"].value.item() == pytest.approx(contrast.item(), rel=2e-4)


@each_configuration
def test_labeled_images_are_seen_whole_and_teach_as_without_a_crop(make, configuration):
    found = []
    for share in (1.0, 0.5):
        trainer = scatter(make(configuration=configuration, changes={"context_crop": share}))
        terms = terms_of(trainer)
        values = [terms[f"CNN/{name}"].value for name in ("supervised", "relations")]
        found.append([*values, trainer.rectifier.raw.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mixing", ["batch", "second_batch"])
def test_the_teacher_sees_whole_patches_and_the_student_their_middle(make, mixing):
    trainer = make(changes={"noise": 0.0, "cutmix_probability": 0.0, "mixing": mixing})
    seen = {"student": [], "teacher": []}
    for name, group in (("student", trainer.group), ("teacher", trainer.teacher.group)):
        group.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0]))
    terms_of(trainer)
    batch = batch_of(trainer)
    labeled, strong = seen["student"]
    assert torch.equal(labeled, batch.image)
    assert torch.equal(strong, batch.weak[MIDDLE["2d"]])
    (whole,) = seen["teacher"]
    assert torch.equal(whole, batch.weak)


def test_a_share_of_one_is_one_pass_of_whole_patches(make):
    trainer = make(changes={"context_crop": 1.0, "noise": 0.0, "cutmix_probability": 0.0})
    seen = []
    trainer.group.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    terms_of(trainer)
    batch = batch_of(trainer)
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.cat([batch.image, batch.weak]))


def test_curves_count_the_labels_that_are_used(make):
    trainer = make()
    terms_of(trainer)
    batch = batch_of(trainer)
    assert trainer.pseudo_label_curves.sums["CNN after"][0] == batch.keep[MIDDLE["2d"]].sum() < batch.keep.sum()


def test_the_middle_alone_teaches(make):
    trainer = scatter(make(changes={"noise": 0.0, "cutmix_probability": 0.0}))
    batch = batch_of(trainer)
    everywhere, nothing = torch.ones_like(batch.keep), batch.keep.clone()
    everywhere[MIDDLE["2d"]], nothing[MIDDLE["2d"]] = batch.keep[MIDDLE["2d"]], False
    values = []
    for keep in (batch.keep, everywhere, nothing):
        terms = {term.name: term.value for term in trainer.semi_supervised_terms(batch._replace(keep=keep))}
        values.append(terms["pseudo"].item())
    assert values[0] == values[1] > 0
    assert values[2] == 0


@each_configuration
@each_kind
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_every_parameter_learns(make, configuration, kind, deep_supervision):
    trainer = make(configuration=configuration, kind=kind, changes={"deep_supervision": deep_supervision})
    (result,) = train(trainer, 1, kind)
    assert all(math.isfinite(v) for v in result["terms"].values())
    assert set(result["terms"]) == {f"CNN/{name}" for name in NAMES}
    assert without_gradient(trainer) == []


def test_pseudo_labels_teach_the_student_and_nobody_else(make):
    trainer = scatter(make())
    terms = terms_of(trainer)
    for name in ("pseudo", "contrast"):
        trainer.optimizers.zero_grad()
        terms[f"CNN/{name}"].value.backward(retain_graph=True)
        assert not any(is_zero(p.grad) for p in trainer.group["CNN"].network.encoder.parameters() if p.ndim > 1)
        assert all(g is None for g in gradients(trainer.teacher.group))


def test_a_resumed_run_steps_alike(make, tmp_path):
    trainer = make()
    train(trainer, 2)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    resumed = make()
    resumed.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    for one in (trainer, resumed):
        torch.manual_seed(9)
        train(one, 1, seed=7)
    assert equal(weights(resumed.group), weights(trainer.group))
    assert equal(weights(resumed.teacher.group), weights(trainer.teacher.group))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.1])
def test_a_share_outside_of_its_range_is_refused(make, share):
    with pytest.raises(CollabError, match=r"setting 'context_crop' must be a finite number in \(0, 1\]"):
        make(changes={"context_crop": share})


@pytest.mark.parametrize(
    ("share", "size", "leaves"),
    [(0.2, [8, 8], "a single voxel at the lowest resolution"), (0.9, [32, 32], "the whole patch")],
)
def test_a_share_that_the_network_cannot_take_is_refused(make, share, size, leaves):
    with pytest.raises(CollabError) as caught:
        make(changes={"context_crop": share})
    assert str(caught.value) == (
        f"setting 'context_crop': {share} of the patch [32, 32] is {size}, since the network takes multiples of "
        f"[8, 8]: that leaves {leaves}. Choose another share, or 1."
    )
