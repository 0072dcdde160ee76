"""From a wheel, installed editable or merely checked out: nnU-Net finds the trainers, and nothing is missing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from nnunet_collab.core.presets import preset_names

ROOT = Path(__file__).parents[1]
TRAINERS = sorted(path.stem for path in (ROOT / "trainers").glob("*.py"))
CONVERTERS = sorted(path.stem for path in (ROOT / "dataset_conversion").glob("*.py"))
LOOK = """
import json
import nnunet_collab
from nnunet_collab.core.presets import preset_names
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
found = [recursive_find_trainer_class_by_name(name) for name in {names}]
found = [f"{{c.__module__}}.{{c.__qualname__}}" for c in found]
print()
print(json.dumps([nnunet_collab.__file__, preset_names(), found]))
"""

pytestmark = pytest.mark.slow  # builds with pip, and each look imports all of nnU-Net


def run(*command, cwd, **variables):
    """What a command prints, run elsewhere than in the checkout, with no path but the one given."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "nnUNet_extTrainer")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, elsewhere):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=elsewhere)
    (path,) = folder.glob("nnunet_collab-*.whl")
    return path


@pytest.fixture
def installation(request, tmp_path, elsewhere):
    """Python, environment variables and root of one way to have the package."""
    if request.param == "checkout":
        return sys.executable, {"PYTHONPATH": str(ROOT)}, ROOT
    if request.param == "wheel":
        wheel = request.getfixturevalue("wheel")
        run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "site", wheel, cwd=elsewhere)
        return sys.executable, {"PYTHONPATH": str(tmp_path / "site")}, tmp_path / "site"
    # A bare environment that borrows the packages of this one, but not what its .pth files add.
    venv.create(tmp_path / "venv", symlinks=os.name != "nt")
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=elsewhere).strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-e", ROOT, cwd=elsewhere)
    (purelib / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, {}, ROOT


@pytest.mark.parametrize("installation", ["wheel", "editable", "checkout"], indirect=True)
def test_nnunet_finds_every_trainer_with_what_env_prints(installation, elsewhere):
    python, variables, root = installation
    line = run(python, "-m", "nnunet_collab", "env", cwd=elsewhere, **variables)
    export, assignment = shlex.split(line)
    name, value = assignment.split("=", 1)
    assert (export, name) == ("export", "nnUNet_extTrainer")
    package = root / "nnunet_collab"
    assert Path(value) == (package / "trainers" if root != ROOT else ROOT / "trainers").resolve()

    look = LOOK.format(names=TRAINERS)
    output = run(python, "-c", look, cwd=elsewhere, **variables, nnUNet_extTrainer=value)
    file, presets, found = json.loads(output.splitlines()[-1])
    assert Path(file).parent == package
    assert presets == preset_names() != []
    assert "nnunet_collab.methods.ctrcl.CTRCLTrainer" in found
    assert [name.split(".")[-1] for name in found] == TRAINERS
    assert all(name.startswith("nnunet_collab.methods.") for name in found)

    text = " ".join(run(python, "-m", "nnunet_collab", "convert", "--help", cwd=elsewhere, **variables).split())
    assert f"NAME is one of: {', '.join(CONVERTERS)}." in text


@pytest.mark.parametrize("installation", ["editable"], indirect=True)
def test_pip_makes_the_console_command(installation, elsewhere):
    python, _, _ = installation
    command = Path(python).with_name("nnunet_collab.exe" if os.name == "nt" else "nnunet_collab")
    as_module = run(python, "-m", "nnunet_collab", "env", cwd=elsewhere)
    assert run(command, "env", cwd=elsewhere) == as_module


def test_the_sdist_carries_what_its_own_tests_need(tmp_path, elsewhere):
    build = f"import os; os.chdir({str(ROOT)!r}); import hatchling.build as b; print(b.build_sdist({str(tmp_path)!r}))"
    run(sys.executable, "-m", "pip", "install", "--target", tmp_path / "backend", "hatchling", cwd=elsewhere)
    run(sys.executable, "-c", build, cwd=elsewhere, PYTHONPATH=str(tmp_path / "backend"))
    (path,) = tmp_path.glob("nnunet_collab-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("nnunet_collab", "trainers", "dataset_conversion", "studies", "tests", "benchmarks", "docs")
    wanted = {
        file.relative_to(ROOT).as_posix()
        for folder in folders
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and not {"__pycache__", "_build"} & set(file.parts)
    }
    wanted |= {".ci/run", "Makefile", "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"}
    assert wanted - names == set()


def test_the_wheel_carries_the_package_its_scripts_its_presets_and_its_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "nnunet_collab"
    wanted = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    wanted |= {f"nnunet_collab/presets/{name}.json" for name in preset_names()}
    wanted |= {"nnunet_collab/report/page.html", "nnunet_collab/report/published.json", "nnunet_collab/py.typed"}
    wanted |= {f"nnunet_collab/trainers/{name}.py" for name in TRAINERS}
    wanted |= {f"nnunet_collab/dataset_conversion/{name}.py" for name in CONVERTERS}
    assert {"nnunet_collab/trainers/CTRCLTrainer.py", "nnunet_collab/dataset_conversion/acdc.py"} <= wanted
    assert preset_names()
    mine = {name for name in names if ".dist-info/" not in name}
    assert mine == wanted
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
