"""Batches that are a pure function of (seed, stream, rank, number).

nnU-Net's loader draws from the global generators of whichever worker comes first, so that no run can be repeated and no
resumed run equals an uninterrupted one; forked workers even share their torch generator. Here batch number i is drawn
from a generator seeded for it alone, and workers take turns. The same batches come whatever the number of workers.
"""

from __future__ import annotations

import atexit
import random
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.process import end_with_parent


class BatchSource(Protocol):
    """What we need of an nnU-Net loader."""

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch, using numpy's and torch's global generators."""


class SeededBatches:
    """Endless batches of `source`; number i is drawn with generators seeded by `(*key, i)`.

    Args:
        source: Draws a batch from the global generators.
        key: Non-negative integers that set this stream apart: seed, stream, rank.
        start: Number of the first batch.
        workers: Number of processes that take turns, see `set_thread_id`.
    """

    def __init__(self, source: BatchSource, key: tuple[int, ...], *, start: int, workers: int = 1) -> None:
        self.source = source
        self.key = key
        self.start = start
        self.workers = workers
        self.number = start

    def set_thread_id(self, thread_id: int) -> None:
        """Called by the augmenter in each worker: it makes the batches number start + thread_id + k * workers."""
        # A forked worker inherits OpenMP's record of threads that only its parent has; waiting for them would hang it.
        torch.set_num_threads(1)
        self.number = self.start + thread_id
        # Ctrl-C reaches every process of the terminal, and the trainer's handlers came with the fork; the main process
        # alone decides when a worker ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        with seeded((*self.key, self.number)):
            batch = self.source.generate_train_batch()
        self.number += self.workers
        return batch


@dataclass(frozen=True)
class Failure:
    """What went wrong in a worker, in place of a batch.

    Attributes:
        message: For the user.
        expected: Whether it was a `CollabError`.
        trace: Where it happened.
    """

    message: str
    expected: bool
    trace: str


class _TellingBatches(SeededBatches):
    """Hands an exception over as a batch: batchgenerators only prints it, in the worker."""

    def __next__(self) -> Any:
        number = self.number
        try:
            return super().__next__()
        except Exception as error:  # whatever it is, the main process must know
            self.number = number + self.workers
            text = str(error) if isinstance(error, CollabError) else f"{type(error).__name__}: {error}"
            return Failure(text, isinstance(error, CollabError), traceback.format_exc())


class Workers(MultiThreadedAugmenter):  # type: ignore[misc]
    """batchgenerators' worker processes, which say what went wrong in one of them, and end with their parent.

    Raises:
        CollabError: On drawing a batch, if making it failed for a reason the user can fix, or a worker was killed.
        RuntimeError: If making it failed otherwise.
    """

    def __next__(self) -> Any:
        try:
            batch = super().__next__()
        except RuntimeError as error:  # a worker is gone without a word
            raise CollabError(
                "a process that loads data was ended from outside, most often because the memory ran out (the kernel "
                "writes so into its log, `dmesg`). Make the memory larger or set nnUNet_n_proc_DA to fewer processes, "
                "then continue with --c."
            ) from error
        if isinstance(batch, Failure):
            self._finish()
            if batch.expected:
                raise CollabError(batch.message)
            raise RuntimeError(f"{batch.trace}\na process that loads data failed: {batch.message}")
        return batch

    def _start(self) -> None:
        super()._start()
        atexit.register(self._abort)

    def _finish(self, *args: Any, **kwargs: Any) -> None:
        atexit.unregister(self._abort)
        super()._finish(*args, **kwargs)

    def _abort(self) -> None:
        """At exit: the thread that reads from the workers would take their end, or half a batch, for a fault."""
        threading.excepthook = lambda _: None
        self.abort_event.set()


def in_background(
    source: BatchSource, key: tuple[int, ...], *, start: int, workers: int, pin_memory: bool
) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """Seeded batches in order, made by `workers` processes (0: in this one) ahead of their use."""
    if workers == 0:
        return SingleThreadedAugmenter(SeededBatches(source, key, start=start), None)
    batches = _TellingBatches(source, key, start=start, workers=workers)
    return Workers(batches, None, workers, num_cached_per_queue=2, seeds=None, pin_memory=pin_memory, wait_time=0.002)


@contextmanager
def seeded(key: tuple[int, ...]) -> Iterator[None]:
    """Seed Python's, numpy's and torch's CPU generators from `key`, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    state = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])  # noqa: NPY002  (nnU-Net and batchgenerators draw from the global generator)
    torch.default_generator.manual_seed(int(state[2]))  # torch.manual_seed would seed the GPUs, too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
