"""The demo, every command of it, on fewer and smaller trainings than its own."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace

import pytest

import nnunet_collab.demo.run as run_module
from nnunet_collab.commands.demo import add_arguments
from nnunet_collab.core.settings import change
from nnunet_collab.core.shipped import doorways
from nnunet_collab.demo.methods import METHODS, Training
from nnunet_collab.demo.run import run_demo

TINY = {"epochs": 1, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "batch_size": 2}


def shorten(training):
    return None if training is None else Training(training.trainer, training.students, {**training.settings, **TINY})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ctrcl", "cross_teaching"])
def test_it_goes_from_data_to_table_and_figures(name, tmp_path, monkeypatch, capsys):
    method = METHODS[name]
    few = replace(
        method,
        training=shorten(method.training),
        baseline=shorten(method.baseline),
        labeled=min(method.labeled, 5),
        unlabeled=min(method.unlabeled, 2),
    )
    monkeypatch.setitem(METHODS, name, few)
    monkeypatch.setattr(run_module, "TEST_CASES", 2)
    run_demo(tmp_path / "demo", method=name, device="cpu", overwrite=False)
    table = capsys.readouterr().out.split("Dice on 2 cases held out from training")[1]
    rows = ["CNN student", "Transformer student", "both, one pass", "nnUNetv2_ensemble"]
    for row in rows + ["labels alone"] * (method.baseline is not None):
        assert f"\n{row}" in table
    assert ("labels alone" in table) == (method.baseline is not None)
    for figure in ("overlays.png", "learning_curves.png"):
        assert (tmp_path / "demo" / figure).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_trainer_that_takes_its_settings(name):
    method = METHODS[name]
    for training in filter(None, (method.training, method.baseline)):
        trainer = getattr(importlib.import_module(doorways()[training.trainer]), training.trainer)
        settings = change(trainer.settings, training.settings, name)
        assert [s.name for s in settings.students] == list(training.students)
    assert (method.baseline is None) == (method.unlabeled == 0)


def test_the_command_offers_every_method():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name in METHODS:
        assert parser.parse_args(["--method", name]).method == name
    assert parser.parse_args([]).method == "ctrcl"
