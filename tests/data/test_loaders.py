"""Batch number i is the same whatever makes it, and nothing that goes wrong in a worker can hang the run."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch

from nnunet_collab.core.errors import CollabError
from nnunet_collab.data.loaders import SeededBatches, in_background, seeded

KEY = (5, 0, 1)


class Source:
    """Draws from all three generators, as nnU-Net's loader and its transforms do."""

    def generate_train_batch(self):
        numbers = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        return {"numbers": numbers, "process": os.getpid()}


class Failing(Source):
    def generate_train_batch(self):
        raise ValueError("case_007 cannot be read")


class Refusing(Source):
    def generate_train_batch(self):
        raise CollabError("case_007: it must be there. Put it back.")


class Killed(Source):
    """As by the kernel when memory runs out."""

    def generate_train_batch(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Threaded(Source):
    """Work that torch shares among its threads."""

    def generate_train_batch(self):
        return {"data": torch.rand(2**20).exp().sum()}


def within(seconds, function):
    """Result or exception of `function`; fails if there is none in time."""
    result = []

    def call():
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it hangs"
    return result[0]


def first(count, source=None, *, key=KEY, start=0, workers=0):
    """The first batches of a stream, or what it raises."""
    batches = in_background(source or Source(), key, start=start, workers=workers, pin_memory=False)
    try:
        return within(120, lambda: [next(batches) for _ in range(count)])
    finally:
        if workers:
            batches._finish()


def numbers(batches):
    return [batch["numbers"] for batch in batches]


@pytest.fixture(scope="module")
def sequence():
    """Batches 0 to 11, made in this process."""
    return numbers(first(12))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 5])
def test_the_same_batches_come_in_order_from_any_number_of_workers_and_any_start(sequence, workers, start):
    batches = first(7, start=start, workers=workers)
    assert numbers(batches) == sequence[start : start + 7]
    processes = [batch["process"] for batch in batches]
    assert os.getpid() not in processes
    assert len(set(processes)) == workers
    assert processes == [processes[i % workers] for i in range(7)]  # they take turns


@pytest.mark.parametrize("start", [0, 1, 11])
def test_a_stream_that_starts_later_joins_in(sequence, start):
    assert numbers(first(12 - start, start=start)) == sequence[start:]


def test_no_number_of_any_generator_is_drawn_twice(sequence):
    drawn = [number for batch in sequence for number in batch]
    assert len(set(drawn)) == len(drawn) == 36


@pytest.mark.parametrize("key", [(6, 0, 1), (5, 1, 1), (5, 0, 0)])
def test_seed_stream_and_rank_each_make_another_sequence(sequence, key):
    assert not set(map(tuple, numbers(first(12, key=key)))) & set(map(tuple, sequence))


def states():
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002
    return random.getstate(), keys.tolist(), position, torch.get_rng_state().tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_generators_of_the_main_process_are_left_alone(workers):
    before = states()
    first(3, workers=workers)
    assert states() == before


def test_the_generators_are_put_back_even_if_a_batch_fails():
    before = states()
    error = first(1, Failing())
    assert isinstance(error, ValueError)
    assert states() == before


def test_seeding_sets_all_three_generators():
    def draw(before):
        random.seed(before), np.random.seed(before), torch.manual_seed(before)  # noqa: NPY002
        with seeded((1, 2)):
            return Source().generate_train_batch()["numbers"]

    assert draw(0) == draw(1)


# batchgenerators' own thread ends with the error that it hands on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (Failing(), RuntimeError, "a process that loads data failed: ValueError: case_007 cannot be read"),
        (Refusing(), CollabError, "case_007: it must be there. Put it back."),
        (
            Killed(),
            CollabError,
            "a process that loads data was killed, most often because the machine ran out of memory",
        ),
    ],
    ids=["raises", "refuses", "is killed"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_ends_ends_the_run_with_its_own_error(source, kind, message, workers):
    error = first(3, source, workers=workers)
    assert isinstance(error, kind)
    assert str(error).splitlines()[-1].startswith(message)


def test_a_worker_forked_beside_running_threads_does_not_wait_for_them():
    batches = in_background(Threaded(), KEY, start=0, workers=1, pin_memory=False)

    def fork_where_threads_run():
        torch.rand(2**20).exp().sum()  # starts the threads that a forked process does not have
        return [next(batches) for _ in range(2)]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert len(within(60, fork_where_threads_run)) == 2
    finally:
        torch.set_num_threads(before)
        batches._finish(timeout=1)


def test_the_first_number_of_each_worker_follows_from_its_place():
    batches = SeededBatches(Source(), KEY, start=4, workers=3)
    threads = torch.get_num_threads()
    try:
        batches.set_thread_id(2)
    finally:
        torch.set_num_threads(threads)
    assert batches.number == 6
    next(iter(batches))
    assert batches.number == 9
