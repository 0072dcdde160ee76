"""Numbers that are not finite: named, counted, survived, and in the end fatal."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import make_batch, make_trainer
from torch.amp import GradScaler

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.types import Term
from nnunet_collab.training.guard import NonFiniteGuard
from nnunet_collab.training.trainer import CollabTrainer


def test_it_names_counts_resets_and_ends_the_run():
    lines = []
    guard = NonFiniteGuard(3, lines.append)
    guard.bad(7, ["CNN/supervised", "CNN/rlcl"])
    guard.bad(8, ["Transformer/rlcl"])
    guard.good()
    guard.bad(10, ["CNN/rlcl"])
    guard.bad(11, ["CNN/rlcl"])
    assert lines == [
        "iteration 7: skipped, not finite: CNN/supervised, CNN/rlcl (1 in a row, 3 end the run)",
        "iteration 8: skipped, not finite: Transformer/rlcl (2 in a row, 3 end the run)",
        "iteration 10: skipped, not finite: CNN/rlcl (1 in a row, 3 end the run)",
        "iteration 11: skipped, not finite: CNN/rlcl (2 in a row, 3 end the run)",
    ]
    with pytest.raises(CollabError) as caught:
        guard.bad(12, ["CNN/rlcl"])
    message = str(caught.value)
    assert message.startswith(
        "training stopped: 3 iterations in a row were not finite, the last (number 12) in CNN/rlcl."
    )
    assert (
        "The checkpoints are from before these iterations. Lower that student's learning rate or raise its warm-up"
        in message
    )
    assert lines[-1].endswith("(3 in a row, 3 end the run)")


class Poisoned(CollabTrainer):
    """The Transformer's term can be made not finite, in its value or in its gradient alone."""

    poison = ""

    def loss_terms(self, outputs, target, truth):
        terms = super().loss_terms(outputs, target, truth)
        logits = outputs["Transformer"].logits
        if self.poison == "value":
            terms.append(Term("Transformer", "poison", 1.0, logits.mean() * float("nan")))
        if self.poison == "gradient":  # the square root's slope at 0
            terms.append(Term("Transformer", "poison", 1.0, (logits - logits.detach()).abs().sum().sqrt()))
        return terms


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    trainer = make_trainer(Poisoned, tmp_path, monkeypatch, changes={"max_bad_steps": 2})
    trainer.lines = []
    trainer.guard.log = trainer.lines.append
    return trainer


def weights(trainer, name):
    return [p.detach().clone() for p in trainer.group[name].parameters()]


def unchanged(trainer, name, before):
    return all(map(torch.equal, weights(trainer, name), before))


def test_a_term_that_is_not_finite_skips_the_step_and_is_named(trainer):
    before = {name: weights(trainer, name) for name in ("CNN", "Transformer")}
    trainer.poison = "value"
    result = trainer.train_step(make_batch(trainer))
    assert trainer.lines == ["iteration 0: skipped, not finite: Transformer/poison (1 in a row, 2 end the run)"]
    assert all(unchanged(trainer, name, before[name]) for name in before)
    assert trainer.iteration == 1  # the batch is used up, so that schedules and batches stay in step
    assert not torch.tensor(result["loss"]).isfinite()
    trainer.poison = ""
    trainer.train_step(make_batch(trainer))
    assert trainer.guard.in_a_row == 0
    assert not any(unchanged(trainer, name, before[name]) for name in before)
    trainer.poison = "value"
    trainer.train_step(make_batch(trainer))
    with pytest.raises(CollabError, match=r"2 iterations in a row were not finite, the last \(number 3\)"):
        trainer.train_step(make_batch(trainer))


def test_a_gradient_that_is_not_finite_is_named_and_the_other_student_goes_on(trainer):
    before = {name: weights(trainer, name) for name in ("CNN", "Transformer")}
    trainer.poison = "gradient"
    trainer.train_step(make_batch(trainer))
    assert trainer.lines == [
        "iteration 0: skipped, not finite: the gradient of Transformer (1 in a row, 2 end the run)"
    ]
    assert unchanged(trainer, "Transformer", before["Transformer"])
    assert not unchanged(trainer, "CNN", before["CNN"])


def test_a_gradient_scaler_may_search_its_scale_but_not_for_ever(trainer):
    trainer.grad_scaler = trainer.optimizers.scaler = GradScaler("cpu", init_scale=4.0)
    before = copy.deepcopy(weights(trainer, "Transformer"))
    trainer.poison = "gradient"
    for _ in range(2):  # scale 4 -> 2 -> 1
        trainer.train_step(make_batch(trainer))
    assert trainer.lines == []
    trainer.train_step(make_batch(trainer))
    assert trainer.lines == [
        "iteration 2: skipped, not finite: the gradient of Transformer (1 in a row, 2 end the run)"
    ]
    with pytest.raises(CollabError, match="2 iterations in a row were not finite"):
        trainer.train_step(make_batch(trainer))
    assert unchanged(trainer, "Transformer", before)


def test_skipped_iterations_are_left_out_of_the_epochs_mean(trainer):
    epoch = [(1.0, 1.0), (float("nan"), 5.0), (3.0, 3.0)]
    trainer.on_train_epoch_end(
        [{"loss": loss, "terms": {"CNN/a": term}, "weights": {"CNN/a": 1.0}} for loss, term in epoch]
    )
    assert trainer.curves.values["train_losses"] == [2.0]
    assert trainer.curves.values["loss/CNN/a"] == [2.0]
