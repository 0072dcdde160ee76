"""The shape of the house: which way imports point, how long a file may be, what a doorway is. By `ast` alone."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nnunet_collab"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "dataset_conversion").glob("*.py"))
DOORWAYS = sorted((ROOT / "trainers").glob("*.py"))

# The floors, from the ground up. A floor may import itself and what stands here; a module beside them is a floor, too.
MAY_IMPORT = {
    "core": set(),
    "figures": {"core"},
    "data": {"core"},
    "networks": {"core"},
    "losses": {"core"},
    "splits": {"core"},
    "inference": {"core"},
    "evaluation": {"core"},
    "doctor": {"core"},
    "launch": {"core"},
    "conversion": {"core", "splits"},
    "dataset_conversion": {"core", "splits", "conversion"},
    "training": {"core", "data", "networks", "losses", "splits", "inference", "figures"},
    "methods": {"core", "data", "networks", "losses", "training"},
    "report": {"core", "evaluation", "figures"},
    "demo": {"core", "evaluation", "figures"},
    "study": {"core"},  # it runs commands, and is told what a trainer would do
    "commands": {
        "core", "data", "networks", "splits", "inference", "evaluation", "doctor", "conversion", "training", "methods",
        "report", "demo", "study",
    },
    "cli": {"core", "commands"},
    "__main__": {"cli"},
}  # fmt: skip
MOST_LINES = 300
LONG = {"training/trainer.py"}  # nnU-Net's life cycle is one class; its parts live in the modules beside it
RUN_WITH_DASH_M = {PACKAGE / "launch.py"}


def layer_of(path):
    if path in SCRIPTS:
        return "dataset_conversion"
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(source):
    """Dotted names of everything a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden_imports(source, layer):
    allowed = {layer, *MAY_IMPORT[layer]}
    layers = (name.split(".")[1] for name in imported_modules(source) if name.startswith("nnunet_collab."))
    return sorted({name for name in layers if name in MAY_IMPORT and name not in allowed})


def import_graph(sources):
    """Module -> the modules of `sources` that it imports, wherever in it and for whatever reason.

    Args:
        sources: Dotted name -> source text.
    """
    graph = {}
    for name, source in sources.items():
        found = {target for target in imported_modules(source) if target in sources}
        graph[name] = found - {name}
    return graph


def circle(graph):
    """One circle of imports as a list of modules, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def doorway_fault(source, name):
    """What makes a source no doorway of the class `name`, or None."""
    body = ast.parse(source).body
    kinds = [type(node) for node in body]
    if kinds != [ast.Expr, ast.ImportFrom, ast.Assign] or ast.get_docstring(ast.parse(source)) is None:
        return "must be a docstring, one import and __all__"
    _, node, assignment = body
    if [alias.name for alias in node.names] != [name] or node.names[0].asname:
        return f"must import {name}, after which the file is named, and nothing else"
    if not (node.module or "").startswith("nnunet_collab.methods."):
        return "must import from nnunet_collab.methods"
    if ast.unparse(assignment) != f"__all__ = ['{name}']":
        return f"must set __all__ to [{name!r}]"
    return None


def has_main_guard(source):
    tests = [node.test for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)]
    return any("'__main__'" in ast.unparse(test) for test in tests)


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    if path == PACKAGE / "__init__.py":
        assert not [name for name in imported_modules(path.read_text()) if name.startswith((".", "nnunet_collab"))]
        return
    assert layer_of(path) in MAY_IMPORT, "a new layer: say here what it may import"
    assert forbidden_imports(path.read_text(), layer_of(path)) == []


def test_contributing_shows_the_floors():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    shown = {floor: set(re.findall(r"`(\w+)`", imports)) for floor, imports in rows}
    beside = {"launch", "dataset_conversion", "cli", "__main__"}
    folders = set(MAY_IMPORT) - beside
    shown["commands"] = folders - {"commands"} - shown["commands"]  # "all of these but"
    assert shown == {floor: MAY_IMPORT[floor] for floor in folders}


def test_no_modules_import_each_other_in_a_circle():
    assert circle(import_graph({dotted(path): path.read_text() for path in MODULES})) is None


def test_the_floors_have_no_circle():
    assert circle(MAY_IMPORT) is None


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_are_absolute_and_only_what_is_run_by_itself_has_a_main_guard(path):
    assert not [name for name in imported_modules(path.read_text()) if name.startswith(".")]
    assert has_main_guard(path.read_text()) == (path in SCRIPTS or path in RUN_WITH_DASH_M)


def test_no_file_is_long_but_those_that_are_known():
    long = {p.relative_to(PACKAGE).as_posix() for p in MODULES if len(p.read_text().splitlines()) > MOST_LINES}
    assert long == LONG


@pytest.mark.parametrize("path", DOORWAYS, ids=lambda path: path.stem)
def test_a_doorway_imports_the_class_it_is_named_after_and_nothing_else(path):
    assert doorway_fault(path.read_text(), path.stem) is None


def test_folders_of_scripts_hold_nothing_else():
    # nnU-Net imports every file it finds in trainers/, and each file of dataset_conversion/ is offered as a converter.
    for folder, scripts in (("trainers", DOORWAYS), ("dataset_conversion", SCRIPTS)):
        visible = [path for path in (ROOT / folder).iterdir() if path.name != "__pycache__"]
        assert sorted(visible) == scripts != []


# ---------------------------------------------------------------- the rules themselves, seen to fail


@pytest.mark.parametrize(
    ("layer", "source", "found"),
    [
        ("losses", "from nnunet_collab.networks.student import Student", ["networks"]),
        ("losses", "from nnunet_collab.losses.rectified import rectify", []),
        ("core", "def f():\n    import nnunet_collab.data.loaders as loaders", ["data"]),
        ("training", "from nnunet_collab import methods, core", ["methods"]),
        ("data", "if TYPE_CHECKING:\n    from nnunet_collab.training.trainer import CollabTrainer", ["training"]),
        ("evaluation", "from nnunet_collab import __version__\nimport nnunet_collab", []),
        ("methods", "from nnunet_collab.demo.phantom import x", ["demo"]),
        ("cli", "import nnunet_collab.demo.run", ["demo"]),
    ],
)
def test_the_rule_of_imports_sees(layer, source, found):
    assert forbidden_imports(source, layer) == found


def test_circles_are_seen():
    sources = {"p.a": "from p import b", "p.b": "def f():\n    from p.a import x", "p": ""}
    assert set(circle(import_graph(sources))) == {"p.a", "p.b"}
    assert circle(import_graph({**sources, "p.b": "import q.a"})) is None


def test_relative_imports_are_seen():
    assert ".errors" in set(imported_modules("from .errors import CollabError"))
    assert "." in set(imported_modules("def f():\n    from . import errors"))


GOOD = '"""Doorway."""\nfrom nnunet_collab.methods.x import ATrainer\n__all__ = ["ATrainer"]\n'


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (GOOD, None),
        (GOOD.replace("import ATrainer", "import BTrainer"), "must import ATrainer"),
        (GOOD.replace("import ATrainer", "import ATrainer, Other"), "must import ATrainer"),
        (GOOD.replace("import ATrainer", "import BTrainer as ATrainer"), "must import ATrainer"),
        (GOOD.replace("methods.x", "training.x"), "must import from nnunet_collab.methods"),
        (GOOD.replace('["ATrainer"]', "[]"), "must set __all__"),
        (GOOD + "import torch\n", "must be a docstring, one import and __all__"),
        (GOOD.replace('"""Doorway."""', "1"), "must be a docstring"),
    ],
)
def test_the_rule_of_doorways_sees(source, fault):
    found = doorway_fault(source, "ATrainer")
    assert found is None if fault is None else found.startswith(fault)


def test_main_guards_are_seen():
    assert has_main_guard("if __name__ == '__main__':\n    main()")
    assert not has_main_guard("if error.name == module.__name__:\n    raise")
