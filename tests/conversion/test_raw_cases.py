"""An interrupted conversion goes on where it stopped, and never takes a half-written case for a whole one."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from raw_source import INFO, RULES, make_dataset, pair, save

from nnunet_collab.conversion import raw_cases, voxel_values
from nnunet_collab.conversion.raw_dataset import RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.source_check import Case

TARGET = Target(5, "LA")


@pytest.fixture
def dataset(tmp_path) -> RawDataset:
    return make_dataset(tmp_path / "source")


@pytest.fixture
def partial(raw) -> Path:
    return raw / ".Dataset005_LA.partial"


def interrupt(dataset: RawDataset, monkeypatch, files: int, target: Target = TARGET) -> None:
    """Stop in the middle of writing: the next file after `files` whole ones is cut off."""
    written = []
    real = voxel_values.sitk.WriteImage

    def stopping(image, path, **more):
        real(image, path, **more)
        if len(written) == files:
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            raise KeyboardInterrupt
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(voxel_values.sitk, "WriteImage", stopping)
        with pytest.raises(KeyboardInterrupt):
            write_raw_dataset(dataset, target)


def rewritten(dataset: RawDataset, monkeypatch, target: Target = TARGET) -> list[str]:
    """Finish, and return the names of the cases that were written this time."""
    written = []
    real = raw_cases._write_case

    def noting(case, *more):
        written.append(case.name)
        return real(case, *more)

    with monkeypatch.context() as patch:
        patch.setattr(raw_cases, "_write_case", noting)
        write_raw_dataset(dataset, target)
    return written


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("files", range(8))
def test_every_moment(dataset, raw, partial, monkeypatch, capsys, files):
    """Four cases of an image and a label each: cut off in the image or the label of each of them."""
    interrupt(dataset, monkeypatch, files)
    assert [path.name for path in raw.iterdir()] == [partial.name]
    complete = files // 2
    order = [case.name for case in (*dataset.train, *dataset.test)]
    capsys.readouterr()
    assert rewritten(dataset, monkeypatch) == order[complete:]
    said = capsys.readouterr().out
    if complete:
        assert f"Continuing {partial}, left by an interrupted conversion: {complete} cases complete" in said
    else:
        assert f"Removing {partial}, left by an interrupted conversion: it has no complete case" in said
    again = write_raw_dataset(dataset, replace(TARGET, overwrite=True))
    assert [path.name for path in raw.iterdir()] == ["Dataset005_LA"]
    one_go = tree(again)
    assert not [name for name in one_go if "manifest" in name or "partial" in name]
    assert one_go == tree(write_raw_dataset(dataset, Target(5, "LA", overwrite=True)))


def test_the_result_is_that_of_one_go(dataset, raw, monkeypatch):
    interrupt(dataset, monkeypatch, 5)
    write_raw_dataset(dataset, TARGET)
    continued = tree(raw / "Dataset005_LA")
    assert tree(write_raw_dataset(dataset, replace(TARGET, overwrite=True))) == continued


def test_a_changed_source_and_a_touched_result_are_written_again(dataset, raw, partial, monkeypatch):
    interrupt(dataset, monkeypatch, 6)  # three cases are complete
    image = dataset.train[0].images[0]
    stat = image.stat()
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    (partial / "labelsTr" / "a_2.nii.gz").write_bytes(b"short")
    assert rewritten(dataset, monkeypatch) == ["a_1", "a_2", "c_1"]


def test_a_lost_file_is_written_again(dataset, raw, partial, monkeypatch):
    interrupt(dataset, monkeypatch, 6)
    (partial / "imagesTr" / "b_1_0000.nii.gz").unlink()
    assert rewritten(dataset, monkeypatch) == ["b_1", "c_1"]


@pytest.mark.parametrize(
    "change",
    [
        {"info": replace(INFO, labels={"background": 0, "other": 1})},
        {"rules": replace(RULES, label_values={0: 0, 255: 1, 7: 0})},
    ],
)
def test_another_conversion_starts_afresh(dataset, raw, partial, monkeypatch, change):
    interrupt(dataset, monkeypatch, 6)
    assert len(rewritten(replace(dataset, **change), monkeypatch)) == 4


def test_another_protocol_starts_afresh_so_that_no_label_is_left(tmp_path, raw, partial, monkeypatch):
    train = [pair(tmp_path / "more", f"{patient}_1") for patient in "abcd"]
    dataset = RawDataset(INFO, RULES, train)
    interrupt(dataset, monkeypatch, 7)
    rewritten(dataset, monkeypatch, Target(5, "LA", labeled="2"))
    assert len(list((raw / "Dataset005_LA" / "labelsTr").iterdir())) == 2


def test_a_case_that_is_gone_leaves_nothing_behind(dataset, raw, monkeypatch):
    interrupt(dataset, monkeypatch, 6)
    fewer = replace(dataset, test=())  # the numbers in dataset.json stay, so the manifest still fits
    assert rewritten(fewer, monkeypatch) == []
    assert not (raw / "Dataset005_LA" / "labelsTs").exists()


def test_a_line_that_was_cut_off_is_no_complete_case(dataset, raw, partial, monkeypatch):
    interrupt(dataset, monkeypatch, 6)
    manifest = partial / "manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-20])
    assert rewritten(dataset, monkeypatch) == ["b_1", "c_1"]
    interrupt(dataset, monkeypatch, 2, replace(TARGET, overwrite=True))
    manifest.write_text("no json")
    assert len(rewritten(dataset, monkeypatch, replace(TARGET, overwrite=True))) == 4


def test_only_what_remains_needs_space(dataset, raw, monkeypatch):
    from types import SimpleNamespace

    from nnunet_collab.conversion import raw_target

    interrupt(dataset, monkeypatch, 6)
    size = sum(path.stat().st_size for path in dataset.test[0].sources)
    monkeypatch.setattr(raw_target.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    assert rewritten(dataset, monkeypatch) == ["c_1"]


def test_stamp_of_a_folder_names_every_file_in_it(tmp_path):
    folder = tmp_path / "series"
    save(folder / "deep" / "b.nrrd", np.zeros((2, 2, 2), np.uint8))
    save(folder / "a.nrrd", np.zeros((2, 2, 2), np.uint8))
    label = save(tmp_path / "l.nrrd", np.zeros((2, 2, 2), np.uint8))
    stamp = raw_cases.source_stamp(Case("x", (folder,), label, (label,)))
    paths = [folder / "a.nrrd", folder / "deep" / "b.nrrd", label, label]
    assert [entry[0] for entry in stamp] == [hashlib.sha256(str(path).encode()).hexdigest() for path in paths]
    assert all(entry[1] > 0 for entry in stamp)
    assert json.loads(json.dumps(stamp)) == stamp
