"""Every benchmark of a step runs to its ratios; what they are worth is for a quiet machine to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMOKE = ("--scale", "smoke", "--rounds", "1", "--warm-up", "0", "--threads", "1", "--device", "cpu")
RATIOS = {  # benchmark -> its arguments, and what it must end with
    "step_time": (SMOKE, ["CTRCL step / (CNN step + Transformer step)"]),
    "loss_memory": (SMOKE, ["extra peak / one student's logits"]),
    "loss_operations": (SMOKE, ["operations of RLCL + CFCL"]),
    "semi_supervised_step": (
        SMOKE,
        ["CrossMatch / as published", "Cross Teaching / as published", "update of the teacher / Mean Teacher step"],
    ),
    "teacher_methods_step": (SMOKE, ["CRLN / Mean Teacher", "LDC / Mean Teacher", "CPS / peak of CRLN's step"]),
    "scaling": (
        ("--toy", "--rounds", "1", "--threads", "1"),
        [
            f"{part}, {what}: exponent"
            for part, what in (
                ("classes", "step, s"),
                ("batch", "peak, MiB"),
                ("patch", "step, s"),
                ("cases", "start-up, s"),
                ("cases", "memory, MiB"),
                ("folders", "report, s"),
                ("report", "report, s"),
            )
        ],
    ),
    "step_flop": (SMOKE, ["MeanTeacherTrainer", "CrossMatchTrainer"]),
    "metrics_time": (("--shape", "8", "32", "32", "--rounds", "1"), ["evaluate of 8 organs / plain way"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RATIOS)
def test_a_benchmark_runs(name):
    arguments, ratios = RATIOS[name]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for ratio in ratios:
        assert re.search(rf"^{re.escape(ratio)}.* = -?\d+\.\d+", done.stdout, flags=re.MULTILINE), done.stdout


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_cpu_and_writes_its_table(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")
    names = ["SupervisedTrainer", "CrossMatchTrainer", "CRLNTrainer"]
    table = tmp_path / "gpu.md"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--toy", "--device", "cpu", "--minutes", "0.2", "-o", table]
    command += ["--configurations", "2d", "--trainers", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.read_text().splitlines() if "|" in line]
    assert [row[1] for row in rows[2:]] == ["nnUNetTrainer", *names]
    for row in rows[2:]:
        assert re.fullmatch(r"\d+\.\d+|not reached", row[2]), done.stdout + done.stderr
    assert float(rows[2][2]) > 0
