"""Batches that depend only on (seed, stream, rank, number).

nnU-Net's loader takes the next batch from the first worker that has one, and each worker draws from its own global
generators. So no run can be repeated, and a resumed run differs from an uninterrupted one. Forked workers even share
the state of torch's generator. Here the generators are seeded for each batch, and the workers take turns. So
the batches do not depend on the number of workers.
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
    """The part of nnU-Net's loader that this module uses."""

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch, using numpy's and torch's global generators."""


class SeededBatches:
    """Endless batches of `source`. Batch number i is drawn with generators seeded by `(*key, i)`.

    Args:
        source: Loader that draws batches with the global generators.
        key: Non-negative integers that identify this stream: seed, stream, rank.
        start: Number of the first batch.
        workers: Number of processes that take turns; see `set_thread_id`.
    """

    def __init__(self, source: BatchSource, key: tuple[int, ...], *, start: int, workers: int = 1) -> None:
        self.source = source
        self.key = key
        self.start = start
        self.workers = workers
        self.number = start

    def set_thread_id(self, thread_id: int) -> None:
        """Called by the augmenter in each worker. The worker makes the batches start + thread_id + k * workers."""
        # A forked worker inherits OpenMP's record of threads that exist only in its parent; it would wait for them.
        torch.set_num_threads(1)
        self.number = self.start + thread_id
        # Ctrl-C reaches every process of the terminal, and a forked worker inherits the trainer's handlers. But only
        # the main process decides when a worker ends.
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
    """An error in a worker, passed on in place of a batch.

    Attributes:
        message: Message for the user.
        expected: Whether the error is a `CollabError`.
        trace: Traceback of the error.
    """

    message: str
    expected: bool
    trace: str


class _TellingBatches(SeededBatches):
    """Returns an exception as a batch, because batchgenerators only prints it in the worker."""

    def __next__(self) -> Any:
        number = self.number
        try:
            return super().__next__()
        except Exception as error:  # the main process must see every error
            self.number = number + self.workers
            text = str(error) if isinstance(error, CollabError) else f"{type(error).__name__}: {error}"
            return Failure(text, isinstance(error, CollabError), traceback.format_exc())


class Workers(MultiThreadedAugmenter):  # type: ignore[misc]
    """Worker processes of batchgenerators that report their errors and end with their parent.

    Raises:
        CollabError: When a batch is drawn, if it failed for a reason that the user can fix, or if a worker was killed.
        RuntimeError: If the batch failed for another reason.
    """

    def __next__(self) -> Any:
        try:
            batch = super().__next__()
        except RuntimeError as error:  # a worker ended without a message
            raise CollabError(
                "a process that loads data was killed, most often because the machine ran out of memory (see the log "
                "of the kernel, `dmesg`). Use more memory, or set nnUNet_n_proc_DA to a smaller number of processes, "
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
        """Stop at exit. Otherwise the thread that reads from the workers would report their end as a fault."""
        threading.excepthook = lambda _: None
        self.abort_event.set()


def in_background(
    source: BatchSource, key: tuple[int, ...], *, start: int, workers: int, pin_memory: bool
) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """Seeded batches in order, prepared in advance by `workers` processes (0: made in this process)."""
    if workers == 0:
        return SingleThreadedAugmenter(SeededBatches(source, key, start=start), None)
    batches = _TellingBatches(source, key, start=start, workers=workers)
    return Workers(batches, None, workers, num_cached_per_queue=2, seeds=None, pin_memory=pin_memory, wait_time=0.002)


@contextmanager
def seeded(key: tuple[int, ...]) -> Iterator[None]:
    """Seed the CPU generators of Python, numpy and torch with `key`, and restore their states at the end."""
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
