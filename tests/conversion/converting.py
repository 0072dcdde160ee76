"""What the tests of all converters share: run one, and look at what it wrote with nibabel, which it does not use."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from nnunet_collab.commands import convert as convert_command
from nnunet_collab.core.errors import CollabError


def convert(name: str, source: Path, *more: str) -> None:
    parser = argparse.ArgumentParser()
    convert_command.add_arguments(parser)
    assert convert_command.run(parser.parse_args([name, str(source), "-d", "27", *more])) == 0


def refusal(raw: Path, name: str, source: Path, *more: str) -> str:
    """The message of a conversion that must refuse, after making sure that nothing was written."""
    with pytest.raises(CollabError) as caught:
        convert(name, source, *more)
    assert not raw.exists()
    assert not raw.with_name("nnUNet_preprocessed").exists()
    return str(caught.value)


def facts(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def names(folder: Path) -> list[str]:
    """Cases in a folder of images or labels."""
    if not folder.is_dir():
        return []
    return sorted({path.name.split(".")[0].removesuffix("_0000") for path in folder.iterdir()})


def splits(folder: Path) -> list:
    """The split, after making sure that training reads the same."""
    split = json.loads((folder / "splits_final.json").read_text())
    there = folder.parents[1] / "nnUNet_preprocessed" / folder.name / "splits_final.json"
    assert json.loads(there.read_text()) == split
    return split


def assert_volume(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Voxels, in nibabel's order x, y, z, and their places in millimeters (right, anterior, superior)."""
    image = nib.load(path)
    assert np.array_equal(np.asarray(image.dataobj), voxels)
    assert np.allclose(image.affine, affine, atol=1e-4)


def assert_nnunet_finds_no_fault(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    # Threads instead of spawned processes: the same checks, without importing torch in each process.
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    capsys.readouterr()
    verify_dataset_integrity(str(folder), 1)
    printed = capsys.readouterr().out
    assert "verify_dataset_integrity Done" in printed
    assert "Warning" not in printed


def assert_citable(about: dict) -> None:
    for key in ("license", "citation", "reference", "description", "patient_pattern", "split"):
        assert about[key], key
