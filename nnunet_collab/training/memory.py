"""Say which batch would fit when a step runs out of the device's memory, instead of torch's own message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from nnunet_collab.core.distributed import world_size
from nnunet_collab.core.errors import CollabError

UNLABELED_ENTRIES = frozenset({"views", "learn_mask", "keys_unlabeled"})  # all others belong to the labeled samples


def out_of_memory(trainer: Any, batch: Mapping[str, Any], message: str) -> CollabError:
    """Our error for torch's, with the largest batch that fits. The training ends, so its state does not matter.

    Call it outside of the handler: there, the traceback keeps the activations of the failed step alive.

    Args:
        trainer: A `CollabTrainer`.
        batch: The batch of the step.
        message: What torch said.
    """
    sizes = _sizes(trainer, batch)
    return CollabError(
        f"{trainer.trainer_name}: the batch must fit into the memory of {trainer.device}; {_words(sizes)} on this "
        f"process do not ({message.splitlines()[0]}). {_advice(trainer, batch, sizes)}"
    )


def _sizes(trainer: Any, batch: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of labeled and of unlabeled samples; a method may take several crops for an unlabeled sample."""
    return len(batch["data"]), trainer.unlabeled_per_batch if "views" in batch else 0


def _advice(trainer: Any, batch: Mapping[str, Any], sizes: tuple[int, int]) -> str:
    if world_size() > 1:  # the other processes would wait for ours
        return f"Set {_settings(sizes)} to less, or train with more processes."
    crops = len(batch["views"]) // sizes[1] if sizes[1] else 0  # of each unlabeled sample
    for smaller in _smaller(*sizes):
        trainer.labeled_per_batch, trainer.unlabeled_per_batch = smaller
        if _fits(trainer, _first(batch, smaller[0], crops * smaller[1])):
            return f"{_words(smaller)} fit: set {_settings(smaller)}."
    return "Not even the smallest batch fits. Set a smaller patch_size, or fewer features in 'arch' of the student."


def _smaller(labeled: int, unlabeled: int) -> Iterator[tuple[int, int]]:
    """Fewer unlabeled samples first: the labeled batch is nnU-Net's. Each time half as many."""
    while unlabeled > 1:
        unlabeled //= 2
        yield labeled, unlabeled
    while labeled > 1:
        labeled //= 2
        yield labeled, unlabeled


def _fits(trainer: Any, batch: dict[str, Any]) -> bool:
    """Whether forward and backward pass of the batch succeed."""
    trainer.optimizers.zero_grad()
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        with trainer._autocast():
            terms = trainer.batch_terms(batch)
        trainer.optimizers.backward(sum((term.weight * term.value for term in terms), start=torch.zeros(())))
    except Exception:  # too little memory, or too few samples for the method, such as one that mixes pairs
        return False
    return True


def _first(batch: Mapping[str, Any], labeled: int, unlabeled: int) -> dict[str, Any]:
    """The first labeled samples and the first unlabeled crops of a batch."""

    def cut(value: Any, count: int) -> Any:
        if isinstance(value, torch.Tensor):
            return value[:count]
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return [part[:count] for part in value]  # targets of deep supervision
        return value[:count]

    return {key: cut(value, unlabeled if key in UNLABELED_ENTRIES else labeled) for key, value in batch.items()}


def _words(sizes: tuple[int, int]) -> str:
    labeled, unlabeled = sizes
    return f"{labeled} labeled and {unlabeled} unlabeled samples" if unlabeled else f"{labeled} samples"


def _settings(sizes: tuple[int, int]) -> str:
    labeled, unlabeled = sizes
    return f'"batch_size": {labeled}' + (f', "unlabeled_batch_size": {unlabeled}' if unlabeled else "")
