"""`nnunet_collab study` as it is typed, with fake commands of nnU-Net and real settings of real trainers."""

from __future__ import annotations

import pytest
from studying import SMALL, Lab, inspect, write_json
from tiny import make_plans

from nnunet_collab import cli
from nnunet_collab.training import inspection


@pytest.fixture
def lab(tmp_path, monkeypatch):
    made = Lab(tmp_path, monkeypatch)
    write_json(made.preprocessed / "nnUNetPlans.json", make_plans())
    return made


def study(lab, *words):
    return cli.main(["study", str(lab.file), "-o", str(lab.folder), "--device", "cpu", *words])


def test_every_mode(lab, capsys):
    assert study(lab, "--dry-run") == 0
    assert "nnUNetv2_train Dataset001_Toy 2d 0 -tr FixMatchTrainer" in capsys.readouterr().out
    assert study(lab, "--status") == 0
    assert "fixmatch0  FixMatchTrainer    0/6    not begun" in capsys.readouterr().out
    assert not lab.folder.exists()
    assert study(lab, "--slurm") == 0
    assert f"next    sbatch {lab.folder / 'slurm.sh'}" in capsys.readouterr().out
    assert lab.calls() == []


def test_one_run_then_the_rest_and_the_report(lab, capsys, monkeypatch):
    monkeypatch.setattr(inspection, "inspect_trainer", inspect)  # the fake training records no more than it knows
    assert study(lab, "--run", "fixmatch0") == 0
    trained = [words[4] for name, words, _ in lab.calls() if name == "nnUNetv2_train"]
    assert trained == ["FixMatchTrainer"]
    assert study(lab, "--jobs", "2") == 0
    assert "report  " in capsys.readouterr().out
    assert len(lab.calls()) == 7


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (SMALL, ["--jobs", "0"], "--jobs: must be at least 1; got 0."),
        (SMALL, ["--run", "x"], "--run: must be one of the study's runs, labels0, fixmatch0; got 'x'."),
        (SMALL.replace("tau = 0.8", "tua = 0.8"), [], "arm 'fixmatch', seed 0: FixMatchTrainer: unknown setting 'tua'"),
    ],
)
def test_what_is_refused_ends_with_status_2_and_trains_nothing(lab, text, words, message, capsys):
    lab.study(text)
    assert study(lab, *words) == 2
    assert message in capsys.readouterr().err
    assert lab.calls() == []
