"""`nnunet_collab doctor`: one line per check, and below each failed check how to fix the problem.

The command changes nothing. It imports torch only in another process, so it also works without torch, or with one that
crashes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

from nnunet_collab.core.shipped import VARIABLE, doorway_folder, doorways, extended
from nnunet_collab.doctor import folders, hardware, installation, trainers
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.probe import probe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `nnunet_collab doctor [-d DATASET]`."""
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="also look at this dataset: its id or full name")


def run(args: argparse.Namespace) -> int:
    """Print each finding as soon as its check has run.

    Returns:
        1 if any check failed, else 0; warnings do not count.
    """
    counts = {"ok": 0, "warn": 0, "FAIL": 0}
    for finding in findings(args.dataset):
        counts[finding.status] += 1
        print(finding, flush=True)
    print(f"\n{counts['FAIL']} failed, {counts['warn']} warned, {counts['ok']} ok")
    return 1 if counts["FAIL"] else 0


def findings(dataset_name: str | None = None) -> Iterator[Finding]:
    """Run all checks, the fast ones first.

    Args:
        dataset_name: Dataset to check, or None.
    """
    value = os.environ.get(VARIABLE, "")
    yield installation.check_python()
    yield from installation.check_packages()
    yield from folders.check_folders()
    yield from trainers.check_variable(value)
    yield hardware.check_computer()
    if dataset_name:
        from nnunet_collab.doctor import dataset  # reads images, with packages that may be missing

        yield from dataset.check_dataset(dataset_name)
    yield from _slow_findings(value, dataset_name)


def _slow_findings(value: str, dataset_name: str | None) -> Iterator[Finding]:
    """The checks that import packages."""
    expected = doorways()
    # Our folder is added. `check_variable` reports if it is missing; this check tells if adding it is enough.
    search = {"expected": expected, "folders": extended(value, doorway_folder())}
    steps: dict[str, dict[str, Any]] = {"torch": {}, "timm": {}, "trainers": search}
    if dataset_name:
        steps |= _plan_step(dataset_name)
    outcomes = probe(steps)
    torch, timm = outcomes["torch"], outcomes["timm"]
    yield installation.check_imports(torch, timm)
    if not torch.error:
        yield hardware.check_gpus(torch.facts)
        yield hardware.check_compilation(torch.facts)
    if torch.error or timm.error or not installation.installed("nnunetv2"):
        text = "trainers: not looked up, because nnU-Net cannot be imported"
        yield Finding("warn", text, "Fix the failed checks above, then run `nnunet_collab doctor` again.")
    else:
        yield from trainers.check_trainers(outcomes["trainers"], expected)
    if "plan" in outcomes:
        from nnunet_collab.doctor import planned

        yield planned.estimate(steps["plan"]["name"], outcomes["plan"])


def _plan_step(dataset_name: str) -> dict[str, dict[str, Any]]:
    """What nnU-Net's planner needs, if the dataset is not planned yet and its headers can be read."""
    from nnunet_collab.doctor import dataset, planned

    raw = dataset.dataset_to_plan(dataset_name)
    fingerprint = planned.header_fingerprint(raw) if raw is not None else None
    return {"plan": {"name": raw.name, "fingerprint": fingerprint}} if raw is not None and fingerprint else {}
