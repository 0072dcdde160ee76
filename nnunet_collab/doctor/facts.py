"""The part of `doctor.probe` that runs in the child process. Each step imports a large package and collects facts."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_collab.core.shipped import VARIABLE, folders_of


def report(output: str, steps: str) -> None:
    """Run the steps. After each step, write one JSON line `[name, facts, error]`.

    Args:
        output: Path of the file to write.
        steps: JSON object: name of each step -> its keyword arguments.
    """
    for name, arguments in json.loads(steps).items():
        facts, error = {}, ""
        try:
            facts = STEPS[name](**arguments)
        except BaseException as fault:  # a damaged package can even raise SystemExit
            error = describe(fault)
        with open(output, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, facts, error]) + "\n")


def describe(fault: BaseException) -> str:
    """Describe an exception in one line."""
    lines = str(fault).strip().splitlines()
    return ": ".join([type(fault).__name__, *lines[:1]])


def torch_facts() -> dict[str, Any]:
    """Import torch.

    Returns:
        `version`: version of torch. `cuda`: the CUDA or ROCm version for which it was built, or None. `gpus`: each as
        `[name, memory in GiB]`. `triton`: whether triton is installed.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
        "gpus": [[p.name, p.total_memory / 2**30] for p in properties],
        "triton": importlib.util.find_spec("triton") is not None,
    }


def timm_facts() -> dict[str, Any]:
    """Import timm, as nnU-Net does before it searches for trainers of other packages."""
    importlib.import_module("timm")
    return {}


def trainer_facts(expected: Mapping[str, str], folders: str) -> dict[str, Any]:
    """Search for trainers with the function of nnU-Net.

    Args:
        expected: Name of each trainer -> the module of its class.
        folders: Value of `nnUNet_extTrainer` for the search.

    Returns:
        Per name: `ours`: whether exactly this class was found. `module`: the module of the class that was found.
        `folder`: the first folder of the variable that has a trainer of this name or cannot be searched. `error`: the
        error of the search, or empty.
    """
    os.environ[VARIABLE] = folders
    return {name: _find(name, module, folders_of(folders)) for name, module in expected.items()}


def _find(name: str, home: str, folders: list[str]) -> dict[str, Any]:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        found = recursive_find_trainer_class_by_name(name)
    except (Exception, SystemExit) as fault:
        return {"ours": False, "module": "", "folder": _first_folder(name, folders), "error": describe(fault)}
    ours = found is getattr(importlib.import_module(home), name, None)
    return {"ours": ours, "module": found.__module__, "folder": _first_folder(name, folders), "error": ""}


def _first_folder(name: str, folders: list[str]) -> str:
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    for folder in filter(os.path.exists, folders):
        found = True  # also if the folder cannot be searched, because nnU-Net's search ends there, too
        with contextlib.suppress(Exception, SystemExit):
            found = (
                recursive_find_python_class(
                    folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True
                )
                is not None
            )
        if found:
            return str(Path(folder))
    return ""


def plan_facts(name: str, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Let nnU-Net's default planner plan from a fingerprint, in a temporary folder.

    Args:
        name: Name of the dataset, DatasetXXX_NAME; its raw folder is read.
        fingerprint: Fingerprint in nnU-Net's format.

    Returns:
        Configuration -> `patch_size`, `batch_size` and `spacing`.
    """
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as planning

    with tempfile.TemporaryDirectory() as folder:
        planning.nnUNet_preprocessed = folder
        place = Path(folder, name)
        place.mkdir()
        (place / "dataset_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")
        plans = planning.ExperimentPlanner(name).plan_experiment()
    wanted = ("patch_size", "batch_size", "spacing")
    return {
        key: {
            entry: [float(n) for n in found[entry]] if entry != "batch_size" else int(found[entry]) for entry in wanted
        }
        for key, found in plans["configurations"].items()
        if all(entry in found for entry in wanted)
    }


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "torch": torch_facts,
    "timm": timm_facts,
    "trainers": trainer_facts,
    "plan": plan_facts,
}
