"""pyproject.toml names every package that is imported, whoever else brings it, and CITATION.cff can be read."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from nnunet_collab.doctor.installation import NNUNET
from nnunet_collab.inference.onnx_network import PACKAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = ("nnunet_collab", "trainers", "dataset_conversion")
# Imported name -> name of the distribution, where they differ by more than case and dashes.
DISTRIBUTIONS = {"pil": "pillow", "skimage": "scikit-image", "xdist": "pytest-xdist", "yaml": "pyyaml"}
EXTRAS = {  # imported when asked for
    "nnunet_collab/conversion/h5_volumes.py": {"h5py"},
    "nnunet_collab/conversion/own/segmentations.py": {"highdicom"},
    "nnunet_collab/inference/onnx_network.py": {"onnxruntime"},
}
WRITTEN_BY_TESTS = {"user-settings"}


def distributions(requirements):
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in requirements}


def imported(source):
    """Distributions of the top-level packages that a source imports, without the standard library."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            found |= {arg.value.partition(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    names = {name.lower() for name in found - set(sys.stdlib_module_names) - {"nnunet_collab"}}
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names}


def missing(folders, named):
    """Distribution -> files that import it, of those that are not named."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    own = {path.stem.lower().replace("_", "-") for path in files}  # helpers of the tests import each other
    found = {}
    for path in files:
        file = path.relative_to(ROOT).as_posix()
        for name in imported(path.read_text()) - named - own - EXTRAS.get(file, set()):
            found.setdefault(name, []).append(file)
    return found


def test_every_package_that_the_product_imports_is_a_dependency():
    assert missing(SHIPPED, distributions(PROJECT["dependencies"])) == {}


def test_every_package_that_tests_and_benchmarks_import_is_one_too():
    extras = PROJECT["optional-dependencies"]
    named = distributions(PROJECT["dependencies"]) | distributions(extras["test"]) | distributions(extras["h5"])
    assert missing(("tests", "benchmarks"), named | WRITTEN_BY_TESTS) == {}


def test_every_package_that_is_imported_when_asked_for_is_in_an_extra():
    users = {extra: names for extra, names in PROJECT["optional-dependencies"].items() if extra not in ("test", "dev")}
    wanted = {name for names in EXTRAS.values() for name in names}
    assert wanted <= {name for names in users.values() for name in distributions(names)}


def test_the_extra_onnx_is_what_the_command_asks_for():
    assert distributions(PROJECT["optional-dependencies"]["onnx"]) == set(PACKAGES)


def test_nnunet_is_held_below_the_release_that_changes_what_local_rank_means():
    (line,) = (line for line in PROJECT["dependencies"] if line.startswith("nnunetv2"))
    assert line == "nnunetv2>=2.8,<2.9"
    assert f"nnunetv2{NNUNET}" == line, "doctor and pip must agree"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import blosc2.core as x", {"blosc2"}),
        ("def f():\n    from PIL import Image", {"pillow"}),
        ("from importlib import import_module\nimport_module('h5py')", {"h5py"}),
        ("import os, json\nfrom nnunet_collab.core import errors", set()),
        ("from . import near", set()),
        ("import huggingface_hub", {"huggingface-hub"}),
    ],
)
def test_imports_are_seen(source, found):
    assert imported(source) == found


def test_the_citation_names_the_package_and_the_five_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["license"]) == ("nnunet_collab", PROJECT["license"])
    assert citation["message"]
    assert citation["authors"]
    # The numbers under which the papers are known on arXiv.
    wanted = {
        "arXiv:2408.13698": "CTRCLTrainer", "arXiv:2112.04894": "CrossTeachingTrainer",
        "arXiv:2405.00354": "CrossMatchTrainer", "arXiv:2502.11456": "CRLNTrainer",
        "arXiv:2409.07793": "LDCTrainer and CMAformerTrainer",
    }  # fmt: skip
    references = citation["references"]
    assert {r["identifiers"][0]["value"]: r["notes"] for r in references} == wanted
    assert all(r["authors"] and r["title"] and r["type"] for r in references)


def test_the_workflow_calls_what_continuous_integration_does():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["ci"]["steps"] if "run" in step] == [".ci/run"]
