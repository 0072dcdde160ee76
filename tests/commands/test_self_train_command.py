"""`nnunet_collab self_train` as it is typed, with fake commands of nnU-Net and a real look-up of its trainer."""

from __future__ import annotations

import pytest
from self_training import RoundsLab
from studying import write_json
from tiny import make_plans

from nnunet_collab import cli


@pytest.fixture
def lab(tmp_path, monkeypatch):
    made = RoundsLab(tmp_path, monkeypatch)
    write_json(made.preprocessed / "nnUNetPlans.json", make_plans())
    return made


def self_train(lab, *words):
    request = ["-d", "1", "-c", "2d", "--to", "30", "--name", "test", "-o", str(lab.folder), "--device", "cpu"]
    return cli.main(["self_train", *request, *words])


def test_every_mode(lab, capsys):
    lab.dice(0.5, 0.6)
    words = ("-f", "0", "1", "--share", "0.25")
    assert self_train(lab, *words, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "nnUNetv2_train Dataset001_Toy 2d 1 -tr nnUNetTrainer -p nnUNetPlans --c -device cpu" in printed
    assert "--to 30 --name Toy_test_round1 --round 1 --share 0.25" in printed
    assert self_train(lab, *words, "--status") == 0
    assert "Not finished" in capsys.readouterr().out
    assert lab.calls() == []
    assert not lab.folder.exists()
    assert self_train(lab, *words) == 0
    printed = capsys.readouterr().out
    assert "Stability of a pseudo label: mean Dice of each of 2 folds with their ensemble." in printed
    assert "somewhat too high; compare on test cases" in printed
    assert "-d 30 -c 2d -p nnUNetPlans -tr nnUNetTrainer -f 0 1" in printed
    assert self_train(lab, *words, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "# test: finished"


def test_every_wrong_option_is_told(lab, capsys):
    words = ["-f", "0", "0", "--rounds", "0", "--share", "2", "--threshold", "-1", "--min-gain", "7", "--name", "a/b"]
    assert self_train(lab, *words) == 2
    found = capsys.readouterr().err
    for part in (
        "-f: must be distinct numbers from 0, or all; got 0 0.",
        "--rounds: Input should be greater than or equal to 1; got 0.",
        "--share: ",
        "--threshold: Input should be greater than or equal to 0; got -1.0.",
        "--min-gain: Input should be less than or equal to 1; got 7.0.",
        "--name: must be letters, digits, _ and -; got 'a/b'.",
    ):
        assert part in found


def test_a_name_that_nnunet_would_split(lab, capsys):
    assert self_train(lab, "-f", "0", "--name", "a__b") == 2
    assert "--name: must not have two underscores in a row" in capsys.readouterr().err


def test_a_trainer_that_does_not_exist(lab, capsys):
    assert self_train(lab, "-f", "0", "-tr", "NoTrainer") == 2
    assert "trainer 'NoTrainer': nnU-Net must find it" in capsys.readouterr().err


def test_a_missing_fold(lab, capsys):
    assert self_train(lab, "-f", "0", "1", "2") == 2
    assert "has folds 0 to 1; got 2" in capsys.readouterr().err
