"""Look at heavy packages from another process, which may crash or hang without taking this one along.

A child runs the steps of `doctor.facts` in order and writes the facts of each to a file as soon as it has them: when it
dies, the steps before the fatal one are known, and the fatal one is known too.
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
# The child sees the packages that this process sees, whatever -m, -c or a console script put on the path.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nnunet_collab.doctor.facts import report; report(*sys.argv[2:])"
)


@dataclass(frozen=True)
class Outcome:
    """Of one step: facts, or the reason why there are none."""

    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def probe(steps: Mapping[str, Mapping[str, Any]], timeout_s: float = TIMEOUT_S) -> dict[str, Outcome]:
    """Run steps of `doctor.facts` in a child process whose output is suppressed.

    Args:
        steps: Name of each step -> its keyword arguments.
        timeout_s: For all steps together, in seconds; then the child is killed.

    Returns:
        An outcome for every step.
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
    """How a child ended that left steps undone."""
    how = (
        f"crashed with signal {-child.returncode}" if child.returncode < 0 else f"ended with status {child.returncode}"
    )
    last = child.stderr.strip().splitlines()[-1:]
    return ": ".join([how, *last])
