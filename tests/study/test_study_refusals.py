"""What a study must not be: told before anything is trained or written, with the way to mend it."""

from __future__ import annotations

import json
import shutil

import pytest
from studying import FIXMATCH, HEAD, LABELS, PAIR, SMALL, TEST, write_json

from nnunet_collab.core.errors import CollabError
from nnunet_collab.study.description import read_description


def refusal(lab, text):
    lab.study(text)
    with pytest.raises(CollabError) as caught:
        lab.run()
    assert lab.calls() == []
    assert not lab.results.exists() or not any(path.suffix == ".pth" for path in lab.results.rglob("*"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SMALL.replace("seeds", "sed"),
            "sed: unknown key. Valid keys: name, dataset, configuration, plans, folds, steps",
        ),
        (
            SMALL + "lr = 1",
            "arms.1.lr: unknown key. Valid keys: name, trainer, settings, seeds, steps, differs, ensemble",
        ),
        (SMALL.replace("[test]", "[test]\nimage = 'x'"), "test.image: unknown key. Valid keys: images, labels."),
        (SMALL + "[slurm]\nqueue = 'x'", "slurm.queue: unknown key. Valid keys: options, setup, at_once."),
        (SMALL.replace("steps = 6", ""), "steps: required, but missing. Add it."),
        (SMALL.replace("steps = 6", "steps = true"), "steps: Input should be a valid integer; got True."),
        (SMALL.replace("steps = 6", 'steps = "6"'), "steps: Input should be a valid integer; got '6'."),
        (SMALL.replace("steps = 6", "steps = 0"), "steps: Input should be greater than or equal to 1; got 0."),
        (
            SMALL.replace("steps = 6", "steps = 7"),
            "steps must be a multiple of iterations_per_epoch, 2; got 7. Set 6 or 8,",
        ),
        (SMALL.replace("steps = 6", "steps = 1"), "steps must be a multiple of iterations_per_epoch, 2; got 1. Set 2,"),
        (SMALL.replace("seeds = [0]", "seeds = []"), "seeds: List should have at least 1 item"),
        (SMALL.replace("seeds = [0]", "seeds = [-1]"), "seeds.0: Input should be greater than or equal to 0; got -1."),
        (SMALL.replace("seeds = [0]", "seeds = [1, 1]"), "arm 'labels': seeds must be distinct; got [1, 1]."),
        (
            SMALL.replace("seeds", "folds = [0, 0]\nseeds"),
            "folds: must be distinct numbers from 0, or ['all']; got [0, 0]",
        ),
        (SMALL.replace("seeds", "folds = []\nseeds"), "folds: must be distinct numbers from 0, or ['all']; got []"),
        (SMALL.replace("seeds", "folds = ['all', 0]\nseeds"), "folds: must be distinct numbers from 0, or ['all']"),
        (SMALL.replace("seeds", "folds = [true]\nseeds"), "folds: must be distinct numbers from 0, or ['all']"),
        (SMALL.replace("seeds", "folds = [0, 2]\nseeds"), "splits_final.json has folds 0 to 1; got 2. Correct folds."),
        (HEAD + "folds = ['all']\n" + LABELS, "folds: 'all' validates on the training cases, so [test] is required"),
        (SMALL + FIXMATCH, "arms: names must be unique; got 'fixmatch' twice."),
        (SMALL + FIXMATCH.replace('"fix', '"Fix'), "names must differ in more than upper and lower case; got Fixmatch"),
        (SMALL.replace('"fixmatch"', '"fix_match"'), "arms.1.name: String should match pattern"),
        (SMALL.replace('"fixmatch"', '"fix match"'), "arms.1.name: String should match pattern"),
        (SMALL.replace('"fixmatch"', '"../x"'), "arms.1.name: String should match pattern"),
        (SMALL.replace('"fixmatch"', '"tau9"'), "arms.1.name: String should match pattern"),
        (SMALL.replace('"fixmatch"', '""'), "arms.1.name: String should match pattern"),
        (SMALL.replace('"toy"', '"a/b"'), "name: String should match pattern"),
        (SMALL.replace('"toy"', '".."'), "name: String should match pattern"),
        (
            SMALL.replace('baseline = "labels"', 'baseline = "label"'),
            "baseline: must be one of the arms, labels, fixmatch",
        ),
        (
            SMALL.replace('"FixMatchTrainer"', '"FixMatch"'),
            "arm 'fixmatch', seed 0: trainer 'FixMatch': nnU-Net must find",
        ),
        (SMALL.replace("tau = 0.8", "tau = 1.5"), "arm 'fixmatch', seed 0: setting 'tau': must be <= 1; got 1.5."),
        (SMALL.replace("tau = 0.8", "seed = 3"), "arm 'fixmatch', settings: seed is set by the study."),
        (SMALL.replace("tau = 0.8", "epochs = 3"), "arm 'fixmatch', settings: epochs is set by the study."),
        (SMALL.replace("[test]", "[settings]\nrun_name = 'x'\n[test]"), "settings: run_name is set by the study."),
        (SMALL.replace("tau = 0.8", "tau = 1979-05-27"), "arm 'fixmatch', settings: must be numbers, texts, lists"),
        (
            SMALL.replace("tau = 0.8", "tau = nan"),
            "arm 'fixmatch', settings: must be numbers, texts, lists and tables;",
        ),
        (
            HEAD + "postprocessing = true\n" + LABELS,
            "postprocessing is chosen on validation cases, so it must be evaluated on other cases",
        ),
        (SMALL.replace("dataset = 1", "dataset = 2"), "2 matches none; the datasets there: Dataset001_Toy"),
        (SMALL.replace('"2d"', '"3d_fullres"'), "configuration: must be one of nnUNetPlans, 2d; got '3d_fullres'."),
        (
            SMALL.replace("seeds", 'plans = "Other"\nseeds'),
            "Run nnUNetv2_plan_and_preprocess -d 1 -c 2d, or correct plans",
        ),
        (
            SMALL.replace("[test]", "[test]\nimages = 'imagesXx'"),
            "imagesXx must exist; it does not. Correct [test], or create",
        ),
        (
            SMALL.replace("[test]", "[test]\nlabels = 'x'"),
            "x must exist; it does not. Correct [test], or create the folder.",
        ),
        (
            SMALL.replace("[test]", "[test]\nimages = 'labelsTs'"),
            "must hold cases named CASE_0000.nii.gz; it holds none.",
        ),
        ("name = ", "a study must be valid TOML; "),
        (HEAD + "arms = []\n", "arms: List should have at least 1 item"),
    ],
)
def test_a_study_is_refused_with(lab, text, message):
    assert message in refusal(lab, text)


def test_all_problems_of_keys_are_told_at_once(lab):
    message = refusal(lab, SMALL.replace("seeds", "sed").replace("steps = 6", "steps = 0") + "lr = 1")
    assert all(f"\n- {part}" in message for part in ("sed:", "steps:", "arms.1.lr:"))


def test_a_file_that_is_none(lab):
    with pytest.raises(CollabError, match="a study must be a readable TOML file"):
        read_description(lab.root / "no.toml")
    lab.file.write_bytes(b"name = '\xff'")
    with pytest.raises(CollabError, match="a study must be a readable TOML file"):
        read_description(lab.file)


@pytest.mark.parametrize(
    ("changes", "name", "values"),
    [
        ("steps = 8\n", "steps", ("6", "8")),
        ("settings.batch_size = 4\n", "labeled_batch_size", ("8", "4")),
    ],
)
def test_an_arm_that_differs_must_say_so(lab, changes, name, values):
    arm = LABELS.replace('"labels"', '"other"') + changes
    expected = f"must have the baseline's {name}, {values[0]}, or name it in differs; got {values[1]}."
    assert expected in refusal(lab, SMALL + arm)
    lab.study(SMALL + arm + f'differs = ["{name}"]\n')
    lab.check()


def test_what_is_said_to_differ_must_differ_and_be_known(lab):
    assert "differs names steps, so it must differ from the baseline's; both are 6." in refusal(
        lab, SMALL + 'differs = ["steps"]'
    )
    message = refusal(lab, SMALL + 'differs = ["lr"]')
    assert "unknown lr. Valid properties: steps, labeled_batch_size, patch_size." in message


def test_test_cases_and_their_labels_belong_together(lab):
    (lab.raw / "labelsTs" / "t1.nii.gz").rename(lab.raw / "labelsTs" / "t7.nii.gz")
    message = refusal(lab, SMALL)
    assert "must have a label in" in message
    assert "unmatched: t1, t7." in message


def test_a_test_folder_may_lie_anywhere(lab):
    for name in ("images", "labels"):
        shutil.copytree(lab.raw / f"{name}Ts", lab.root / "other" / name)
    folders = "".join(f'{name} = "{lab.root / "other" / name}"\n' for name in ("images", "labels"))
    lab.study(HEAD + TEST + folders + LABELS)
    assert lab.check().places.images == lab.root / "other" / "images"


def test_a_folder_belongs_to_one_study(lab):
    lab.run()
    lab.forget()
    lab.study(SMALL.replace("seeds", "folds = [1]\nseeds"))
    with pytest.raises(
        CollabError, match=r"must belong to this study; it holds another study, which differs in folds: \[1\] here"
    ):
        lab.run()
    lab.folder = lab.root / "full"
    lab.folder.mkdir()
    (lab.folder / "thesis.tex").touch()
    with pytest.raises(
        CollabError, match=r"must be new or belong to this study; it holds thesis.tex. Name another folder with -o."
    ):
        lab.run()
    assert lab.calls() == []


def test_a_run_that_was_trained_with_other_settings_is_not_taken_for_it(lab):
    lab.run()
    lab.forget()
    lab.study(SMALL.replace("0.8", "0.9"))
    with pytest.raises(CollabError, match=r"was trained with other settings: tau: 0.9 here, 0.8 there. Rename the arm"):
        lab.run()
    lab.study(SMALL.replace("steps = 6", "steps = 8"))
    with pytest.raises(CollabError, match=r"was trained with other settings: epochs: 4 here, 3 there"):
        lab.run()
    assert lab.calls() == []


def test_variables_must_be_set(lab, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    assert "nnUNet_results: nnU-Net's folder of results must be set" in refusal(lab, SMALL)


def test_nothing_is_written_before_all_is_checked(lab):
    before = sorted(lab.root.rglob("*"))
    refusal(lab, SMALL + PAIR.replace('"CrossTeachingTrainer"', '"NoTrainer"'))
    assert sorted(lab.root.rglob("*")) == before


def test_a_broken_summary_is_no_finished_validation(lab):
    lab.run()
    lab.forget()
    summary = lab.results / "FixMatchTrainer_fixmatch0_CNN__nnUNetPlans__2d" / "fold_0" / "validation" / "summary.json"
    write_json(summary, {})
    summary.write_text(json.dumps({"a": 1})[:-1])
    assert lab.run()[0] == 0
    assert lab.calls()[0][0] == "nnUNetv2_train"
