"""Predictions of a study: seeds are one method, and nnU-Net's postprocessing makes another one of the same model."""

from __future__ import annotations

import pandas as pd
import pytest

from nnunet_collab.report.grouping import Result, choose_baseline, group_by_method
from nnunet_collab.report.sources import Source


def result(folder, world, trainer, arm, seed, *, postprocessed=False, student="CNN"):
    name = f"{trainer}_{arm}{seed}_{student}" + ("_pp" if postprocessed else "")
    (folder / name).mkdir(parents=True)
    if postprocessed:
        (folder / name / "postprocessed_with.json").write_text("{}")
    plans = world.plans(trainer, f"{arm}{seed}", seed, student=student)
    return Result(Source(name, plans=plans, predictions=(folder / name,)), seed, pd.DataFrame(), [])


def test_seeds_are_one_method_with_postprocessing_and_without(world, tmp_path):
    results = [
        result(tmp_path / "p", world, trainer, arm, seed, postprocessed=postprocessed)
        for seed in (0, 1, 12)
        for trainer, arm in (("SupervisedTrainer", "labels"), ("FixMatchTrainer", "fixmatch"))
        for postprocessed in (False, True)
    ]
    methods = group_by_method(results)
    labels = {method.label: [r.seed for r in method.results] for method in methods}
    assert labels == {
        name + end: [0, 1, 12]
        for name in ("Supervised labels / CNN", "FixMatch / CNN")
        for end in ("", ", postprocessed")
    }
    for method in methods:
        assert {r.source.postprocessed for r in method.results} == {method.label.endswith("postprocessed")}
    baseline, why = choose_baseline(methods, "SupervisedTrainer_labels0_CNN")
    assert (baseline.label, why) == ("Supervised labels / CNN", "")


@pytest.mark.parametrize("marker", ["postprocessing.json", "postprocessing.pkl"])
def test_a_folder_on_which_postprocessing_was_only_chosen_is_not_postprocessed(tmp_path, marker):
    (tmp_path / marker).touch()
    assert not Source("x", predictions=(tmp_path,)).postprocessed


def test_two_arms_of_one_trainer_are_two_methods(world, tmp_path):
    results = [result(tmp_path / "p", world, "FixMatchTrainer", arm, 0) for arm in ("weak", "strong")]
    assert [method.label for method in group_by_method(results)] == ["FixMatch weak / CNN", "FixMatch strong / CNN"]
