"""What nnUNetv2_train says to a mistake, and that what was there before stays as it was."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import pytest
from e2e_nnunet import DATASETS, STUDENTS, TINY, Workspace, digest, read_json

from nnunet_collab.core.errors import CollabError

pytestmark = pytest.mark.slow

OTHER = {**TINY, "beta": 2.0}


def contents(folder):
    """Digest of every file, the logs of trainings left out: nnU-Net starts a new one before it asks anything."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("training_log_"))
    return {path.relative_to(folder): digest(path) for path in files}


@pytest.mark.parametrize(
    ("configuration", "settings", "message"),
    [
        ("2d", {"betta": 2.0}, "nnUNet_collab_settings: unknown setting 'betta'. Valid settings: students, run_name"),
        ("2d", {"beta": -1}, "setting 'beta' must be a finite number >= 0; got -1 (int)"),
        ("2d", {"patch_size": [44, 40]}, "setting 'patch_size': the planned UNet divides axis 0 by 8"),
        ("3d_cascade_fullres", {}, "configuration '3d_cascade_fullres': must not be a cascade"),
        ("3d_highres", {}, "configuration '3d_highres': must be in the plans; they have 2d, "),
    ],
    ids=["unknown-key", "negative-weight", "patch-size", "cascade", "unknown-configuration"],
)
def test_wrong_settings_leave_no_results_folder(configuration, settings, message, workspace):
    done = workspace.train("plain", configuration, settings={**TINY, **settings}, group="refused", fails=True)
    assert message in done.err
    assert list((workspace.root / "refused").iterdir()) == []


def test_a_training_is_continued_with_its_own_settings_alone(workspace, trainings):
    folder = trainings["plain", "2d"].fold.parent.parent
    before = contents(folder)
    done = workspace.train("plain", "2d", "--c", settings=OTHER, fails=True)
    assert (
        "a training is continued with the settings it began with; these differ:\n  beta: 2.0 here, 3.0 there"
        in done.err
    )
    assert "checkpoint_final.pth" in done.err
    assert contents(folder) == before


def test_another_training_does_not_overwrite_a_finished_one(workspace, trainings):
    folder = trainings["plain", "2d"].fold.parent.parent
    before = contents(folder)
    done = workspace.train("plain", "2d", settings=OTHER, fails=True)
    assert "beta: 2.0 here, 3.0 there" in done.err
    assert "under another run_name" in done.err
    assert contents(folder) == before
    assert {path.name.split("__")[0] for path in folder.glob("*__2d")} >= {f"CTRCLTrainer_{s}" for s in STUDENTS}


def test_another_fold_does_not_make_the_first_one_unreadable(workspace, trainings):
    folder = trainings["plain", "2d"].fold.parent
    before = contents(folder)
    other = {**TINY, "students": {"Transformer": {"network": "segformer_b1"}}}
    done = workspace.train("plain", "2d", fold=1, settings=other, fails=True)
    assert f"{folder}: all folds of a run share one plans.json, so they must share the networks" in done.err
    assert "fold_0 was trained with others" in done.err
    assert contents(folder) == before


@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_a_truncated_checkpoint_is_named(flag, workspace, trainings):
    group = f"truncated{flag}"
    fold = workspace.fold(group, "plain", "2d")
    shutil.copytree(trainings["plain", "2d"].fold, fold, ignore=lambda _, names: [n for n in names if "final" not in n])
    checkpoint = fold / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    half = digest(checkpoint)
    done = workspace.train("plain", "2d", flag, group=group, fails=True)
    assert f"checkpoint {checkpoint}: must be a complete file of this package" in done.err
    assert digest(checkpoint) == half


@pytest.mark.parametrize(
    ("cases", "fold", "message"),
    [
        (
            0,
            0,
            "nnUNetPlans_2d: must hold the preprocessed cases of the configuration; there are none. Run nnUNetv2_plan",
        ),
        (1, "all", "nnUNetPlans_2d: a training needs at least 2 cases, to train and to validate; got 1."),
        (
            2,
            0,
            "splits_final.json: does not exist, and nnU-Net needs at least 5 cases to split them itself;",
        ),
    ],
    ids=["none", "one", "too-few-to-split"],
)
def test_too_few_cases(cases, fold, message, tmp_path, workspace, in_process):
    few = Workspace(tmp_path)
    source, folder = workspace.preprocessed("plain"), few.preprocessed("plain")
    kept = [f"phantomTr{number:03d}" for number in range(cases)]

    def left_out(_, names):
        return [n for n in names if n == "splits_final.json" or (n.startswith("phantomTr") and n[:12] not in kept)]

    shutil.copytree(source, folder, ignore=left_out)
    trainer = in_process("CTRCLTrainer", "plain", "2d", where=few, fold=fold)
    with pytest.raises(CollabError, match=re.escape(message)):
        trainer.run_training()
    assert not folder.joinpath("splits_final.json").exists()


def test_two_cases_train_with_all_of_them(tmp_path, workspace, in_process):
    few = Workspace(tmp_path)
    shutil.copytree(
        workspace.preprocessed("plain"),
        few.preprocessed("plain"),
        ignore=lambda _, names: [n for n in names if n.startswith(("phantomTr002", "phantomTr003", "splits"))],
    )
    in_process("CTRCLTrainer", "plain", "2d", {**TINY, "epochs": 1}, where=few, fold="all").run_training()
    assert (few.fold("in_process", "plain", "2d", fold="all") / "checkpoint_final.pth").is_file()


def make_shallow_plans(workspace):
    """Plans of a UNet with three resolutions."""
    folder = workspace.preprocessed("plain")
    plans = read_json(folder / "nnUNetPlans.json")
    network = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    network["n_stages"] = 3
    for name in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
        network[name] = network[name][:3]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][:2]
    (folder / "shallowPlans.json").write_text(json.dumps({**plans, "plans_name": "shallowPlans"}))


def take_label_3_away(workspace):
    """Of all cases, so also of the labeled ones."""
    for path in (workspace.preprocessed("plain") / "nnUNetPlans_2d").glob("*.pkl"):
        content = pickle.loads(path.read_bytes())
        content["class_locations"][3] = []
        path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("trainer", "kind", "plans", "change", "message"),
    [
        (
            "CRLNTrainer", "regions", "nnUNetPlans", None,
            "CRLNTrainer: prototypes are of exclusive classes, and this dataset has overlapping regions. Use "
            "CrossMatchTrainer or MeanTeacherTrainer, which treat every region by itself.",
        ),
        (
            "CRLNTrainer", "plain", "shallowPlans", make_shallow_plans,
            "CRLNTrainer: needs a UNet whose decoder has 3 stages or more, so a network of 4 resolutions; "
            "PlainConvUNet of 2d has 2. Use 'plans' as the student's network, in a configuration with larger patches "
            "(3d_fullres rather than 3d_lowres, or 2d).",
        ),
        (
            "LDCTrainer", "plain", "nnUNetPlans", take_label_3_away,
            "setting 'size_source': 'labeled' takes the size of each class from the labeled cases, and none of the 3 "
            "of this fold has label 3. Label a case that has it, or set size_source to 'teacher' or constraint to "
            "'none'.",
        ),
    ],
    ids=["CRLN-regions", "CRLN-shallow", "LDC-absent-class"],
)  # fmt: skip
def test_a_dataset_that_a_method_cannot_take_is_refused_in_one_line(
    trainer, kind, plans, change, message, tmp_path, workspace
):
    own = Workspace(tmp_path)
    shutil.copytree(workspace.preprocessed(kind), own.preprocessed(kind))
    if change is not None:
        change(own)
    arguments = (DATASETS[kind], "2d", 0, "-tr", trainer, "-p", plans, "-device", "cpu")
    done = own.run("nnUNetv2_train", *arguments, fails=True)
    assert done.err.rstrip().splitlines()[-1] == f"nnunet_collab.core.errors.CollabError: {message}"
    assert contents(own.root / "results") == {}  # nothing that a training would be continued from, or read by
