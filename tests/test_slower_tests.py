"""The list of tests that `make test-fast` leaves out names tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = Path(__file__).with_name("slower_tests.txt").read_text(encoding="utf-8").splitlines()
SLOWER = {line for line in LINES if not line.startswith("#")}  # as conftest.py reads them


def test_every_name_is_that_of_a_test():
    files = {name.partition("::")[0] for name in SLOWER}
    functions = {
        f"{file}::{node.name}"
        for file in files
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert sorted(SLOWER - functions) == []
    assert len(SLOWER) > 100
