"""A batch that does not fit: the message names one that does, which was tried."""

from __future__ import annotations

import pytest
import torch
from doorways import DOORWAYS, batch_for, make

from nnunet_collab.core.errors import CollabError
from nnunet_collab.training import memory


def limited(trainer, samples, monkeypatch):
    """No forward pass with more samples than these fits."""
    forward = trainer.network.forward

    def limited_forward(images, *arguments, **options):
        if len(images) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return forward(images, *arguments, **options)

    monkeypatch.setattr(trainer.network, "forward", limited_forward)


def message_of(trainer, batch):
    with pytest.raises(CollabError) as caught:
        trainer.train_step(batch)
    assert caught.value.__context__ is None  # else the traceback keeps the memory
    return str(caught.value)


@pytest.mark.parametrize(
    ("fitting", "advice"),
    [
        (6, '4 labeled and 2 unlabeled samples fit: set "batch_size": 4, "unlabeled_batch_size": 2.'),
        (5, '4 labeled and 1 unlabeled samples fit: set "batch_size": 4, "unlabeled_batch_size": 1.'),
        (3, '2 labeled and 1 unlabeled samples fit: set "batch_size": 2, "unlabeled_batch_size": 1.'),
        (1, "Not even the smallest batch fits. Set a smaller patch_size"),
    ],
)
def test_the_largest_batch_of_halves_that_fits_is_named(fitting, advice, tmp_path, monkeypatch):
    trainer = make("MeanTeacherTrainer", tmp_path, monkeypatch, changes={"batch_size": 4})
    limited(trainer, fitting, monkeypatch)
    message = message_of(trainer, batch_for(trainer))
    assert message.startswith(
        "MeanTeacherTrainer: the batch must fit into the memory of cpu; 4 labeled and 4 unlabeled samples on this "
        "process do not (CUDA out of memory. Tried to allocate 2.00 GiB.). "
    )
    assert message.endswith(advice) or advice in message


def test_a_method_that_mixes_pairs_is_not_advised_to_take_one_sample(tmp_path, monkeypatch):
    trainer = make("FixMatchTrainer", tmp_path, monkeypatch, changes={"batch_size": 4, "mixing": "batch"})
    limited(trainer, 5, monkeypatch)
    assert "2 labeled and" not in message_of(trainer, batch_for(trainer))


@pytest.mark.parametrize("doorway", DOORWAYS)
def test_every_trainer_explains_it(doorway, tmp_path, monkeypatch):
    trainer = make(doorway, tmp_path, monkeypatch, changes={"batch_size": 4})
    limited(trainer, 0, monkeypatch)
    assert "Not even the smallest batch fits." in message_of(trainer, batch_for(trainer))


def test_with_several_processes_nothing_is_tried(tmp_path, monkeypatch):
    trainer = make("SupervisedTrainer", tmp_path, monkeypatch)
    batch = batch_for(trainer)
    monkeypatch.setattr(memory, "world_size", lambda: 2)
    limited(trainer, 0, monkeypatch)
    monkeypatch.setattr(memory, "_fits", None)
    assert message_of(trainer, batch).endswith('Set "batch_size": 2 to less, or train with more processes.')


def test_other_errors_are_left_alone(tmp_path, monkeypatch):
    trainer = make("SupervisedTrainer", tmp_path, monkeypatch)
    monkeypatch.setattr(trainer, "batch_terms", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train_step(batch_for(trainer))
