"""How a conversion script is found and started."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest
from mini_acdc import write_acdc

from nnunet_collab.commands import convert as convert_command
from nnunet_collab.conversion import scripts as conversion_scripts
from nnunet_collab.core import shipped
from nnunet_collab.core.errors import CollabError


def test_unknown_dataset_name_lists_the_known_ones(tmp_path):
    parser = argparse.ArgumentParser()
    convert_command.add_arguments(parser)
    with pytest.raises(CollabError, match=r"NAME must be one of .*acdc.*; got 'acdd'"):
        convert_command.run(parser.parse_args(["acdd", str(tmp_path), "-d", "27"]))


def test_scripts_are_found_inside_a_wheel_and_beside_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "nnunet_collab"
    package.mkdir()
    monkeypatch.setattr(shipped, "PACKAGE", package)
    with pytest.raises(CollabError, match=r"dataset_conversion: the folder must be .*; neither exists"):
        conversion_scripts.conversion_folder()
    (tmp_path / "dataset_conversion").mkdir()
    assert conversion_scripts.conversion_folder() == tmp_path / "dataset_conversion"
    (package / "dataset_conversion").mkdir()
    (package / "dataset_conversion" / "mine.py").touch()
    assert conversion_scripts.conversion_folder() == package / "dataset_conversion"
    assert convert_command.converter_names() == ["mine"]


SCRIPT = """
raise RuntimeError("a script must not be run to list its options")
OPTIONS = {"--my-task": {"choices": ["a", "b"], "help": "which"}}
"""


def test_options_of_scripts_are_listed_without_running_them(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SCRIPT)
    (tmp_path / "other.py").write_text("X = 1\n")
    monkeypatch.setattr(conversion_scripts, "conversion_folder", lambda: tmp_path)
    monkeypatch.setattr(convert_command, "conversion_folder", lambda: tmp_path)
    parser = argparse.ArgumentParser()
    convert_command.add_arguments(parser)
    text = parser.format_help()
    assert "options of mine:" in text
    assert "--my-task {a,b}" in text
    assert "options of other" not in text
    assert "--labeled PROTOCOL" in text
    assert "LA 4, 8 or 16" in text
    args = parser.parse_args(["other", str(tmp_path), "-d", "1", "--my-task", "a"])
    with pytest.raises(
        CollabError, match=r"--my-task is an option of the dataset mine; got it for other\. Leave it out\."
    ):
        convert_command.run(args)


def test_options_and_protocol_reach_the_script(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        SCRIPT.replace("raise RuntimeError", "str")
        + "DATASET_NAME = 'Mine'\ndef convert(source, target, my_task='default'):\n    SEEN.append((target, my_task))\n"
        + "SEEN = []\n"
    )
    monkeypatch.setattr(conversion_scripts, "conversion_folder", lambda: tmp_path)
    monkeypatch.setattr(convert_command, "conversion_folder", lambda: tmp_path)
    parser = argparse.ArgumentParser()
    convert_command.add_arguments(parser)
    for words, want in (
        ([], (None, 0, "default")),
        (["--my-task", "b", "--labeled", "50%", "--seed", "3"], ("50%", 3, "b")),
    ):
        convert_command.run(parser.parse_args(["mine", str(tmp_path), "-d", "7", *words]))
        ((target, task),) = sys.modules["nnunet_collab_conversion_mine"].SEEN
        assert (target.dataset_id, target.name) == (7, "Mine")
        assert (target.labeled, target.seed, task) == want


def test_options_of_all_converters_differ():
    scripts = sorted(conversion_scripts.conversion_folder().glob("*.py"))
    flags = [flag for script in scripts for flag in conversion_scripts.script_options(script)]
    assert len(flags) == len(set(flags)) >= 6
    assert not {"--name", "--overwrite", "--labeled", "--seed", "-d"} & set(flags)


@pytest.mark.slow
def test_script_runs_alone(tmp_path, monkeypatch):
    source = write_acdc(tmp_path / "ACDC")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    script = conversion_scripts.conversion_folder() / "acdc.py"
    assert conversion_scripts.run_alone(script, [str(source), "-d", "27"]) == 0
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
