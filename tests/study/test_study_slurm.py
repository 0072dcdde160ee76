"""The job array: a script that bash understands, that runs every run once, and that goes on when its time is up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studying import HEAD, LABELS, PAIR, SMALL, TEST

from nnunet_collab.core.errors import CollabError
from nnunet_collab.study import conduct, execution

ROOT = Path(__file__).parents[2]
SLURM = '[slurm]\noptions = ["--gres=gpu:1", "--time=24:00:00"]\nsetup = ["export READY=1"]\nat_once = 2\n'
SBATCH = """#!/bin/bash
last=$(sed -nE 's/^#SBATCH --array=0-([0-9]+).*/\\1/p' "$1")
for task in $(seq 0 "$last"); do
    SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task bash "$1" || exit 1
done
"""


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def array(lab, text=SMALL, *options):
    lab.study(text)
    study = lab.check()
    return conduct.write_array(study, options), study


def test_bash_understands_it_and_sbatch_finds_its_options(lab):
    script, study = array(lab, HEAD.replace("[0]", "[0, 1]") + SLURM + TEST + LABELS + PAIR, "--device", "auto")
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert lines[0] == "#!/bin/bash"
    assert lines[1 : 1 + len(options)] == [f"#SBATCH {option}" for option in options]  # sbatch reads no later ones
    for option in ("--array=0-3%2", "--requeue", "--open-mode=append", "--gres=gpu:1", "--time=24:00:00"):
        assert option in options
    (runs,) = re.findall(r"^runs=\((.*)\)$", script.read_text(), flags=re.MULTILINE)
    assert runs.split() == [run.name for run in study.runs] == ["labels0", "pair0", "labels1", "pair1"]
    assert "\nexport READY=1\n" in script.read_text()
    assert f'study {lab.file} -o {lab.folder} --device auto --run "$run" &' in script.read_text()


def test_paths_with_spaces_and_quotes(lab):
    lab.folder = lab.root / "a study's"
    script, _ = array(lab)
    subprocess.run(["bash", "-n", script], check=True)
    assert f'#SBATCH --output="{lab.folder}/logs/slurm_%A_%a.log"' in script.read_text()


@pytest.mark.parametrize("option", ["gres=gpu:1", "--time=1\\n#SBATCH --x", "", "; rm -r x"])
def test_options_that_are_none(lab, option):
    with pytest.raises(CollabError, match=r"slurm.options.0: String should match pattern"):
        array(lab, HEAD + f'[slurm]\noptions = ["{option}"]\n' + LABELS)


@pytest.mark.slow
def test_the_tasks_do_all_runs_and_the_study_then_only_reports(lab, monkeypatch):
    lab.study(SMALL)
    assert lab.run()[0] == 0
    expected = lab.outcome()
    subprocess.run(["rm", "-r", lab.folder, lab.results], check=True)
    lab.forget()
    own = lab.root / "bin" / "nnunet_collab"
    (lab.root / "fake").mkdir()
    own.rename(lab.root / "fake" / own.name)
    conducting = Path(__file__).with_name("conducting.py")
    write_program(
        own,
        f'#!/bin/bash\nif [ "$1" = study ]; then exec {sys.executable} {conducting} {lab.root} "${{@: -1}}"; fi\n'
        f'exec {sys.executable} -IS {lab.root}/fake/nnunet_collab "$@"\n',
    )
    write_program(lab.root / "bin" / "sbatch", SBATCH)
    script, _ = array(lab)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(conducting.parent)]))
    subprocess.run([lab.root / "bin" / "sbatch", script], check=True, timeout=300)
    assert not (lab.folder / "report").exists()
    lab.forget()
    assert lab.run()[0] == 0
    assert [words[0] for _, words, _ in lab.calls()] == ["report"]
    assert lab.outcome() == expected


@pytest.mark.parametrize(("sent", "status", "requeued"), [("USR1", 0, True), ("TERM", 143, False)])
def test_a_task_whose_time_is_up_ends_its_commands_and_is_queued_again(lab, sent, status, requeued, monkeypatch):
    began, ended, queued = (lab.root / name for name in ("began", "ended", "queued"))
    write_program(
        lab.root / "bin" / "nnunet_collab",
        f"#!/bin/bash\ntrap 'touch {ended}; exit 143' TERM\necho \"$@\" > {began}\nwhile true; do sleep 0.05; done\n",
    )
    write_program(lab.root / "bin" / "scontrol", f'#!/bin/bash\necho "$@" > {queued}\n')
    script, _ = array(lab)
    monkeypatch.setenv("PATH", f"{execution.PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    variables = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    process = subprocess.Popen(["bash", script], env=variables)
    for _ in range(600):
        if began.exists() and began.read_text():
            break
        time.sleep(0.05)
    process.send_signal(getattr(signal, f"SIG{sent}"))
    assert process.wait(30) == status
    assert began.read_text().split()[-2:] == ["--run", "fixmatch0"]
    assert ended.exists()
    assert queued.exists() == requeued
    if requeued:
        assert queued.read_text() == "requeue 7_1\n"


def test_a_run_that_fails_ends_its_task_with_its_status(lab):
    write_program(lab.root / "bin" / "nnunet_collab", "#!/bin/bash\nexit 1\n")
    script, _ = array(lab)
    variables = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    assert subprocess.run(["bash", script], env=variables, check=False).returncode == 1


def test_a_run_by_its_name(lab):
    study = lab.check()
    assert conduct.conduct_one(study, "fixmatch0") == 0
    assert not (lab.results / "SupervisedTrainer_labels0__nnUNetPlans__2d").exists()
    assert (lab.folder / "predictions" / "FixMatchTrainer_fixmatch0_CNN.csv").is_file()
    with pytest.raises(CollabError, match=r"--run: must be one of the study's runs, labels0, fixmatch0; got 'x'."):
        conduct.conduct_one(study, "x")
