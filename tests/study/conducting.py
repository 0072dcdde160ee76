"""Conducts the study of a laboratory in a process of its own; arguments: its root, then jobs at a time or a run."""

from __future__ import annotations

import sys
from pathlib import Path

from studying import inspect

from nnunet_collab.study import conduct, execution

if __name__ == "__main__":
    root, what = Path(sys.argv[1]), sys.argv[2]
    execution.PROGRAMS = root / "bin"
    study = conduct.check_study(root / "toy.toml", root / "study", "cpu", inspect)
    if what.isdecimal():
        sys.exit(conduct.conduct(study, execution.slots_of(int(what), "cpu", []), progress=False))
    sys.exit(conduct.conduct_one(study, what))
