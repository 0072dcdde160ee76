"""BCP: both parts of the training by hand, voxel by voxel; who learns from what; batches of one; its settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference_hard_labels import reference
from skimage.measure import label as components_of
from teaching import (
    assert_each_teaches_its_student_alone,
    batch_of,
    make_method,
    terms_of,
    uneven_batch,
    without_gradient,
)
from tiny import LABELS, make_semi_supervised_batch

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import Truth
from nnunet_collab.methods import bcp
from nnunet_collab.methods.bcp import BCPTrainer

JOINED = {"start": 0.0}
PAIR = [{"name": "CNN"}, {"name": "Other"}]


@pytest.fixture
def make(tmp_path, monkeypatch):
    def made(**options):
        return make_method(
            BCPTrainer, tmp_path, monkeypatch, **{**options, "changes": {**JOINED, **options.get("changes", {})}}
        )

    return made


@pytest.fixture
def known(monkeypatch):
    """A box and an order that the test knows: the box's first voxel and the one behind the last along each axis."""
    boxes = {2: ((3, 24), (9, 30)), 3: ((1, 3), (3, 24), (9, 30))}

    def draw(size, share, device):
        assert share == pytest.approx(2 / 3)
        return torch.tensor(inside(size, boxes[len(size)]))[None].to(device)

    monkeypatch.setattr(bcp, "draw_inside", draw)
    monkeypatch.setattr(bcp, "draw_partners", lambda count: torch.arange(count).roll(-1))
    monkeypatch.setattr(bcp, "halves", lambda count: (torch.arange(count)[0::2], torch.arange(count)[1::2]))
    return lambda size: inside(size, boxes[len(size)])


def inside(size, box):
    """The box as a mask, a voxel at a time."""
    mask = np.zeros(size, bool)
    for voxel in np.ndindex(*size):
        mask[voxel] = all(first <= i < behind for i, (first, behind) in zip(voxel, box, strict=True))
    return mask


def paste(around, within, box):
    """`within` inside of the box and `around` outside of it, `(C, *S)` each."""
    pasted = around.copy()
    for voxel in np.argwhere(box):
        pasted[(slice(None), *voxel)] = within[(slice(None), *voxel)]
    return pasted


def student_of(trainer, image):
    return trainer.group["CNN"].train()(torch.tensor(image)).logits.detach().double()


def pseudo(trainer, image, keep, kind, *, largest):
    """The teacher's labels, by numpy and scikit-image."""
    with torch.no_grad():
        logits = trainer.teacher.group["CNN"].eval()(image).logits.numpy()
    masks = logits > 0 if "regions" in kind else np.stack([logits.argmax(1) == k for k in range(logits.shape[1])], 1)
    if largest:
        for b, k in np.ndindex(*masks.shape[:2]):
            if "regions" not in kind and k == 0:
                continue
            numbered = components_of(masks[b, k])
            if numbered.max():
                masks[b, k] = numbered == 1 + np.bincount(numbered.ravel())[1:].argmax()
    if "regions" in kind:
        return Truth(torch.zeros(keep.shape, dtype=torch.long), keep, torch.tensor(masks))
    labels = sum(k * masks[:, k] for k in range(1, masks.shape[1]))
    return Truth(torch.tensor(labels), keep)


def part(truth, sample, where):
    where = torch.tensor(where)[None]
    regions = None if truth.regions is None else truth.regions[sample : sample + 1]
    return Truth(truth.labels[sample : sample + 1], truth.keep[sample : sample + 1] & where, regions)


def together(truths):
    """One truth of all samples."""
    regions = None if truths[0].regions is None else torch.cat([t.regions for t in truths])
    return Truth(torch.cat([t.labels for t in truths]), torch.cat([t.keep for t in truths]), regions)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", LABELS)
def test_labeled_and_unlabeled_images_by_hand(make, known, kind, configuration, largest, both_ways):
    """Equations 3 to 8 with loops: images, labels and the four losses."""
    changes = {"both_ways": both_ways, "largest_component": largest, "unlabeled_weight": 0.3}
    changes["deep_supervision"] = False  # the loops know the full resolution alone
    trainer = make(kind=kind, configuration=configuration, changes=changes)
    assert trainer.form.batch_dice == trainer.configuration_manager.batch_dice
    terms, batch = terms_of(trainer, kind), batch_of(trainer, kind)
    labels = pseudo(trainer, batch.weak, batch.keep, kind, largest=largest)
    box = known(tuple(batch.image.shape[2:]))
    labeled, unlabeled = batch.image.numpy(), batch.weak.numpy()
    pairs = {"in": [0, 1], "out": [0, 1]} if both_ways else {"in": [0], "out": [1]}
    of_labels, of_pseudo = [], []
    for way, samples in pairs.items():
        if way == "in":  # an unlabeled box in a labeled image
            mixed = np.stack([paste(labeled[i], unlabeled[i], box) for i in samples])
        else:
            mixed = np.stack([paste(unlabeled[i], labeled[i], box) for i in samples])
        from_unlabeled = box if way == "in" else ~box
        logits = student_of(trainer, mixed)
        known_voxels = together([part(batch.truth, i, ~from_unlabeled) for i in samples])
        taught_voxels = together([part(labels, i, from_unlabeled) for i in samples])
        of_labels.append(reference(logits, known_voxels, trainer.form))
        of_pseudo.append(reference(logits, taught_voxels, trainer.form))
    found = {name: float(term.value.detach()) for name, term in terms.items()}
    assert found["CNN/supervised"] == pytest.approx(np.mean(of_labels), rel=1e-4)
    assert found["CNN/unlabeled"] == pytest.approx(np.mean(of_pseudo), rel=1e-4)
    assert {name: term.weight for name, term in terms.items()} == {"CNN/supervised": 1.0, "CNN/unlabeled": 0.3}


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("kind", LABELS)
def test_labels_alone_are_pasted_into_each_other_by_hand(make, known, kind, both_ways):
    trainer = make(kind=kind, changes={"start": 0.5, "both_ways": both_ways})
    terms, batch = terms_of(trainer, kind), uneven_batch(trainer, kind, 0)
    assert set(terms) == {"CNN/supervised"}
    pairs = [(0, 1), (1, 0)] if both_ways else [(0, 1)]
    box = known(tuple(batch["data"].shape[2:]))
    image = np.stack([paste(batch["data"][i].numpy(), batch["data"][j].numpy(), box) for i, j in pairs])
    targets = []
    for target in batch["target"]:
        step = [box.shape[axis] // target.shape[2 + axis] for axis in (0, 1)]
        at = [np.arange(target.shape[2 + axis]) * step[axis] + step[axis] // 2 for axis in (0, 1)]
        coarse = box[np.ix_(*at)]
        targets.append(np.stack([paste(target[i].numpy(), target[j].numpy(), coarse) for i, j in pairs]))
    output = trainer.group["CNN"].train()(torch.tensor(image))
    want = trainer.supervised(output, [torch.tensor(target) for target in targets])
    torch.testing.assert_close(terms["CNN/supervised"].value, want)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_each_term_teaches_the_student_it_names_and_no_other(make, kind, configuration):
    trainer = make(kind=kind, configuration=configuration, changes={"students": PAIR})
    terms = terms_of(trainer, kind)
    assert set(terms) == {f"{s['name']}/{name}" for s in PAIR for name in ("supervised", "unlabeled")}
    assert_each_teaches_its_student_alone(trainer, terms)


@pytest.mark.parametrize("part_of", ["labeled", "unlabeled"])
def test_what_is_ignored_teaches_nothing(make, part_of):
    """Labels under the ignore label, and unlabeled voxels outside of the image, in either part of a mixed image."""
    trainer = make(kind="ignore")
    batch = batch_of(trainer, "ignore")
    nowhere = torch.zeros_like(batch.keep)
    if part_of == "labeled":
        batch = batch._replace(truth=batch.truth._replace(keep=nowhere))
    else:
        batch = batch._replace(keep=nowhere)
    found = {term.name: float(term.value.detach()) for term in trainer.semi_supervised_terms(batch)}
    silent = {"labeled": "supervised", "unlabeled": "unlabeled"}[part_of]
    assert found.pop(silent) == 0
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize(("labeled", "unlabeled"), [(2, 5), (5, 2), (3, 3), (1, 1), (1, 4)])
def test_samples_that_are_fewer_are_pasted_several_times(make, labeled, unlabeled):
    trainer = make(changes={"batch_size": labeled, "unlabeled_batch_size": unlabeled})
    ways = trainer.draw_directions(trainer.read_batch(make_semi_supervised_batch(trainer)))
    for way in ways:
        assert len(way.labeled) == len(way.unlabeled) == max(labeled, unlabeled)
        assert {*way.labeled.tolist()} == {*range(labeled)}
        assert {*way.unlabeled.tolist()} == {*range(unlabeled)}
    assert torch.equal(ways[0].from_unlabeled, ~ways[1].from_unlabeled)
    result = trainer.train_step(make_semi_supervised_batch(trainer))
    assert np.isfinite(result["loss"])
    assert without_gradient(trainer) == []


def log_of(trainer):
    return "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))


def test_of_one_labeled_sample_nothing_is_pasted_until_start_and_the_log_says_so(make):
    trainer = make(changes={"batch_size": 1, "start": 0.5})
    batch = make_semi_supervised_batch(trainer)
    found = trainer.batch_terms(batch)[0].value
    want = trainer.supervised(trainer.group["CNN"](batch["data"]), batch["target"])
    assert torch.equal(found, want)
    assert "one labeled sample per batch: until 'start' there is no other to paste into it" in log_of(trainer)
    assert "one labeled sample" not in log_of(make(changes={"batch_size": 2, "run_name": "two"}))


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"unlabeled_batch_size": 1}])
def test_one_sample_cannot_be_pasted_one_way(make, changes):
    with pytest.raises(
        CollabError, match=r"needs at least 2 of each; it has \d labeled and 1 unlabeled\. Set both_ways"
    ):
        make(changes={**changes, "both_ways": False})
    make(changes={**changes, "both_ways": False, "unlabeled_weight": 0.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": 0.0}, "setting 'box' must be a finite number in (0, 1)"),
        ({"box": 1.0}, "setting 'box' must be a finite number in (0, 1)"),
        ({"unlabeled_weight": -1}, "setting 'unlabeled_weight' must be a finite number >= 0"),
        ({"component_neighbors": "all"}, "one of 'faces', 'edges', 'corners'"),
        (
            {"largest_component": False, "component_neighbors": "faces"},
            "setting 'component_neighbors': has no effect without largest_component",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes=changes)
    assert message in str(caught.value)


def test_a_frozen_student_is_refused(make, tmp_path):
    with pytest.raises(CollabError, match="the teacher is the average of the student it teaches"):
        make(changes={"students": [{"name": "CNN"}, {"name": "Frozen", "frozen": str(tmp_path)}]})


def test_the_components_of_a_step_are_one_more_wait_and_no_other(make):
    """Connected components are found on the CPU, as in the released code; all else of a step waits once."""
    trainer = make(changes={"largest_component": True})
    waits, found = [], bcp.largest_components
    trainer.group.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bcp, "largest_components", lambda *a: waits.append(a[0].shape) or found(*a))
        trainer.train_step(make_semi_supervised_batch(trainer))
    assert len(waits) == 1


def test_the_average_labels_the_images(make):
    """A teacher that sees class 1 everywhere teaches class 1."""
    trainer = make(changes={"largest_component": False})
    batch = batch_of(trainer)
    constant = torch.tensor([-9.0, 9.0, -9.0]).view(1, 3, 1, 1).expand(len(batch.weak), 3, *batch.weak.shape[2:])
    trainer.teacher = lambda image: {"CNN": SimpleNamespace(logits=constant)}
    truth = trainer.make_pseudo_truth(constant, batch.keep)
    assert (truth.labels == 1).all()
    assert torch.equal(truth.keep, batch.keep)
    assert trainer.semi_supervised_terms(batch)[1].value > 0
