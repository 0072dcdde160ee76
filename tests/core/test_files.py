"""Atomic writing: whatever goes wrong, the old file or the new one is there, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import aside, remove_leftovers, write_atomically, write_json
from nnunet_collab.core.process import ProcessId, this_process


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def half_then(error):
    def write(temporary):
        temporary.write_text("half")
        raise error

    return write


def test_content_arrives_under_the_name_alone(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("first", "second"):
        write_atomically(path, lambda temporary, content=content: temporary.write_text(content) and None)
        assert path.read_text() == content
        assert names(tmp_path) == ["a.txt"]


def test_the_name_appears_only_when_the_file_is_complete_and_flushed(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    seen = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append("flush"), flush(number)))
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.append("rename"), rename(old, new)))

    def write(temporary):
        assert temporary.parent == tmp_path  # another disk could not be renamed from
        temporary.write_text("x")
        seen.append("write")
        assert not path.exists()

    write_atomically(path, write)
    assert seen == ["write", "flush", "rename"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("writing failed")])
def test_a_failure_in_the_middle_keeps_the_old_file_and_no_temporary_one(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(CollabError) as caught:
        write_atomically(path, half_then(error))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]
    message = str(caught.value)
    assert message.startswith(f"{path}: could not be written (")
    assert str(error) in message
    assert "The file that was there before is untouched. Free some disk space or fix the permissions" in message


def test_without_an_old_file_the_message_says_so(tmp_path):
    with pytest.raises(CollabError, match=r"There was no such file before\."):
        write_atomically(tmp_path / "a.txt", half_then(OSError("full")))
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TypeError("not ours to explain")])
def test_other_errors_pass_through_and_leave_nothing(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_atomically(path, half_then(error))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_rename_that_fails_is_told_too(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(CollabError, match=r"a\.txt: could not be written"):
        write_atomically(tmp_path / "a.txt", lambda temporary: temporary.write_text("x") and None)
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CollabError, match=r"file/a\.txt: could not be written"):
        write_atomically(tmp_path / "file" / "a.txt", lambda temporary: temporary.write_text("x") and None)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert names(tmp_path) == ["a.json"]


# ---------------------------------------------------------------- what killed processes leave behind


def written_by(folder, writer, name="checkpoint_latest.pth"):
    path = folder / f".{name}.{writer}.partial"
    path.write_text("half")
    return path


@pytest.fixture
def gone():
    process = subprocess.Popen(["true"])
    process.wait()
    return ProcessId(this_process().place, process.pid, 1)


def test_files_of_processes_that_are_gone_are_removed_and_all_others_stay(tmp_path, gone):
    me = this_process()
    elsewhere = ProcessId("0badcafe", 1, 1)
    left = [
        written_by(tmp_path, gone),
        written_by(tmp_path, gone, "plans.json"),
        written_by(tmp_path, ProcessId(me.place, me.pid, me.started + 1)),  # the number is used again
        written_by(tmp_path, elsewhere, "old"),
    ]
    os.utime(left[-1], (0, 0))
    written_by(tmp_path, me)
    written_by(tmp_path, elsewhere, "fresh")
    for name in (
        ".mine.partial",
        f".x.{os.getpid()}.partial",
        "x.partial",
        f"x.{gone}.partial",
        f".{gone}.partial",
    ):
        (tmp_path / name).write_text("the user's own")
    (tmp_path / f".folder.{gone}.partial").mkdir()
    before = set(names(tmp_path))
    assert set(remove_leftovers([tmp_path, tmp_path / "not there"])) == set(left)
    assert before - set(names(tmp_path)) == {path.name for path in left}
    assert remove_leftovers([tmp_path]) == []


def test_what_is_being_written_bears_the_name_of_its_writer(tmp_path):
    seen = []
    write_atomically(tmp_path / "a.txt", lambda temporary: seen.append((temporary, temporary.write_text("x"))))
    ((temporary, _),) = seen
    assert temporary == aside(tmp_path / "a.txt")
    temporary.write_text("still being written")
    assert remove_leftovers([tmp_path]) == []
    temporary.unlink()
