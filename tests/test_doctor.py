"""`nnunet_collab doctor` tells what is wrong and how to mend it, with any torch, or none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_collab.core.shipped import doorway_folder, doorways
from nnunet_collab.doctor import dataset, facts, folders, hardware, installation, trainers
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.probe import Outcome, probe
from nnunet_collab.env_command import extended

ROOT = Path(__file__).parents[1]
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
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
    return [line.split()[0] for line in output.splitlines() if line[:1] not in (" ", "")][:-1]


# ---------------------------------------------------------------- torch that is broken, absent, or does not fit


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
    assert output.endswith("1 failed, 1 warned, 8 ok\n")


def test_works_where_nothing_is_installed(tmp_path):
    status, output = run_doctor(tmp_path, options=["-S"])
    assert status == 1
    assert (
        'FAIL  nnunetv2 is not installed (supported >=2.8,<3)\n      python -m pip install "nnunetv2>=2.8,<3"' in output
    )
    assert "FAIL  torch is not installed, torchvision is not installed, timm is not installed" in output
    assert "FAIL  torch cannot be imported: ModuleNotFoundError: No module named 'torch'" in output
    assert statuses(output).count("FAIL") == 3
    assert statuses(output).count("ok") == 6  # Python, three folders, the variable, the computer


def test_recognises_torch_and_torchvision_that_do_not_fit(tmp_path):
    timm = "raise RuntimeError('operator torchvision::nms does not exist')"
    status, output = run_doctor(tmp_path, fake(tmp_path, torch=WORKING_TORCH, timm=timm))
    assert status == 1
    assert "FAIL  timm cannot be imported: RuntimeError: operator torchvision::nms does not exist" in output
    assert "      torch 2.15.0+cpu and torchvision " in output
    assert "Install both from the same index" in output
    assert '      python -m pip install --force-reinstall "torch>=2.1.2,!=2.9.*" torchvision\n' in output
    assert "warn  no GPU that torch can use" in output
    assert statuses(output).count("FAIL") == 1


def test_does_not_import_torch_itself(tmp_path):
    code = (
        "import sys\nfrom nnunet_collab.cli import main\nmain(['doctor'])\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'timm', 'numpy', 'nnunetv2')))"
    )
    timm = "raise RuntimeError('stop here')"
    status, output = run_doctor(tmp_path, fake(tmp_path, torch=WORKING_TORCH, timm=timm), code=code)
    assert "FAIL  timm cannot be imported: RuntimeError: stop here" in output
    assert status == 0


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
    status, output = run_doctor(tmp_path)
    assert status == 0, output
    assert f"{len(doorways())} of {len(doorways())} trainers found by nnU-Net itself" in output


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("version", "parts"),
    [("2.8.1", (2, 8, 1)), ("2.15.0+cu132", (2, 15, 0)), ("3.0rc1", (3, 0)), ("", ()), ("dev", ())],
)
def test_numbers_of_a_version(version, parts):
    assert installation.numbers(version) == parts


@pytest.mark.parametrize(
    ("python", "status"), [((3, 9, 9), "FAIL"), ((3, 10, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "FAIL")]
)
def test_python_versions(python, status):
    finding = installation.check_python(python)
    assert finding.status == status
    assert finding.text == f"Python {'.'.join(map(str, python))} (supported 3.10 to 3.13)"
    assert ("venv" in finding.mend) == (status == "FAIL")


def packages(monkeypatch, **versions):
    monkeypatch.setattr(installation, "installed", lambda name: versions.get(name, ""))
    return {finding.text: finding for finding in installation.check_packages()}


@pytest.mark.parametrize(("version", "status"), [("2.7.9", "FAIL"), ("2.8.0", "ok"), ("2.11", "ok"), ("3.0", "FAIL")])
def test_versions_of_nnunet(version, status, monkeypatch):
    found = packages(monkeypatch, nnunetv2=version, torch="2.15.0", torchvision="0.29", timm="1.0.22")
    assert found[f"nnunetv2 {version} (supported >=2.8,<3)"].status == status
    assert found["torch 2.15.0, torchvision 0.29, timm 1.0.22"].status == "ok"


@pytest.mark.parametrize(
    ("version", "refused"), [("2.1.1", True), ("2.1.2", False), ("2.9.1+cu126", True), ("2.10.0", False)]
)
def test_versions_of_torch_that_nnunet_refuses(version, refused, monkeypatch):
    found = packages(monkeypatch, nnunetv2="2.8.1", torch=version, torchvision="0.29", timm="1.0.22")
    failures = [finding for finding in found.values() if finding.status == "FAIL"]
    assert [f.text for f in failures] == (
        [f"torch {version}: nnU-Net needs >=2.1.2 and refuses 2.9"] if refused else []
    )


def test_a_package_that_is_missing_is_named(monkeypatch):
    found = packages(monkeypatch, nnunetv2="2.8.1", torch="2.15.0", timm="1.0.22")
    finding = found["torch 2.15.0, torchvision is not installed, timm 1.0.22"]
    assert finding.status == "FAIL"
    assert finding.mend.startswith("python -m pip install")


def test_imports_that_work_are_ok():
    assert installation.check_imports(Outcome({"version": "2.15.0"}), Outcome()).status == "ok"


# ---------------------------------------------------------------- folders


def test_folders_that_are_there_are_ok_and_missing_results_too(tmp_path):
    for name in VARIABLES:
        finding = folders.check_folder(name, str(tmp_path))
        assert finding.status == "ok", finding
        assert finding.text.startswith(f"{name}: {tmp_path}, writable, ")
    finding = folders.check_folder("nnUNet_results", str(tmp_path / "a" / "b"))
    assert finding.status == "ok"
    assert "(will be created)" in finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_is_not_set(name, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    (finding,) = [found for found in folders.check_folders() if found.text.startswith(name)]
    assert finding == Finding("FAIL", f"{name} is not set", f"export {name}=/path/to/{name}")


@pytest.mark.parametrize("name", VARIABLES[:2])
def test_a_folder_that_is_missing(name, tmp_path):
    gone = tmp_path / "gone"
    assert folders.check_folder(name, str(gone)) == Finding(
        "FAIL", f"{name}: there is no folder {gone}", f'mkdir -p "{gone}"'
    )


@pytest.mark.parametrize("name", VARIABLES)
def test_a_file_is_no_folder(name, tmp_path):
    (tmp_path / "file").touch()
    assert folders.check_folder(name, str(tmp_path / "file")).text == f"{name}: {tmp_path / 'file'} is a file"


@pytest.mark.parametrize(("name", "status"), [(VARIABLES[0], "warn"), (VARIABLES[1], "FAIL"), (VARIABLES[2], "FAIL")])
def test_a_folder_that_is_read_only(name, status, tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    finding = folders.check_folder(name, str(tmp_path))
    assert (finding.status, finding.text) == (status, f"{name}: {tmp_path} is not writable")


@pytest.mark.parametrize(("free_gb", "status"), [(0.5, "FAIL"), (5, "warn"), (50, "ok")])
def test_a_disk_that_is_full(free_gb, status, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_gb * 1e9))
    assert folders.check_folder("nnUNet_results", str(tmp_path)).status == status
    assert folders.check_folder("nnUNet_raw", str(tmp_path)).status == "ok"  # nothing is written there


# ---------------------------------------------------------------- trainers


def test_the_variable_must_contain_the_doorways(tmp_path):
    ours = doorway_folder()
    assert [f.status for f in trainers.check_variable(f"{tmp_path}{os.pathsep}{ours}{os.sep}")] == ["ok"]
    (unset,) = trainers.check_variable("")
    assert unset.text == f"nnUNet_extTrainer is not set, so it does not contain {ours}"
    assert unset.mend.startswith('eval "$(nnunet_collab env)"')
    (other,) = trainers.check_variable(str(tmp_path))
    assert (other.status, other.text) == ("FAIL", f"nnUNet_extTrainer does not contain {ours}")


def test_a_folder_of_the_variable_that_is_not_there_is_named(tmp_path):
    _, finding = trainers.check_variable(f"{doorway_folder()}{os.pathsep}{tmp_path / 'gone'}")
    assert (finding.status, finding.text) == ("warn", f"nnUNet_extTrainer: there is no folder {tmp_path / 'gone'}")


def search(*others, expected=None):
    """The findings when nnU-Net's real finder searches other folders before ours."""
    expected = expected or doorways()
    value = extended(os.pathsep.join(map(str, others)), doorway_folder())
    return list(trainers.check_trainers(Outcome(facts.trainer_facts(expected, value)), expected))


@pytest.fixture
def other(tmp_path, monkeypatch):
    """An empty folder to search first, and a variable that is as it was after the test."""
    monkeypatch.setenv("nnUNet_extTrainer", "")
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


def test_nnunet_finds_our_trainers(other):
    (finding,) = search(other)
    assert finding.status == "ok"
    assert finding.text.startswith(f"{len(doorways())} of {len(doorways())} trainers found by nnU-Net itself")


def test_a_copy_of_our_doorways_elsewhere_is_no_fault(other):
    shutil.copy(doorway_folder() / "CTRCLTrainer.py", other)
    assert [finding.status for finding in search(other)] == ["ok"]


def test_a_trainer_of_the_same_name_in_another_folder_is_named(other):
    (other / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class CTRCLTrainer(nnUNetTrainer):\n    pass\n"
    )
    finding = search(other)[-1]
    assert finding.status == "FAIL"
    assert finding.text == f"CTRCLTrainer is shadowed by another trainer of that name in {other}"
    assert finding.mend == f"Remove that folder from nnUNet_extTrainer, or put {doorway_folder()} before it."


def test_a_file_that_breaks_the_search_is_named(other):
    (other / "a.py").write_text("import no_such_package\n")
    finding = search(other)[-1]
    assert finding.status == "FAIL"
    assert "not found by nnU-Net: ModuleNotFoundError: No module named 'no_such_package'" in finding.text
    assert finding.mend == f"Remove {other} from nnUNet_extTrainer, or put it last."


def test_a_stock_trainer_of_the_same_name_is_named(other, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunet_collab.methods.made_up", SimpleNamespace(nnUNetTrainer=object()))
    (finding,) = search(other, expected={"nnUNetTrainer": "nnunet_collab.methods.made_up"})
    assert finding.status == "FAIL"
    assert finding.text.startswith("nnUNetTrainer is shadowed by a trainer in nnunetv2 itself (nnunetv2.training.")


def test_a_trainer_that_is_nowhere_is_a_failure(other):
    (finding,) = search(other, expected={"NoSuchTrainer": "nnunet_collab.methods.ctrcl"})
    assert finding.status == "FAIL"
    assert finding.text.startswith(
        "NoSuchTrainer is not found by nnU-Net: RuntimeError: Could not find requested nnunet"
    )


def test_a_search_that_dies_is_a_failure():
    (finding,) = trainers.check_trainers(Outcome(error="crashed with signal 11"), {"CTRCLTrainer": "m"})
    assert (finding.status, finding.text) == ("FAIL", "nnU-Net's search for trainers: crashed with signal 11")


# ---------------------------------------------------------------- hardware

GPU = {"gpus": [["NVIDIA H200", 139.8]], "cuda": "13.2", "triton": True}
NO_GPU = {"gpus": [], "cuda": None, "triton": True}


def test_gpus_are_named_with_their_memory():
    assert hardware.check_gpus(GPU) == Finding("ok", "CUDA 13.2: NVIDIA H200 (140 GiB)")


@pytest.mark.parametrize(("cuda", "mend"), [(None, "install a build of torch for CUDA"), ("13.2", "nvidia-smi")])
def test_no_gpu_is_a_warning(cuda, mend):
    finding = hardware.check_gpus({**NO_GPU, "cuda": cuda})
    assert finding.status == "warn"
    assert mend in finding.mend
    assert finding.mend.endswith("Without one: train with -device cpu.")


@pytest.mark.parametrize(
    ("found", "environment", "status", "text"),
    [
        (NO_GPU, {}, "ok", "not used"),
        (GPU, {}, "ok", "used; the first iterations take minutes"),
        (GPU, {"nnUNet_compile": "T"}, "ok", "used; the first iterations take minutes"),
        (GPU, {"nnUNet_compile": "f"}, "ok", "switched off by nnUNet_compile=f"),
        (GPU, {"nnUNet_compile": "yes"}, "ok", "switched off by nnUNet_compile=yes"),
        ({**GPU, "triton": False}, {}, "warn", "will be tried and fail, because triton is not installed"),
        ({**GPU, "triton": False}, {"nnUNet_compile": "0"}, "ok", "switched off by nnUNet_compile=0"),
    ],
)
def test_whether_networks_will_be_compiled(found, environment, status, text, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    finding = hardware.check_compilation(found, environment)
    assert finding.status == status
    assert finding.text.startswith(f"torch.compile: {text}")


def test_compilation_needs_a_c_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    finding = hardware.check_compilation(GPU, {})
    assert (finding.status, finding.mend.split()[:2]) == ("warn", ["export", "nnUNet_compile=f"])
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "my-cc" else None)
    assert hardware.check_compilation(GPU, {"CC": "my-cc"}).status == "ok"


def test_the_computer_is_described(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4_000_000}.__getitem__, raising=False)
    assert hardware.check_computer() == Finding("ok", "2 CPU cores, 16 GB of memory")


def test_the_computer_is_described_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert hardware.check_computer() == Finding("ok", "1 CPU cores")


# ---------------------------------------------------------------- a dataset


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """Dataset027_ACDC with three cases, planned in 2D and 3D, nothing preprocessed."""
    for name in VARIABLES:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset027_ACDC"
    folder.mkdir()
    configurations = {
        "2d": {"data_identifier": "nnUNetPlans_2d"},
        "2d_small": {"inherits_from": "2d", "patch_size": [64, 64]},
        "3d_lowres": {"data_identifier": "nnUNetPlans_3d_lowres"},
        "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": configurations}))
    (folder / "dataset.json").write_text(json.dumps({"numTraining": 3}))
    (folder / "splits_final.json").write_text("[]")
    (folder / "broken.json").write_text("{")
    return folder


def preprocess(folder, identifier, cases):
    (folder / identifier).mkdir(exist_ok=True)
    for case in range(cases):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / identifier / f"case{case}{ending}").touch()


@pytest.mark.parametrize("name", ["27", "027", "Dataset027_ACDC"])
def test_a_dataset_that_is_preprocessed(name, preprocessed):
    preprocess(preprocessed, "nnUNetPlans_2d", 3)
    assert list(dataset.check_dataset(name)) == [
        Finding(
            "ok",
            "Dataset027_ACDC, nnUNetPlans: preprocessed 2d (3 cases), 2d_small (3 cases); "
            "planned only 3d_lowres, 3d_fullres",
        )
    ]


def test_a_dataset_that_is_planned_only(preprocessed):
    (finding,) = dataset.check_dataset("27")
    assert finding.status == "FAIL"
    assert "preprocessed nothing; planned only 2d, 2d_small, 3d_lowres, 3d_fullres" in finding.text
    assert finding.mend == "nnUNetv2_preprocess -d 27 -plans_name nnUNetPlans -c 2d"


def test_other_plans_that_are_not_preprocessed_are_no_failure(preprocessed):
    preprocess(preprocessed, "nnUNetPlans_2d", 3)
    other = {"configurations": {"2d": {"data_identifier": "others_2d"}}}
    (preprocessed / "aPlans.json").write_text(json.dumps(other))
    assert [finding.status for finding in dataset.check_dataset("27")] == ["warn", "ok"]


def test_a_dataset_of_which_cases_are_missing(preprocessed):
    preprocess(preprocessed, "nnUNetPlans_3d_fullres", 2)
    (finding,) = dataset.check_dataset("27")
    assert finding.status == "warn"
    assert finding.text.endswith("3d_fullres (2 cases); planned only 2d, 2d_small, 3d_lowres; the dataset has 3 cases")
    assert finding.mend == "nnUNetv2_preprocess -d 27 -plans_name nnUNetPlans -c 3d_fullres"


def test_a_dataset_that_is_not_planned(preprocessed):
    (preprocessed / "nnUNetPlans.json").unlink()
    (finding,) = dataset.check_dataset("27")
    assert finding == Finding(
        "FAIL",
        f"Dataset027_ACDC is not planned: there are no plans in {preprocessed}",
        "nnUNetv2_plan_and_preprocess -d 27 -c 2d --verify_dataset_integrity",
    )


@pytest.mark.parametrize("name", ["28", "2", "Dataset027", "ACDC"])
def test_a_dataset_that_does_not_exist(name, preprocessed):
    (finding,) = dataset.check_dataset(name)
    assert (finding.status, finding.text.split(":")[0]) == ("FAIL", f"dataset {name}")


def test_an_id_that_two_datasets_have(preprocessed, tmp_path):
    (tmp_path / "nnUNet_raw" / "Dataset027_Other").mkdir()
    (finding,) = dataset.check_dataset("27")
    assert (finding.status, finding.text) == ("FAIL", "dataset 27 may be Dataset027_ACDC or Dataset027_Other")
    assert len(list(dataset.check_dataset("Dataset027_ACDC"))) == 1


def test_a_configuration_s_own_data_win_over_what_it_inherits(tmp_path):
    preprocess(tmp_path, "planned", 3)
    preprocess(tmp_path, "own", 1)
    configurations = {"2d": {"data_identifier": "planned"}, "mine": {"inherits_from": "2d", "data_identifier": "own"}}
    assert dataset.preprocessed_cases(tmp_path, {"configurations": configurations}) == {"2d": 3, "mine": 1}


def test_inheritance_that_runs_in_a_circle_ends():
    plans = {"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a", "data_identifier": "x"}}}
    assert dataset.preprocessed_cases(Path("nowhere"), plans) == {"a": 0, "b": 0}


# ---------------------------------------------------------------- printing


def test_a_finding_is_one_line_and_its_mend_is_indented():
    assert str(Finding("ok", "fine")) == "ok    fine"
    assert str(Finding("FAIL", "broken", "do this\nthen that")) == "FAIL  broken\n      do this\n      then that"
