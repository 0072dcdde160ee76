"""How a conversion script is found and started."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest
from mini_acdc import write_acdc

from nnunet_collab.core import shipped
from nnunet_collab.core.errors import CollabError
from nnunet_collab.data import convert_command


def test_unknown_dataset_name_lists_the_known_ones(tmp_path):
    parser = argparse.ArgumentParser()
    convert_command.add_arguments(parser)
    with pytest.raises(CollabError, match=r"NAME must be one of .*acdc.*; got 'acdd'"):
        convert_command.run(parser.parse_args(["acdd", str(tmp_path), "-d", "27"]))


def test_scripts_are_found_inside_a_wheel_and_beside_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "nnunet_collab"
    package.mkdir()
    monkeypatch.setattr(shipped, "PACKAGE", package)
    with pytest.raises(CollabError, match=r"dataset_conversion: must be the folder .*; there is none"):
        convert_command.conversion_folder()
    (tmp_path / "dataset_conversion").mkdir()
    assert convert_command.conversion_folder() == tmp_path / "dataset_conversion"
    (package / "dataset_conversion").mkdir()
    (package / "dataset_conversion" / "mine.py").touch()
    assert convert_command.conversion_folder() == package / "dataset_conversion"
    assert convert_command.converter_names() == ["mine"]


def test_script_runs_alone(tmp_path, monkeypatch):
    source = write_acdc(tmp_path / "ACDC")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    script = convert_command.conversion_folder() / "acdc.py"
    assert convert_command.run_alone(script, [str(source), "-d", "27"]) == 0
    again = subprocess.run(  # a second time, in a process of its own: refused, without a traceback
        [sys.executable, str(script), str(source), "-d", "27"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(script.parents[1])},
    )
    assert again.returncode == 2
    assert "the dataset exists already" in again.stderr
    assert "Traceback" not in again.stderr
