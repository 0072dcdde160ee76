"""CRLN in the tests: trainers whose thresholds random weights reach, and looking into a network by hand."""

from __future__ import annotations

import pytest
import torch
from teaching import make_method
from tiny import make_semi_supervised_batch

from nnunet_collab.methods.crln.trainer import CRLNTrainer

NAMES = ("supervised", "relations", "pseudo", "contrast")
# Thresholds that random weights reach; few draws.
LOW = {"tau": 0.4, "tau_weak": 0.36, "anchors": 8, "negatives": 4, "prototypes": 3}
each_configuration = pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
each_kind = pytest.mark.parametrize("kind", ["plain", "ignore"])


def make_crln(tmp_path, monkeypatch, *, changes=None, **options):
    changes = {**LOW, "rectify_from_iteration": 0, **(changes or {})}
    return make_method(CRLNTrainer, tmp_path, monkeypatch, changes=changes, **options)


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


def rectified(logits, relations, mu):
    return logits.detach().double() + (1 - mu) * relations.detach().double()
