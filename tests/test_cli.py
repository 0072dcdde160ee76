"""The console command: quick, helpful, and it tells mistakes without a traceback."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_collab
from nnunet_collab.cli import COMMANDS, main
from nnunet_collab.core import shipped
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.shipped import extended

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "nnunetv2", "pandas", "scipy", "matplotlib", "SimpleITK", "timm")


def python(*arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["env"], [], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_and_env_import_nothing_heavy(words):
    code = (
        "import sys\nfrom nnunet_collab.cli import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_command_and_its_module_offers_what_the_table_promises(name, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert f"    {name} " in capsys.readouterr().out.replace("\n", " ")  # the help of a long name is on the next line
    module = importlib.import_module(COMMANDS[name].module)
    assert callable(module.add_arguments)
    assert callable(module.run)


def test_help_of_convert_lists_the_converters(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert "NAME is one of: acdc" in " ".join(capsys.readouterr().out.split())


def test_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"nnunet_collab {nnunet_collab.__version__}\n"


def test_without_a_command_prints_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_an_unknown_command_is_refused_with_the_list_of_commands(capsys):
    with pytest.raises(SystemExit) as end:
        main(["evalute"])
    assert end.value.code == 2
    assert "evaluate" in capsys.readouterr().err


@pytest.mark.slow
def test_a_user_s_mistake_is_one_message_without_a_traceback():
    done = python("-m", "nnunet_collab", "convert", "no_such_dataset", ".", "-d", "1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("nnunet_collab: convert: NAME must be one of acdc")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_output_that_nobody_reads_on_ends_quietly():
    command = f"{shlex.quote(sys.executable)} -m nnunet_collab doctor | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_missing_package_leads_to_the_doctor(monkeypatch, capsys):
    def run(args):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("nnunet_collab.commands.env.run", run)
    assert main(["env"]) == 2
    assert capsys.readouterr().err == (
        "nnunet_collab: a required package cannot be imported (No module named 'torch'). "
        "Run `nnunet_collab doctor`; it says how to fix it.\n"
    )


def test_a_missing_module_of_ours_keeps_its_traceback(monkeypatch):
    def run(args):
        raise ModuleNotFoundError("No module named 'nnunet_collab.gone'", name="nnunet_collab.gone")

    monkeypatch.setattr("nnunet_collab.commands.env.run", run)
    with pytest.raises(ModuleNotFoundError, match="gone"):
        main(["env"])


# ---------------------------------------------------------------- env


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("before", ["", "/a b/it's $HOME:/c"])
def test_the_shell_that_evaluates_env_has_the_doorways_after_what_was_there(before):
    line = f'eval "$({sys.executable} -m nnunet_collab env)"; printf %s "$nnUNet_extTrainer"'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "nnUNet_extTrainer": before}
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split(":") == [*filter(None, before.split(":")), str(ROOT / "trainers")]


def test_env_prints_one_line_and_nothing_else(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert main(["env"]) == 0
    out, err = capsys.readouterr()
    assert out == f"export nnUNet_extTrainer={ROOT / 'trainers'}\n"
    assert err == ""


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("sh", "export nnUNet_extTrainer='/it'\"'\"'s \\here:{ours}'"),
        ("fish", "set -gx nnUNet_extTrainer '/it\\'s \\\\here:{ours}'"),
        ("powershell", "$env:nnUNet_extTrainer = '/it''s \\here:{ours}'"),
    ],
)
def test_env_quotes_for_each_shell(shell, line, monkeypatch, capsys):
    monkeypatch.setattr("os.pathsep", ":")
    monkeypatch.setenv("nnUNet_extTrainer", "/it's \\here")
    assert main(["env", "--shell", shell]) == 0
    assert capsys.readouterr().out.rstrip("\n") == line.format(ours=ROOT / "trainers")


def test_extending_twice_changes_nothing(tmp_path):
    once = extended(f"/x{os.pathsep}/y", tmp_path)
    assert once.split(os.pathsep) == ["/x", "/y", str(tmp_path)]
    assert extended(once, tmp_path) == once


def test_a_folder_is_recognized_in_every_spelling_and_the_first_one_stays(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    spelled = f"{tmp_path}{os.sep}other{os.sep}..{os.sep}real"
    assert extended(str(link), real) == str(link)
    assert extended(os.pathsep.join(["", spelled, " ", str(link)]), real) == spelled


def test_a_folder_that_no_list_of_paths_can_hold_is_refused(tmp_path):
    folder = tmp_path / f"a{os.pathsep}b"
    with pytest.raises(CollabError, match=r"nnUNet_extTrainer: .* separates its folders, so .*Move the project"):
        extended("", folder)


def test_scripts_lie_inside_an_installed_package_and_beside_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site" / "nnunet_collab"
    monkeypatch.setattr(shipped, "PACKAGE", package)
    with pytest.raises(
        CollabError, match=r"trainers: the folder must be .*; neither exists\. Install the package again\."
    ):
        shipped.shipped_folder("trainers")
    (tmp_path / "site" / "trainers").mkdir(parents=True)
    assert shipped.doorway_folder() == (tmp_path / "site" / "trainers").resolve()
    (package / "trainers").mkdir(parents=True)
    assert shipped.doorway_folder() == (package / "trainers").resolve()


# ---------------------------------------------------------------- publish


@pytest.fixture
def published(monkeypatch):
    """What `publish_fold` was called with."""
    from nnunet_collab.inference import publish

    calls = []

    def publish_fold(fold, only=None):
        calls.append((fold, only))
        return [fold.parent.with_name("CTRCLTrainer_CNN__nnUNetPlans__2d") / fold.name]

    monkeypatch.setattr(publish, "publish_fold", publish_fold)
    return calls


@pytest.fixture
def run_folder(tmp_path):
    """A run with the finished folds 0 and 1; fold 2 is still training."""
    folder = tmp_path / "CTRCLTrainer__nnUNetPlans__2d"
    for fold, name in enumerate(["checkpoint_final.pth", "checkpoint_final.pth", "checkpoint_latest.pth"]):
        (folder / f"fold_{fold}").mkdir(parents=True)
        (folder / f"fold_{fold}" / name).touch()
    return folder


def test_publish_of_a_run_takes_its_finished_folds(run_folder, published, capsys):
    assert main(["publish", str(run_folder)]) == 0
    assert published == [(run_folder / "fold_0", None), (run_folder / "fold_1", None)]
    student = run_folder.with_name("CTRCLTrainer_CNN__nnUNetPlans__2d")
    assert capsys.readouterr().out.splitlines() == [
        f"reads   {run_folder} (fold_0, fold_1)",
        "skips   fold_2: the training is not finished",
        f"wrote   {student / 'fold_0'}",
        f"wrote   {student / 'fold_1'}",
    ]


def test_publish_of_a_fold_takes_that_fold_wherever_one_stands(run_folder, published, monkeypatch):
    monkeypatch.chdir(run_folder / "fold_1")
    assert main(["publish", ".", "--student", "CNN", "--student", "Transformer"]) == 0
    assert published == [(run_folder / "fold_1", ["CNN", "Transformer"])]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("CTRCLTrainer__nnUNetPlans__2d/fold_7", "the folder does not exist"),
        ("CTRCLTrainer__nnUNetPlans__2d/fold_0/validation", "it has another name"),
        (".", "it has another name"),
    ],
)
def test_publish_refuses_what_is_no_run(folder, message, run_folder, published, capsys):
    (run_folder / "fold_0" / "validation").mkdir()
    assert main(["publish", str(run_folder.parent / folder)]) == 2
    err = capsys.readouterr().err
    assert "FOLDER must be <Trainer>__<plans>__<configuration> or a fold_X in it" in err
    assert f"{message}. Correct the path." in err
    assert published == []


def test_publish_refuses_a_run_without_a_finished_fold(run_folder, published, capsys):
    for fold in (0, 1):
        (run_folder / f"fold_{fold}" / "checkpoint_final.pth").unlink()
    assert main(["publish", str(run_folder)]) == 2
    err = capsys.readouterr().err
    assert "must hold a fold_X with a checkpoint_final.pth; got fold_0, fold_1, fold_2. Continue the training" in err
    assert published == []
