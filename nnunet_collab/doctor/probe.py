"""Import large packages in another process, so that a crash or a hang does not affect this process.

A child process runs the steps of `doctor.facts` in order. It writes the facts of each step to a file at once. If it
crashes, the results of the steps before are known, and also which step crashed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT_S = 300.0  # the first import of torch from a network drive takes minutes
# The child gets the search path of this process, which depends on -m, -c or a console script.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nnunet_collab.doctor.facts import report; report(*sys.argv[2:])"
)


@dataclass(frozen=True)
class Outcome:
    """Result of one step: its facts, or the reason why there are none."""

    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def probe(steps: Mapping[str, Mapping[str, Any]], timeout_s: float = TIMEOUT_S) -> dict[str, Outcome]:
    """Run steps of `doctor.facts` in a child process whose output is suppressed.

    Args:
        steps: Name of each step -> its keyword arguments.
        timeout_s: Time limit in seconds for all steps together; then the child is killed.

    Returns:
        Name of each step -> its result.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "facts.jsonl")
        command = [sys.executable, "-c", _START, json.dumps(sys.path), str(path), json.dumps(steps)]
        try:
            child = subprocess.run(
                command, timeout=timeout_s, capture_output=True, check=False, encoding="utf-8", errors="replace"
            )
            end = _end(child)
        except subprocess.TimeoutExpired:
            end = f"took longer than {timeout_s:g} s"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    outcomes = {name: Outcome(facts, error) for name, facts, error in map(json.loads, lines)}
    for name in steps:
        if name not in outcomes:
            outcomes[name] = Outcome(error=end)
            end = "not tried, because the process had ended"
    return outcomes


def _end(child: subprocess.CompletedProcess[str]) -> str:
    """How a child process ended that did not finish all steps."""
    how = (
        f"crashed with signal {-child.returncode}" if child.returncode < 0 else f"ended with status {child.returncode}"
    )
    last = child.stderr.strip().splitlines()[-1:]
    return ": ".join([how, *last])
