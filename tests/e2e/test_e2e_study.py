"""A study with nnU-Net's real commands, tiny networks and few steps, to its report."""

from __future__ import annotations

import csv

import pytest
from e2e_nnunet import DATASETS

pytestmark = pytest.mark.slow

STUDY = f"""
name = "tiny"
dataset = {DATASETS["plain"]}
configuration = "2d"
steps = 4
iterations_per_epoch = 2
seeds = [0]
baseline = "alone"
postprocessing = true
[test]
[settings]
val_iterations_per_epoch = 1
save_every = 1
[[arms]]
name = "alone"
trainer = "SupervisedTrainer"
[[arms]]
name = "ctrcl"
trainer = "CTRCLTrainer"
ensemble = true
settings.students.Transformer.network = "segformer_b0"
"""
METHODS = ("Supervised alone / CNN", "CTRCL / CNN", "CTRCL / Transformer", "CTRCL / mean of students")


def study(workspace, *arguments):
    file = workspace.root / "tiny.toml"
    command = ("python", "-m", "nnunet_collab", "study", file, "-o", workspace.root / "study_tiny", "--device", "cpu")
    return workspace.run(*command, *arguments, group="study_results", settings=None, nnUNet_npp="1", nnUNet_nps="1").out


def test_from_a_file_to_a_report_and_again(workspace):
    (workspace.root / "tiny.toml").write_text(STUDY)
    folder = workspace.root / "study_tiny"
    out = study(workspace, "--jobs", "2")
    assert (folder / "report" / "report.html").is_file()
    with open(folder / "report" / "scores.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == "mean of classes"]
    expected = {name + end for name in METHODS for end in ("", ", postprocessed")}
    assert {row["method"] for row in rows} == expected
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)
    assert "alone0  SupervisedTrainer  4/4    done" in out
    first = (folder / "report" / "scores.csv").read_text()

    # What is left to be done after a loss is done, and nothing else; the tables are the same.
    (folder / "predictions" / "CTRCLTrainer_ctrcl0_CNN.csv").unlink()
    out = study(workspace, "--dry-run")
    lines = [line for line in out.splitlines() if line and not line.startswith(("#", "mkdir"))]
    assert [line.split()[:2] for line in lines] == [["nnunet_collab", "evaluate"], ["nnunet_collab", "report"]]
    out = study(workspace)
    assert (folder / "report" / "scores.csv").read_text() == first
    assert "training of fold" not in out
