"""`nnunet_collab doctor`: any torch, or none: the doctor itself never dies of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_collab.core.shipped import doorway_folder, doorways
from nnunet_collab.doctor import facts
from nnunet_collab.doctor.folders import PREPROCESSED, RAW, RESULTS
from nnunet_collab.doctor.probe import probe

ROOT = Path(__file__).parents[2]
VARIABLES = (RAW, PREPROCESSED, RESULTS)
NOISE = "print('noise', flush=True)\n"
WORKING_TORCH = (
    "from types import SimpleNamespace as S\n__version__ = '2.15.0+cpu'\n"
    "version = S(cuda=None, hip=None)\ncuda = S(is_available=lambda: False)\n"
)


def fake(tmp_path, **packages):
    """A folder of packages to put first on the path, each with the given source."""
    for name, source in packages.items():
        folder = tmp_path / "fakes" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(source)
    return tmp_path / "fakes"


def run_doctor(tmp_path, *paths, options=(), code=None):
    """Status and output of the doctor, in an environment where all but the packages is well."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}
    for name in VARIABLES:
        environment[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
    environment["nnUNet_extTrainer"] = str(doorway_folder())
    command = [sys.executable, *options, *(("-c", code) if code else ("-m", "nnunet_collab", "doctor"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def statuses(output):
    """The findings' statuses, without those of the three folders: the room there is this computer's own."""
    *findings, summary = [line for line in output.splitlines() if line[:1] not in (" ", "")]
    found = [line.split()[0] for line in findings]
    assert summary == f"{found.count('FAIL')} failed, {found.count('warn')} warned, {found.count('ok')} ok"
    folders = tuple(f"{name}:" for name in VARIABLES)
    return [status for status, line in zip(found, findings, strict=True) if not line[6:].startswith(folders)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "raise ImportError('libcudart.so.99: cannot open shared object file')",
            "ImportError: libcudart.so.99: cannot",
        ),
        ("raise SystemExit('go away')", "SystemExit: go away"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "crashed with signal 9"),
        (
            "import os, sys\nsys.stderr.write('Illegal hardware')\nsys.stderr.flush()\nos._exit(3)",
            "ended with status 3: Ill",
        ),
        ("", "AttributeError: module 'torch' has no attribute"),
    ],
)
def test_a_broken_torch_is_one_failure_among_findings(source, why, tmp_path):
    status, output = run_doctor(tmp_path, fake(tmp_path, torch=NOISE + source))
    assert status == 1
    assert f"FAIL  torch cannot be imported: {why}" in output
    assert '\n      python -m pip install --force-reinstall "torch>=2.1.2,!=2.9.*" torchvision\n' in output
    assert "warn  trainers: not looked up, because nnU-Net cannot be imported" in output
    assert "ok    nnUNet_extTrainer contains" in output
    assert "noise" not in output
    found = statuses(output)
    assert (found.count("FAIL"), found.count("warn"), found.count("ok")) == (1, 1, 5)


@pytest.mark.slow
def test_works_where_nothing_is_installed(tmp_path):
    status, output = run_doctor(tmp_path, options=["-S"])
    assert status == 1
    assert (
        'FAIL  nnunetv2 is not installed (supported >=2.8,<2.9)\n      python -m pip install "nnunetv2>=2.8,<2.9"'
        in output
    )
    assert "FAIL  torch is not installed, torchvision is not installed, timm is not installed" in output
    assert "FAIL  torch cannot be imported: ModuleNotFoundError: No module named 'torch'" in output
    assert statuses(output).count("FAIL") == 3
    assert statuses(output).count("ok") == 3  # Python, the variable, the computer


@pytest.mark.slow
def test_recognizes_torch_and_torchvision_that_do_not_fit(tmp_path):
    timm = "raise RuntimeError('operator torchvision::nms does not exist')"
    status, output = run_doctor(tmp_path, fake(tmp_path, torch=WORKING_TORCH, timm=timm))
    assert status == 1
    assert "FAIL  timm cannot be imported: RuntimeError: operator torchvision::nms does not exist" in output
    assert "The builds of torch 2.15.0+cpu and torchvision " in output
    assert "Install both from the same index" in output
    assert '      python -m pip install --force-reinstall "torch>=2.1.2,!=2.9.*" torchvision\n' in output
    assert "warn  torch finds no GPU" in output
    assert statuses(output).count("FAIL") == 1


@pytest.mark.slow
def test_does_not_import_torch_itself(tmp_path):
    code = (
        "import sys\nfrom nnunet_collab.cli import main\nmain(['doctor'])\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'timm', 'numpy', 'nnunetv2')))"
    )
    timm = "raise RuntimeError('stop here')"
    status, output = run_doctor(tmp_path, fake(tmp_path, torch=WORKING_TORCH, timm=timm), code=code)
    assert "FAIL  timm cannot be imported: RuntimeError: stop here" in output
    assert status == 0


@pytest.mark.slow
def test_a_step_that_hangs_is_ended_and_the_steps_before_it_are_known(tmp_path, monkeypatch):
    fakes = fake(tmp_path, torch=WORKING_TORCH, timm="import time\ntime.sleep(600)")
    monkeypatch.syspath_prepend(str(fakes))
    for timeout_s in (2, 8, 32):  # a busy computer may take longer to get as far as the step that hangs
        outcomes = probe({"torch": {}, "timm": {}, "trainers": {"expected": {}, "folders": ""}}, timeout_s)
        if not outcomes["torch"].error:
            break
    assert outcomes["torch"].facts["version"] == "2.15.0+cpu"
    assert outcomes["timm"].error == f"took longer than {timeout_s} s"
    assert outcomes["trainers"].error == "not tried, because the process had ended"


def test_facts_of_torch_tell_builds_and_gpus(tmp_path, monkeypatch):
    gpu = SimpleNamespace(name="GPU X", total_memory=24 * 2**30)
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda index: gpu)
    torch = SimpleNamespace(__version__="2.15.0", version=SimpleNamespace(cuda="13.2"), cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", torch)
    found = facts.torch_facts()
    assert found.pop("triton") in (True, False)
    assert found == {"version": "2.15.0", "cuda": "13.2", "gpus": [["GPU X", 24.0]] * 2}


@pytest.mark.slow
def test_all_is_well_in_a_working_installation(tmp_path):
    _, output = run_doctor(tmp_path)
    assert "FAIL" not in statuses(output), output
    assert f"nnU-Net finds {len(doorways())} of {len(doorways())} trainers" in output
