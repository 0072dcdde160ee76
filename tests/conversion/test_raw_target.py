"""Every reason to refuse a target, and that the refusal leaves the disk as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from raw_source import make_dataset, refusal

from nnunet_collab.conversion import raw_target
from nnunet_collab.conversion.raw_dataset import RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target


@pytest.fixture
def dataset(tmp_path) -> RawDataset:
    return make_dataset(tmp_path / "source")


@pytest.mark.parametrize("dataset_id", [0, 1000, -1])
def test_id(dataset, raw, dataset_id):
    assert f"-d: the dataset id must lie between 1 and 999; got {dataset_id}" in refusal(
        dataset, Target(dataset_id, "LA")
    )


@pytest.mark.parametrize("name", ["", "a b", "../up", "Dataset005_LA", "_x"])
def test_name(dataset, raw, name):
    message = refusal(dataset, Target(5, name))
    assert (
        f"--name: the name must consist of letters, digits, _ and -, without the DatasetXXX_ in front; got {name!r}"
        in message
    )


def test_variable_is_missing_or_names_a_file(dataset, raw, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    message = refusal(dataset)
    assert "the environment variable nnUNet_raw must name the folder of raw datasets; it is not set" in message
    assert "export nnUNet_raw=/path/to/nnUNet_raw" in message
    raw.touch()
    monkeypatch.setenv("nnUNet_raw", str(raw))
    assert f"nnUNet_raw: must be a writable folder; {raw} is not" in refusal(dataset)


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_folder_may_not_be_written(dataset, raw, monkeypatch, variable):
    place = raw.with_name(variable)
    place.mkdir()
    monkeypatch.setattr(raw_target.os, "access", lambda path, mode: Path(path) != place)
    assert f"{variable}: must be a writable folder; {place} is not" in refusal(dataset)
    assert not list(place.iterdir())


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_id_belongs_to_another_name(dataset, raw, variable):
    other = raw.with_name(variable) / "Dataset005_Other"
    other.mkdir(parents=True)
    message = refusal(dataset)
    assert f"{other}: a dataset id must have the same name" in message
    assert "5 belongs to Dataset005_Other, so Dataset005_LA cannot have it. Choose another id with -d." in message


def test_existing_dataset_is_replaced_only_on_demand(dataset, raw, capsys):
    folder = write_raw_dataset(dataset, Target(5, "LA"))
    (folder / "imagesTr" / "old_1_0000.nii.gz").touch()
    message = refusal(dataset)
    assert f"{folder}: the dataset exists already. Choose another id with -d, or replace it with --overwrite" in message
    assert "dataset.json, imagesTr (4 files), imagesTs (1 files), labelsTr (3 files)" in message
    assert (folder / "imagesTr" / "old_1_0000.nii.gz").exists()
    capsys.readouterr()
    write_raw_dataset(dataset, Target(5, "LA", overwrite=True))
    assert f"Replacing {folder}, which held dataset.json, imagesTr (4 files)" in capsys.readouterr().out
    assert len(list((folder / "imagesTr").iterdir())) == 3


def test_overwrite_spares_what_no_conversion_made(dataset, raw):
    folder = write_raw_dataset(dataset, Target(5, "LA"))
    (folder / "imagesUn").mkdir()
    message = refusal(dataset, Target(5, "LA", overwrite=True))
    assert "--overwrite deletes only files of a conversion; the dataset also holds imagesUn. Move" in message
    assert (folder / "labelsTr" / "a_1.nii.gz").exists()


def test_a_file_has_the_datasets_name(dataset, raw):
    raw.mkdir()
    (raw / "Dataset005_LA").touch()
    assert "the dataset needs this path for its folder; it is a file. Move it away." in refusal(dataset)


@pytest.mark.parametrize("found", ['[{"train": [], "val": []}]', "no json"])
def test_another_split_is_replaced_only_on_demand(dataset, raw, found):
    split = raw.with_name("nnUNet_preprocessed") / "Dataset005_LA" / "splits_final.json"
    split.parent.mkdir(parents=True)
    split.write_text(found)
    assert f"{split}: there is already a split, and it differs from that of this conversion" in refusal(dataset)
    assert split.read_text() == found
    assert not raw.exists()
    folder = write_raw_dataset(dataset, Target(5, "LA", overwrite=True))
    assert len(json.loads(split.read_text())) == 2
    shutil.rmtree(folder)
    assert write_raw_dataset(dataset, Target(5, "LA")) == folder  # the same split is no hindrance


def test_too_little_space(dataset, raw, monkeypatch):
    size = sum(p.stat().st_size for p in dataset.train[0].images[0].parent.iterdir())
    monkeypatch.setattr(raw_target.shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    assert f"{raw}: the dataset needs about {size / 1e6:.1f} MB, the size of its source; " in refusal(dataset)
    assert not raw.exists()
    monkeypatch.setattr(raw_target.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    write_raw_dataset(dataset, Target(5, "LA"))
