"""Conducts the study of a laboratory in a process of its own, which tests end; arguments: its root, jobs at a time."""

from __future__ import annotations

import sys
from pathlib import Path

from studying import inspect

from nnunet_collab.study import conduct, execution

if __name__ == "__main__":
    root, jobs = Path(sys.argv[1]), int(sys.argv[2])
    execution.PROGRAMS = root / "bin"
    study = conduct.check_study(root / "toy.toml", root / "study", "cpu", inspect)
    sys.exit(conduct.conduct(study, execution.slots_of(jobs, "cpu", []), progress=False))
