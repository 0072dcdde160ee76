"""Nothing to learn from, nothing lost: with every weight but nnU-Net's at 0 a method is `SupervisedTrainer`.

Bit for bit; and `SupervisedTrainer` makes the update that stock nnU-Net makes.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny import make_batch, make_dataset_json, make_trainer
from tiny_data import full_plans, write_data

from nnunet_collab.core.shipped import doorways
from nnunet_collab.data.two_streams import LabeledCrops
from nnunet_collab.methods.supervised import SupervisedTrainer
from nnunet_collab.training.checkpointing import published_weights

# What switches off everything but nnU-Net's loss; None: there is nothing else.
OFF = {
    "SupervisedTrainer": None,
    "CMAformerTrainer": None,
    "CTRCLTrainer": {"beta": 0, "gamma_encoder": 0, "gamma_decoder": 0},
    "CrossTeachingTrainer": {"pseudo_weight": 0},
    "CPSTrainer": {"pseudo_weight": 0},
    "MeanTeacherTrainer": {"consistency_weight": 0},
    "UAMTTrainer": {"consistency_weight": 0},
    "FixMatchTrainer": {"strong_weight": 0},
    "UniMatchTrainer": {"strong_weight": 0, "feature_weight": 0},
    "CrossMatchTrainer": {"image_weight": 0, "distillation_weight": 0},
    "CRLNTrainer": {"relations_weight": 0, "unlabeled_weight": 0, "contrast_weight": 0, "deploy": "student"},
    "LDCTrainer": {"consistency_weight": 0, "constraint_weight": 0, "distance_weight": 0, "contrast_weight": 0},
    "BCPTrainer": {"unlabeled_weight": 0, "labeled_copy_paste": False},
    "SelfTrainingTrainer": {"unlabeled_weight": 0},
}
# What a method must not do before its start to be `SupervisedTrainer` until then.
UNTIL_START = {"CRLNTrainer": {"deploy": "student"}, "BCPTrainer": {"labeled_copy_paste": False}}
METHODS = [name for name, off in OFF.items() if off is not None]
RUN = {"epochs": 4, "iterations_per_epoch": 1}
STEPS = 3


def trainer_of(name):
    return getattr(importlib.import_module(doorways()[name]), name)


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def made(trainer_class, changes, *, kind="plain", configuration="2d"):
        names = {student.name for student in trainer_class.settings.students}
        students = {"Transformer": {"network": "segformer_b0"}} if "Transformer" in names else {}
        changes = {**RUN, "students": students, **changes}
        options = {"kind": kind, "configuration": configuration, "plans": full_plans()}
        trainer = make_trainer(trainer_class, tmp_path, monkeypatch, changes=changes, **options)
        if not (tmp_path / "nnUNet_preprocessed" / "Dataset001_Tiny" / "splits_final.json").exists():
            write_data(tmp_path, full_plans(), make_dataset_json(kind), configuration=configuration, kind=kind)
        return trainer

    return made


def run(trainer, steps=STEPS):
    """What a few steps of the real loader leave: labeled images and labels, losses, weights, optimizers."""
    batches, _ = trainer.get_dataloaders()
    seen, losses = [], []
    trainer.network.train()
    torch.manual_seed(1)  # `initialize` leaves it so; two trainers live in this process
    for _ in range(steps):
        batch = next(batches)
        seen.append((batch["data"], batch["target"], list(batch["keys"])))
        losses.append(trainer.train_step(batch)["loss"])
    return SimpleNamespace(
        seen=seen,
        losses=losses,
        weights={name: w.clone() for name, w in published_weights(trainer).items()},
        optimizers=trainer.optimizers.state_dict(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.all(a == b))


def published_alone(trained, with_heads):
    """Optimizers of heads that a method adds hold more parameters; the networks' come first."""
    return trained.weights if with_heads else (trained.weights, trained.optimizers)


def test_every_trainer_says_how_it_is_switched_off():
    assert OFF.keys() == doorways().keys()


# Every method; every kind of labels, both dimensions and the batches 2, 3 and 8 with some of them.
CASES = [
    (name, kind, configuration, size)
    for number, name in enumerate(METHODS)
    for kind, configuration, size in [
        ("plain", "2d", (2, 3, 8)[number % 3]),
        (("ignore", "regions", "regions_ignore")[number % 3], ("3d_fullres", "2d")[number % 2], 2),
        ("plain", "3d_fullres", 3),
    ]
    if not (name == "CRLNTrainer" and "regions" in kind) and not (name == "LDCTrainer" and "ignore" in kind)
]


@pytest.mark.parametrize(("name", "kind", "configuration", "size"), CASES)
def test_without_its_terms_a_method_is_the_supervised_trainer_bit_for_bit(make, name, kind, configuration, size):
    method = make(trainer_of(name), {**OFF[name], "batch_size": size}, kind=kind, configuration=configuration)
    baseline = type("Baseline", (SupervisedTrainer,), {
        "settings": replace(SupervisedTrainer.settings, students=method.settings.students)
    })  # fmt: skip
    alone = make(baseline, {"batch_size": size}, kind=kind, configuration=configuration)
    heads = any(len(student.heads) for student in method.group)
    ours, theirs = run(method), run(alone)
    assert same(ours.seen, theirs.seen)
    assert ours.losses == theirs.losses
    assert same(published_alone(ours, heads), published_alone(theirs, heads))


@pytest.mark.parametrize("start", [2, 0.5], ids=["epochs", "share"])
@pytest.mark.parametrize("name", METHODS)
def test_before_its_start_a_method_is_the_supervised_trainer_and_afterwards_it_is_not(make, name, start):
    method = make(trainer_of(name), {**UNTIL_START.get(name, {}), "start": start, "batch_size": 2})
    baseline = type("Baseline", (SupervisedTrainer,), {
        "settings": replace(SupervisedTrainer.settings, students=method.settings.students)
    })  # fmt: skip
    alone = make(baseline, {"batch_size": 2})
    ours, theirs = run(method, 2), run(alone, 2)
    assert method.settings.start_iteration == 2
    assert ours.losses == theirs.losses
    assert same(ours.weights, theirs.weights)
    more = len(run(method, 1).losses), set(method.train_step(next(method.get_dataloaders()[0]))["terms"])
    names = [s.name for s in method.settings.students]
    assert more[1] > {f"{name}/supervised" for name in names}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", ["plain", "ignore", "regions", "regions_ignore"])
def test_the_supervised_trainer_makes_the_update_of_stock_nnunet(make, tmp_path, kind, configuration):
    ours = make(SupervisedTrainer, {"epochs": 1000}, kind=kind, configuration=configuration)
    stock = nnUNetTrainer(full_plans(), configuration, 0, make_dataset_json(kind), torch.device("cpu"))
    stock.initialize()
    cnn = ours.group["CNN"].network
    stock.network.load_state_dict(cnn.state_dict())
    start = {name: value.clone() for name, value in cnn.state_dict().items()}
    for epoch in range(2):
        stock.current_epoch = epoch
        stock.on_train_epoch_start()
        batch = make_batch(ours, kind, seed=epoch)
        ours.network.train()
        ours.train_step(batch)
        stock.train_step(batch)
    found, want = cnn.state_dict(), stock.network.state_dict()
    assert same(found, want)
    assert not same(found, start)


def oversampling(trainer_class, loader_class, size, rank, ranks, monkeypatch):
    """For each sample of a process's batch, whether it is centered on foreground."""
    trainer = trainer_class.__new__(trainer_class)
    trainer.is_ddp, trainer.local_rank = ranks > 1, rank
    trainer.oversample_foreground_percent, trainer.probabilistic_oversampling = 0.33, False
    trainer.configuration_manager = SimpleNamespace(batch_size=size, patch_size=[32, 32], spacing=[1, 1])
    dist = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.dist"
    monkeypatch.setattr(f"{dist}.get_world_size", lambda: ranks)
    monkeypatch.setattr(f"{dist}.get_rank", lambda: rank)
    monkeypatch.setattr("nnunet_collab.training.trainer.rank", lambda: rank)
    trainer._set_batch_size_and_oversample()
    empty = np.zeros((1, 1, 32, 32))
    data = SimpleNamespace(identifiers=["a"], load_case=lambda _: (empty, empty, None, {}))
    labels = SimpleNamespace(has_ignore_label=False, all_labels=[0, 1], foreground_labels=[1])
    loader = loader_class(
        data,
        trainer.batch_size,
        [32, 32],
        [32, 32],
        labels,
        oversample_foreground_percent=trainer.oversample_foreground_percent,
        probabilistic_oversampling=trainer.probabilistic_oversampling,
    )
    return [bool(loader.get_do_oversample(i)) for i in range(trainer.batch_size)]


@pytest.mark.parametrize("size", range(1, 17))
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_the_labeled_stream_has_the_foreground_centered_crops_of_stock(monkeypatch, size, rank, ranks):
    if size < ranks:
        size = ranks  # nnU-Net refuses less
    want = oversampling(nnUNetTrainer, nnUNetDataLoader, size, rank, ranks, monkeypatch)
    for name in METHODS:
        assert oversampling(trainer_of(name), LabeledCrops, size, rank, ranks, monkeypatch) == want
    if ranks == 1:
        assert sum(want) == size - round(size * 0.67)
