"""Dropping unlabeled cases: by the entropy per voxel of predicted foreground, for good, and the same after a resume."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from teaching import make_method
from tiny import make_dataset_json
from tiny_data import full_plans, write_data

from nnunet_collab.core.errors import CollabError
from nnunet_collab.methods.self_training import SelfTrainingTrainer
from nnunet_collab.training import case_dropping
from nnunet_collab.training.case_dropping import CaseEntropies, least_certain
from nnunet_collab.training.checkpointing import published_weights

RUN = {"epochs": 4, "iterations_per_epoch": 3, "start": 0.0, "drop_at": [0.5], "drop_share": 0.5}


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("size", [(5, 4), (2, 3, 4)])
def test_entropy_is_that_of_predicted_foreground_per_voxel(size, regions):
    generator = np.random.default_rng(0)
    sums, counted = {}, CaseEntropies(regions=regions)
    for _ in range(3):
        logits, keep = generator.normal(0, 2, (2, 3, *size)), generator.random((2, *size)) < 0.7
        counted.add(["a", "b"], torch.tensor(logits), torch.tensor(keep))
        for sample, case in enumerate("ab"):
            for voxel in np.argwhere(keep[sample]):
                z = logits[(sample, slice(None), *voxel)]
                if regions:
                    inside = [1 / (1 + math.exp(-value)) for value in z]
                    entropy = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in inside) / len(inside)
                    foreground = max(inside) > 0.5
                else:
                    p = [math.exp(value) / sum(math.exp(other) for other in z) for value in z]
                    entropy, foreground = -sum(q * math.log(q) for q in p), p.index(max(p)) > 0
                if foreground:
                    before = sums.get(case, (0.0, 0))
                    sums[case] = before[0] + entropy, before[1] + 1
    counted.finish_epoch()
    assert counted.means() == pytest.approx({case: total / number for case, (total, number) in sums.items()}, rel=1e-12)


def test_epochs_and_ranks_add_up(monkeypatch):
    counted = CaseEntropies(regions=False)
    counted.now = {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([1.0, 1.0])}
    other = {"a": [1.0, 2.0], "c": [0.0, 0.0]}
    monkeypatch.setattr(case_dropping, "gather_objects", lambda own: [own, other])
    counted.finish_epoch()
    assert counted.means() == {"a": 1.0, "b": 1.0}  # nothing was found in c
    counted.now = {"b": torch.tensor([4.0, 1.0])}
    counted.finish_epoch()
    assert counted.means() == {"a": 5 / 6, "b": 2.5}


def test_a_batch_that_is_not_finite_counts_nothing():
    counted = CaseEntropies(regions=False)
    logits = torch.randn(2, 3, 4, 4)
    logits[0, :, 1] = float("nan")
    counted.add(["a", "b"], logits, torch.ones(2, 4, 4, dtype=torch.bool))
    counted.finish_epoch()
    assert counted.means().keys() == {"b"}


MEANS = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.5, "small": 0.05}


@pytest.mark.parametrize(
    ("share", "cases", "want"),
    [
        (0.4, MEANS, ["b", "d"]),  # of five
        (0.2, MEANS, ["b"]),  # of equally certain ones the first
        (0.19, MEANS, []),
        (0.5, ["a"], []),
        (0.99, ["a", "b"], ["b"]),
        (0.9, ["a", "empty", "none", "nothing"], ["a"]),  # nothing is known of the others
    ],
)
def test_the_least_certain_cases_are_dropped(share, cases, want):
    assert least_certain(MEANS, list(cases), share) == want


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_data(tmp_path, full_plans(), make_dataset_json())

    def made(**changes):
        options = {"changes": {**RUN, **changes}, "plans": full_plans()}
        return make_method(SelfTrainingTrainer, tmp_path, monkeypatch, **options)

    return made


def train(trainer, until):
    """As nnU-Net's loop; the names of the unlabeled cases that each epoch saw."""
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    seen = []
    for _ in range(trainer.current_epoch, until):
        trainer.on_train_epoch_start()
        batches = [next(trainer.dataloader_train) for _ in range(trainer.num_iterations_per_epoch)]
        seen.append({str(case) for batch in batches for case in batch["keys_unlabeled"]})
        trainer.on_train_epoch_end([trainer.train_step(batch) for batch in batches])
        trainer.current_epoch += 1
    return seen


def log_of(trainer):
    return "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))


def test_dropped_cases_are_not_drawn_again_and_a_resumed_run_drops_the_same(make, tmp_path):
    whole = make()
    torch.manual_seed(1)
    first = train(whole, 2)
    assert whole.dropped == []
    path = tmp_path / "checkpoint_latest.pth"
    whole.current_epoch -= 1  # nnU-Net saves before it counts
    whole.save_checkpoint(str(path))
    whole.current_epoch += 1
    means = whole.entropies.means()
    assert means.keys() <= set().union(*first)
    states = torch.get_rng_state()
    later = train(whole, 4)
    assert whole.dropped == sorted(sorted(means, key=lambda case: (-means[case], case))[:2])
    assert "dropped 2 of 4 unlabeled cases, the least certain by the entropy per voxel" in log_of(whole)
    assert not set().union(*later) & {*whole.dropped}
    assert whole.entropies.total.keys() <= set().union(*later)
    again = make()
    again.load_checkpoint(str(path))
    torch.set_rng_state(states)
    assert train(again, 4) == later
    assert again.dropped == whole.dropped
    ours, theirs = published_weights(again), published_weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    after = tmp_path / "checkpoint_after.pth"
    again.current_epoch -= 1
    again.save_checkpoint(str(after))
    third = make()
    third.load_checkpoint(str(after))
    assert third.dropped == whole.dropped
    third.get_dataloaders()
    assert log_of(third).count("2 unlabeled ones of 2") >= 1


@pytest.mark.slow
def test_loader_processes_are_replaced_and_draw_the_same(make, monkeypatch):
    alone = make()
    torch.manual_seed(1)
    want = train(alone, 4)
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    ours = make()
    torch.manual_seed(1)
    assert train(ours, 4) == want
    assert ours.dropped == alone.dropped != []
    for loader in (ours.dataloader_train, ours.dataloader_val):
        loader._finish()


def test_without_moments_nothing_is_counted_or_kept(make):
    trainer = make(drop_at=[], drop_share=0.15)
    train(trainer, 1)
    assert trainer.entropies.now == trainer.entropies.total == {}
    assert trainer.method_state().keys() == {"teacher"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_at": [0.0]}, "drop_at"),
        ({"drop_at": [1.0]}, "drop_at"),
        ({"drop_at": [0.5, 0.25]}, "must be moments after start, one later than the other, at least an epoch apart"),
        ({"drop_at": [0.5, 0.51]}, "must be moments after start, one later than the other, at least an epoch apart"),
        ({"drop_at": [0.5], "start": 0.5}, "must be moments after start, one later than the other"),
        ({"drop_at": [0.95]}, "must be moments after start, one later than the other"),
        ({"drop_share": 1.0}, "setting 'drop_share' must be a finite number in (0, 1)"),
        ({"drop_at": []}, "setting 'drop_share': has no effect without drop_at"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(**changes)
    assert message in str(caught.value)
