"""What the tests of all semi-supervised methods ask of their terms."""

from __future__ import annotations

import itertools
from dataclasses import fields

import torch
from tiny import make_semi_supervised_batch, make_trainer

from nnunet_collab.training import mixing

SEGFORMER = {"network": "segformer_b0"}


def make_method(trainer_class, folder, monkeypatch, *, changes=None, **options):
    """`make_trainer` with two labeled and two unlabeled samples per batch, whatever students the method has.

    Pseudo labels teach the full resolution alone, unless the test asks for more.
    """
    names = {student.name for student in trainer_class.settings.students}
    students = {"Transformer": SEGFORMER} if "Transformer" in names else {}
    known = {field.name for field in fields(trainer_class.settings)}
    plain = {"unlabeled_deep_supervision": False, "weigh_dice_by_share": False}
    plain = {name: value for name, value in plain.items() if name in known}
    changes = {"batch_size": 2, "students": students, **plain, **(changes or {})}
    return make_trainer(trainer_class, folder, monkeypatch, changes=changes, **options)


def by_key(terms):
    return {f"{term.student}/{term.name}": term for term in terms}


def uneven_batch(trainer, kind, seed):
    """A batch whose first unlabeled sample has fewer voxels that count."""
    batch = make_semi_supervised_batch(trainer, kind, seed)
    batch["learn_mask"][0, ..., 5:9] = -1
    return batch


def terms_of(trainer, kind="plain", seed=0):
    """The terms of a batch, with the same random numbers whenever it is called."""
    torch.manual_seed(5)
    return by_key(trainer.batch_terms(uneven_batch(trainer, kind, seed)))


def batch_of(trainer, kind="plain", seed=0):
    """The same batch on the device."""
    return trainer.read_batch(uneven_batch(trainer, kind, seed))


def gradients(module):
    return [p.grad for p in module.parameters()]


def is_zero(gradient):
    return gradient is None or not gradient.any()


def assert_each_teaches_its_student_alone(trainer, terms):
    for key, term in terms.items():
        assert term.value.dtype is torch.float32, key
        assert term.value.shape == (), key
        assert term.value.isfinite(), key
        assert term.value > 0, key
        trainer.optimizers.zero_grad()
        term.value.backward(retain_graph=True)
        for student in trainer.group:
            learns = [not is_zero(g) for g in gradients(student)]
            assert any(learns) == (student.name == term.student), (key, student.name)
    trainer.optimizers.zero_grad()


def without_gradient(trainer):
    """Names of the parameters that learn and have none."""
    return [name for name, p in trainer.group.named_parameters() if p.requires_grad and p.grad is None]


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def step_that_fails(trainer, batch, where, monkeypatch):
    """A training step that is not taken, because the loss (`where`) or the norm of the gradient is NaN."""
    if where == "loss":
        batch["data"][0] = float("nan")
    else:
        clip = trainer.optimizers.clip
        monkeypatch.setattr(trainer.optimizers, "clip", lambda: {n: g * float("nan") for n, g in clip().items()})
    trainer.train_step(batch)


class HalfBox:
    """In place of CutMix: the left (side 0) or right half comes from the next sample or from the further ones."""

    def __init__(self, *, side, within_batch):
        self.side = side
        self.within_batch = within_batch

    def __call__(self, tensor, further=None):
        other = tensor.roll(1, 0) if self.within_batch else further
        middle = tensor.shape[-1] // 2
        box = slice(middle) if self.side == 0 else slice(middle, None)
        mixed = tensor.clone()
        mixed[..., box] = other[..., box]
        return mixed


def use_half_boxes(monkeypatch):
    """The boxes of the first strong view lie left, those of the second right."""
    sides = itertools.cycle((0, 1))

    def make(count, size, *, probability, device, within_batch):
        return HalfBox(side=next(sides), within_batch=within_batch)

    monkeypatch.setattr(mixing, "CutMix", make)
