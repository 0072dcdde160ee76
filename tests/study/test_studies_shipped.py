"""The studies that ship with the repository: trainers take their settings, and no arm differs in silence."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from documents import code, read
from studying import write_json
from tiny import make_plans

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.shipped import doorways
from nnunet_collab.study.checks import make_runs
from nnunet_collab.study.description import read_description
from nnunet_collab.study.runs import Places
from nnunet_collab.training.inspection import find_trainer, inspect_trainer

FOLDER = Path(__file__).parents[2] / "studies"
STUDIES = sorted(FOLDER.glob("*.toml"))
FEW_LABELS = [path for path in STUDIES if "coarse" in path.stem]
ALL_LABELED = {"CTRCLTrainer", "CMAformerTrainer", "SupervisedTrainer"}


def plans_of(description):
    """Plans with as many stages as nnU-Net plans for the dataset of the study, and its batch."""
    planned = {"acdc_coarse_3": 13, "acdc_coarse_7": 16, "la_coarse_4": 2, "la_coarse_8": 2, "ctrcl_acdc": 13}
    plans = make_plans()
    configuration = plans["configurations"][description.configuration]
    configuration["batch_size"] = planned[description.name]
    network = configuration["architecture"]["arch_kwargs"]
    stages = 4 if description.configuration == "3d_fullres" else 5
    network["n_stages"] = stages
    for name, value in network.items():
        if isinstance(value, (list, tuple)) and name != "features_per_stage" and "decoder" not in name:
            network[name] = [*value, value[-1]][:stages] if len(value) < stages else value[:stages]
    network["features_per_stage"] = [4] * stages
    network["n_conv_per_stage_decoder"] = [1] * (stages - 1)
    configuration["patch_size"] = [64] * len(configuration["patch_size"])
    return plans


def runs_of(path, root):
    description = read_description(path)
    preprocessed = root / "preprocessed"
    write_json(preprocessed / f"{description.plans}.json", plans_of(description))
    places = Places(root / "study", "Dataset001_X", root / "raw", preprocessed, root / "results", None, None)
    return description, make_runs(description, places, inspect_trainer)


def test_there_are_some():
    assert {path.stem for path in STUDIES} == {
        "acdc_coarse_3", "acdc_coarse_7", "la_coarse_4", "la_coarse_8", "ctrcl_acdc",
    }  # fmt: skip


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_trainers_take_the_settings_and_no_arm_differs_in_silence(path, tmp_path):
    description, runs = runs_of(path, tmp_path)
    assert description.name == path.stem
    seeds = Counter(run.arm.name for run in runs)
    assert all(count >= 3 for count in seeds.values())
    assert len({run.trainer for run in runs}) == len(runs)
    for run in runs:
        assert run.recorded["epochs"] * run.recorded["iterations_per_epoch"] == description.steps
        for student in run.recorded["students"]:
            small = student["network"] == "segformer_b0" or student["arch"]["features_per_stage"][0] == 8
            assert small, run.name


@pytest.mark.parametrize("path", FEW_LABELS, ids=lambda path: path.stem)
def test_every_trainer_for_few_labels_is_compared(path):
    description = read_description(path)
    assert {arm.trainer for arm in description.arms} == {*doorways()} - ALL_LABELED | {"SupervisedTrainer"}
    assert len(description.seeds_of(description.arms[0])) == 5


def test_each_part_of_ctrcl_is_off_once(tmp_path):
    _, runs = runs_of(FOLDER / "ctrcl_acdc.toml", tmp_path)
    parts = ("beta", "gamma_encoder", "gamma_decoder", "logit_mode")
    found = {run.arm.name: [run.recorded[part] for part in parts] for run in runs if run.arm.name != "alone"}
    full = found.pop("ctrcl")
    changed = [[part for part, a, b in zip(parts, full, values, strict=True) if a != b] for values in found.values()]
    assert sorted(changed) == sorted([part] for part in parts)
    alone, together = (
        next(run.recorded["students"] for run in runs if run.arm.name == name) for name in ("alone", "ctrcl")
    )
    assert alone == together


def test_nothing_in_them_is_of_one_machine():
    for path in FOLDER.iterdir():
        assert not re.search(r"(?<![\w$.}])/(home|root|tmp|work|data|mnt)\b", path.read_text()), path


# ---------------------------------------------------------------- what a trainer would do


@pytest.mark.parametrize("name", sorted(doorways()))
def test_every_trainer_can_be_inspected(name):
    plans = make_plans()
    before = str(plans)
    found = inspect_trainer(name, {"seed": 3, "batch_size": 4}, plans, "2d")
    assert found.settings["seed"] == 3
    assert found.published
    assert (found.labeled_batch_size, found.patch_size) == (4, make_plans()["configurations"]["2d"]["patch_size"])
    assert str(plans) == before


def test_presets_count():
    found = inspect_trainer("CTRCLTrainer", {"preset": "ctrcl_mobilenetv2_mitb0", "batch_size": 2}, make_plans(), "2d")
    assert found.settings["augmentation"] == "flips_and_rotations"
    assert found.labeled_batch_size == 2


@pytest.mark.parametrize(
    ("name", "settings", "configuration", "message"),
    [
        ("FixMatchTrainer", {"tua": 0.5}, "2d", "unknown setting 'tua'. Valid settings: "),
        ("FixMatchTrainer", {"tau": "high"}, "2d", "setting 'tau' must be a finite number"),
        ("FixMatchTrainer", {"tau": 1.5}, "2d", "setting 'tau' must be a finite number in (0, 1); got 1.5"),
        ("FixMatchTrainer", {"patch_size": [8, 8, 8]}, "2d", "2d is 2D and takes 2 sizes"),
        ("FixMatchTrainer", {"unlabeled_batch_size": 0}, "2d", "'unlabeled_batch_size' must be an integer in [1, "),
        ("FixMatchTrainer", {"start": 2000}, "2d", "setting 'start': must be a share of the run"),
        ("FixMatchTrainer", {"preset": "no"}, "2d", "must be inline JSON, a JSON file or a preset"),
        ("FixMatchTrainer", {}, "3d_cascade", "configuration '3d_cascade': must be in the plans; they have"),
        ("CrossTeachingTrainer", {"students": [{"name": "A"}]}, "2d", "two students teach each other"),
        ("CrossMatchTrainer", {"students": [{"name": "A"}, {"name": "B"}]}, "2d", "one network learns from itself"),
    ],
)  # fmt: skip
def test_what_a_trainer_refuses_is_refused_before(name, settings, configuration, message):
    with pytest.raises(CollabError) as caught:
        inspect_trainer(name, settings, make_plans(), configuration)
    assert message in str(caught.value)


@pytest.mark.slow  # looks through all of nnU-Net's trainers
def test_trainers_of_others(tmp_path, monkeypatch):
    with pytest.raises(
        CollabError, match=r"must take settings.*Use SupervisedTrainer, which trains what nnUNetTrainer"
    ):
        find_trainer("nnUNetTrainer")
    with pytest.raises(CollabError, match=r"trainer 'NoTrainer': nnU-Net must find it; it does not"):
        find_trainer("NoTrainer")
    own = "from nnunet_collab.methods.fixmatch import FixMatchTrainer\nclass OwnTrainer(FixMatchTrainer):\n    pass\n"
    (tmp_path / "OwnTrainer.py").write_text(own)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert find_trainer("OwnTrainer").__name__ == "OwnTrainer"


@pytest.mark.parametrize(
    ("page", "arms"),
    [("fair_comparison.md", ["labels", "labelslarge", "pair"]), ("tutorial.md", ["labels", "crossteaching"])],
)
def test_the_studies_in_the_pages_are_valid(page, arms, tmp_path):
    text = read(f"docs/{page}")
    (study,) = code(text, "toml")
    (tmp_path / "study.toml").write_text(study)
    description = read_description(tmp_path / "study.toml")
    assert [arm.name for arm in description.arms] == arms
    for name in re.findall(r"nnunet_collab study (studies/\S+)", text):
        assert (FOLDER.parent / name).is_file()


def test_what_a_page_adds_to_a_study_for_slurm_is_valid(tmp_path):
    (slurm,) = code(read("docs/clusters.md"), "toml")
    (study,) = code(read("docs/tutorial.md"), "toml")
    (tmp_path / "study.toml").write_text(study + slurm)
    assert read_description(tmp_path / "study.toml").slurm.at_once == 8
