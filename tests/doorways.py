"""Every trainer that nnU-Net can find, small, and a batch for it."""

from __future__ import annotations

import importlib
from pathlib import Path

from teaching import make_method
from tiny import make_batch, make_semi_supervised_batch

from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer

FOLDER = Path(__file__).parents[1] / "trainers"
DOORWAYS = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
CHANGES = {
    # Thresholds that random weights reach; few draws.
    "CRLNTrainer": {
        "tau": 0.4, "tau_weak": 0.36, "anchors": 8, "negatives": 4, "prototypes": 3, "rectify_from_iteration": 0,
        "xi": "uniform", "rectification_space": "probability_raw",
    },
    "FixMatchTrainer": {"mixing": "second_batch"},
    "BCPTrainer": {"start": 0.0, "largest_component": False},  # the components are found on the CPU
    "SelfTrainingTrainer": {"start": 0.0, "strong_view": "both", "threshold": 0.3},
    "CMAformerTrainer": {"students": {"CMAformer": {"arch": {"features": [4, 4, 6, 8, 8, 8], "num_heads": 2}}}},
}  # fmt: skip


def trainer_class(doorway):
    """What a doorway lets through."""
    lines = (FOLDER / f"{doorway}.py").read_text().splitlines()
    (module,) = [line.split()[1] for line in lines if line.startswith("from nnunet_collab")]
    return getattr(importlib.import_module(module), doorway)


def make(doorway, folder, monkeypatch, *, changes=None, **options):
    """The trainer after `initialize`, in training mode."""
    changes = {**CHANGES.get(doorway, {}), **(changes or {})}
    trainer = make_method(trainer_class(doorway), folder, monkeypatch, changes=changes, **options)
    trainer.network.train()
    return trainer


def batch_for(trainer, seed=0):
    """As its loader delivers it, with the names of the cases."""
    if not isinstance(trainer, SemiSupervisedTrainer):
        batch = make_batch(trainer, seed=seed)
        return {**batch, "keys": _names("labeled", batch["data"])}
    batch = make_semi_supervised_batch(trainer, seed=seed)
    batch |= {"keys": _names("labeled", batch["data"]), "keys_unlabeled": _names("unlabeled", batch["views"])}
    if getattr(trainer, "learns_distances", False):
        return trainer.with_signed_distances(None).complete(batch)
    return batch


def _names(kind, images):
    return [f"{kind}{number}" for number in range(len(images))]
