"""One training per folder: a second one is refused, what a dead one left is taken over, nothing is left behind."""

from __future__ import annotations

import json
import os
import time

import pytest
from locks import ELSEWHERE, another_here, gone_here, leave_lock

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.process import this_process
from nnunet_collab.training import lock as lock_module
from nnunet_collab.training.lock import NAME, SILENT_S, FolderLocks


@pytest.fixture
def folders(tmp_path):
    """Of a run and of its two students."""
    return [tmp_path / f"Trainer{name}__plans__2d" / "fold_0" for name in ("", "_CNN", "_Transformer")]


def test_all_folders_are_held_and_given_back_without_a_trace(folders, tmp_path):
    folders[0].mkdir(parents=True)  # as nnU-Net makes the run's own
    locks = FolderLocks(folders)
    for folder in folders:
        holder = json.loads((folder / NAME).read_text())
        assert holder["process"] == str(this_process())
        assert [path.name for path in folder.iterdir()] == [NAME]
    locks.check()
    locks.release()
    locks.release()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert [path.name for path in tmp_path.iterdir()] == ["Trainer__plans__2d"]  # those made for the lock are gone


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    ("holder", "age_s", "words"),
    [
        (another_here, 0, "is running"),
        (another_here, 10 * SILENT_S, "is running"),  # it may be stopped for a while: it is still there
        (lambda: ELSEWHERE, 0, "process 1 on node7, since 2026-01-02 03:04:05, sent its last heartbeat"),
        (lambda: ELSEWHERE, 0.9 * SILENT_S, "counts as dead after 600 s"),
        (lambda: "damaged", 0, "a training sent its last heartbeat"),
    ],
    ids=["here", "here-silent", "elsewhere", "elsewhere-late", "unreadable"],
)
def test_a_second_training_is_refused_and_holds_nothing(folders, which, holder, age_s, words):
    path = leave_lock(folders[which], holder(), age_s)
    before = path.read_text()
    with pytest.raises(CollabError) as caught:
        FolderLocks(folders)
    message = str(caught.value)
    assert message.startswith(f"{folders[which]}: one training at a time may write here; ")
    assert words in message
    assert f"If that training has certainly ended, delete {path}." in message
    assert "Wait for it or end it, or start this one under another run_name." in message
    assert path.read_text() == before
    left = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    assert left == [path]


@pytest.mark.parametrize(
    ("holder", "age_s"),
    [(gone_here, 0), (lambda: ELSEWHERE, 1.1 * SILENT_S), (lambda: "damaged", 1.1 * SILENT_S)],
    ids=["killed", "silent elsewhere", "silent and unreadable"],
)
def test_what_a_dead_training_left_is_taken_over(folders, holder, age_s):
    for folder in folders:
        leave_lock(folder, holder(), age_s)
    locks = FolderLocks(folders)
    locks.check()
    locks.release()
    assert [file for folder in folders if folder.is_dir() for file in folder.iterdir()] == []


def test_one_process_may_train_again_in_its_own_folder(folders):
    first = FolderLocks(folders)
    second = FolderLocks(folders)
    second.release()
    first.check()  # the second gave back only what it took itself
    first.release()


def test_a_disk_without_links_locks_too(folders, monkeypatch):
    def no_links(*_):
        raise PermissionError("links are not supported")

    monkeypatch.setattr(lock_module.os, "link", no_links)
    locks = FolderLocks(folders)
    assert all((folder / NAME).is_file() for folder in folders)
    locks.release()
    leave_lock(folders[0], another_here())
    with pytest.raises(CollabError, match="one training at a time"):
        FolderLocks(folders)


@pytest.mark.parametrize("loss", ["taken over", "removed"])
def test_a_training_that_lost_its_folder_writes_no_more_and_leaves_the_new_lock(folders, loss):
    locks = FolderLocks(folders)
    path = leave_lock(folders[1], another_here())
    if loss == "removed":
        path.unlink()
    with pytest.raises(CollabError, match="must name this training, process"):
        locks.check()
    locks.release()
    assert path.exists() == (loss == "taken over")


def test_of_two_that_find_a_stale_lock_none_removes_the_others_new_one(folders):
    stale = lock_module._read(leave_lock(folders[0], gone_here()))
    path = leave_lock(folders[0], another_here())  # the other one was faster
    lock_module._remove_stale(path, stale)
    assert lock_module._read(path).process == str(another_here())
    assert [file.name for file in folders[0].iterdir()] == [NAME]


def test_a_living_training_gives_signs_of_life(folders, monkeypatch):
    monkeypatch.setattr(lock_module, "BEAT_S", 0.01)
    locks = FolderLocks(folders)
    paths = [folder / NAME for folder in folders]
    for path in paths:
        os.utime(path, (0, 0))
    deadline = time.monotonic() + 30
    while any(path.stat().st_mtime == 0 for path in paths) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(path.stat().st_mtime > 0 for path in paths)
    locks.release()
