"""Check that nnU-Net finds the trainers of this package: its variable, and its own search."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_collab.core.shipped import VARIABLE, canonical, doorway_folder, folders_of
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.probe import Outcome

_SET = 'eval "$(nnunet_collab env)"   # add this line to your shell\'s start-up file or your job script'


def check_variable(value: str) -> Iterator[Finding]:
    """Whether `nnUNet_extTrainer` contains the folder of our doorways, and only folders that exist.

    Args:
        value: Value of the variable; empty if it is not set.
    """
    folders, ours = folders_of(value), doorway_folder()
    if canonical(ours) in map(canonical, folders):
        yield Finding("ok", f"{VARIABLE} contains {ours}")
    else:
        found = "does not contain" if folders else "is not set, so it does not contain"
        yield Finding("FAIL", f"{VARIABLE} {found} {ours}", _SET)
    for folder in folders:
        if not os.path.isdir(folder):
            yield Finding("warn", f"{VARIABLE}: there is no folder {folder}", "Remove it from the variable.")


def check_trainers(outcome: Outcome, expected: dict[str, str]) -> Iterator[Finding]:
    """Whether the search of nnU-Net, with our doorways, returns our classes.

    Args:
        outcome: Result of the step `trainers`.
        expected: Name of each trainer -> the module of its class.
    """
    if outcome.error:
        yield Finding("FAIL", f"nnU-Net's search for trainers: {outcome.error}", "Install nnunetv2 again.")
        return
    found = [name for name in expected if outcome.facts[name]["ours"]]
    if found:
        text = f"nnU-Net finds {len(found)} of {len(expected)} trainers, and no other trainers of these names"
        yield Finding("ok", f"{text}: {', '.join(found)}")
    for name in expected:
        if name not in found:
            yield _not_found(name, outcome.facts[name])


def _not_found(name: str, facts: dict[str, Any]) -> Finding:
    where, elsewhere = facts["folder"], facts["folder"] and canonical(facts["folder"]) != canonical(doorway_folder())
    if facts["error"]:
        fix = "Fix or remove the module named above. nnU-Net imports all modules that sort before the trainer."
        if elsewhere:
            fix = f"Remove {where} from {VARIABLE}, or put it last."
        return Finding("FAIL", f"{name} is not found by nnU-Net: {facts['error']}", fix)
    if facts["module"].split(".")[0] == "nnunetv2":
        text = f"{name} is shadowed by a trainer in nnunetv2 itself ({facts['module']})"
        return Finding(
            "FAIL", text, "Remove that file, or install stock nnU-Net: python -m pip install --force-reinstall nnunetv2"
        )
    fix = f"Remove that folder from {VARIABLE}, or put {doorway_folder()} before it."
    return Finding("FAIL", f"{name} is shadowed by another trainer of that name in {Path(where)}", fix)
