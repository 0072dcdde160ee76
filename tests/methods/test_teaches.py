"""Does it teach? With few labels each method beats the supervised training of equal length; its broken form does not.

The task: ring and core of a disc, in noise as strong as their contrast. Two images are labelled and 64 are not, so the
supervised network learns the noise of two images. A gain counts as the mean over two seeds, since single runs differ by
a hundredth or two. The broken form is the same training with the unsupervised weights set to 0.

Mean Teacher and UA-MT are not here: with a squared difference as loss, and noise as the only difference between student
and teacher, no setting was found in which their gain in so short a training is larger than the spread of the seeds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from teaching import make_method

from nnunet_collab.data.loaders import seeded
from nnunet_collab.data.views import strong_intensities
from nnunet_collab.methods import crossmatch
from nnunet_collab.methods.cross_teaching import CPSTrainer, CrossTeachingTrainer
from nnunet_collab.methods.crossmatch import CrossMatchTrainer
from nnunet_collab.methods.fixmatch import FixMatchTrainer, UniMatchTrainer
from nnunet_collab.methods.supervised import SupervisedTrainer

pytestmark = pytest.mark.slow

SIZE, NOISE, LABELED, UNLABELED, TEST = 32, 0.6, 2, 64, 48
ITERATIONS, SEEDS = 250, (0, 1)
MARGIN = 0.025  # of the Dice; the gains of the methods are 0.045 to 0.075, those of their broken forms 0.01 at most
LEARNING = {"optimizer": "adamw", "lr": 3e-3}
# In so short a training a Transformer learns too little to be of help, so a wider CNN takes its place.
UNLIKE = [{"name": "CNN", **LEARNING}, {"name": "Wide", "arch": {"features_per_stage": [8, 8, 8, 8]}, **LEARNING}]
# Trainer -> its settings, and those which switch off what unlabelled images teach.
METHODS = {
    CrossTeachingTrainer: ({"pseudo_weight": 0.5, "students": UNLIKE}, {"pseudo_weight": 0}),
    CPSTrainer: ({"pseudo_weight": 0.5}, {"pseudo_weight": 0}),
    FixMatchTrainer: ({"tau": 0.8}, {"strong_weight": 0}),
    UniMatchTrainer: ({"tau": 0.8}, {"strong_weight": 0, "feature_weight": 0}),
    CrossMatchTrainer: ({"tau": 0.8, "total": "paper"}, {}),
}


def phantoms(count, generator):
    """Images `(count, 1, y, x)` and labels: ring 1 and core 2 of a disc somewhere."""

    def uniform(low, high):
        return torch.empty(count, 1, 1).uniform_(low, high, generator=generator)

    y, x = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    distance = ((y - uniform(11, 21)) ** 2 + (x - uniform(11, 21)) ** 2).sqrt()
    radius = uniform(6, 9)
    labels = (distance < radius).long() + (distance < radius * uniform(0.45, 0.65)).long()
    contrast = uniform(0.7, 1.3)
    image = torch.where(labels == 1, contrast, torch.where(labels == 2, -contrast, torch.zeros(())))
    image = image + NOISE * torch.randn(image.shape, generator=generator)
    return image[:, None], labels[:, None].to(torch.int16)


def mirrored(tensors):
    """All tensors `(1, y, x)`, mirrored along the same axes."""
    axes = [axis for axis in (1, 2) if torch.rand(()) < 0.5]
    return [tensor.flip(axes) for tensor in tensors]


def draw_batch(trainer, labeled, unlabeled):
    """A batch as `TwoStreams` delivers it."""
    count = getattr(trainer, "labeled_per_batch", trainer.batch_size)
    pairs = [mirrored([part[i] for part in labeled]) for i in torch.randint(LABELED, (count,))]
    batch = {"data": torch.stack([p[0] for p in pairs]), "target": torch.stack([p[1] for p in pairs])}
    if hasattr(trainer, "views_per_batch"):
        weak = torch.stack(
            [*(mirrored([unlabeled[i]])[0] for i in torch.randint(UNLABELED, (trainer.views_per_batch(),)))]
        )
        change = strong_intensities()
        strong = [torch.stack([change(image=w.clone())["image"] for w in weak]) for _ in range(trainer.strong_views)]
        batch["views"] = torch.cat([weak, *strong], dim=1)
        batch["where"] = torch.zeros(weak.shape, dtype=torch.int16)
    return batch


def train(trainer_class, seed, folder, monkeypatch, changes):
    """Mean test Dice of ring and core, of the first student after a training."""
    generator = torch.Generator().manual_seed(seed)
    labeled, (unlabeled, _), (images, truth) = (phantoms(n, generator) for n in (LABELED, UNLABELED, TEST))
    names = [student.name for student in trainer_class.settings.students]
    common = {
        "batch_size": 4 if trainer_class is SupervisedTrainer else 8,  # four labelled samples in every batch
        "seed": seed, "epochs": 1, "iterations_per_epoch": ITERATIONS, "deep_supervision": False,
        "students": {name: LEARNING for name in names},
    }  # fmt: skip
    trainer = make_method(trainer_class, folder, monkeypatch, changes={**common, **changes})
    trainer.network.train()
    for number in range(ITERATIONS):
        with seeded((seed, number)):
            batch = draw_batch(trainer, labeled, unlabeled)
        trainer.train_step(batch)
    trainer.network.eval()
    with torch.no_grad():
        predicted = trainer.group[names[0]](images).logits.argmax(1)
    masks = [(predicted == k, truth[:, 0] == k) for k in (1, 2)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in masks]))


def mean_dice(trainer_class, folder, monkeypatch, changes):
    return np.mean([train(trainer_class, seed, folder, monkeypatch, changes) for seed in SEEDS])


@pytest.fixture(scope="module")
def supervised(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return mean_dice(SupervisedTrainer, tmp_path_factory.mktemp("supervised"), monkeypatch, {})


@pytest.mark.parametrize("trainer_class", METHODS)
def test_unlabelled_images_teach_more_than_a_broken_term_would(trainer_class, supervised, tmp_path, monkeypatch):
    changes, switched_off = METHODS[trainer_class]
    gain = mean_dice(trainer_class, tmp_path, monkeypatch, changes) - supervised
    if trainer_class is CrossMatchTrainer:  # its factors are no settings
        monkeypatch.setitem(crossmatch.TOTALS, "paper", (1.0, 0.0, 0.0))
    broken = mean_dice(trainer_class, tmp_path, monkeypatch, {**changes, **switched_off}) - supervised
    assert gain > MARGIN > broken, f"gain {gain:.3f}, without the unsupervised terms {broken:.3f}"
