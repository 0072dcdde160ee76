"""A study from its file to its report, with fake commands: what runs, what is skipped, what a dry run says."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from types import SimpleNamespace

import pytest
from studying import FIXMATCH, HEAD, LABELS, PAIR, SMALL, TEST, VALIDATED, Lab

from nnunet_collab.study import conduct, execution

POSTPROCESSED = "postprocessing = true\n"
EVERYTHING = HEAD.replace("seeds = [0]", "seeds = [0]\nfolds = [0, 1]") + POSTPROCESSED + TEST + LABELS + PAIR


def names(calls):
    return [f"{name} {words[0]}" if name == "nnunet_collab" else name for name, words, _ in calls]


def test_every_arm_is_trained_predicted_evaluated_and_reported(lab):
    status, printed = lab.run()
    assert status == 0, printed
    one = ["nnUNetv2_train", "nnUNetv2_predict", "nnunet_collab evaluate"]
    assert names(lab.calls()) == [*one, *one, "nnunet_collab report"]
    assert (lab.folder / "report" / "report.html").is_file()
    settings = [json.loads(variables["nnUNet_collab_settings"]) for _, _, variables in lab.calls()[::3][:2]]
    common = {"seed": 0, "epochs": 3, "iterations_per_epoch": 2, "validate_ensemble": False}
    assert settings == [{"run_name": "labels0", **common}, {"tau": 0.8, "run_name": "fixmatch0", **common}]
    train = ["Dataset001_Toy", "2d", "0", "-tr", "FixMatchTrainer", "-p", "nnUNetPlans", "--c", "-device", "cpu"]
    assert lab.calls()[3][1] == train
    assert "fixmatch0  FixMatchTrainer    6/6" in printed
    assert (lab.folder / "status.txt").read_text() in printed


def test_what_is_finished_is_skipped(lab):
    lab.run()
    before = lab.outcome()
    lab.forget()
    status, printed = lab.run()
    assert (status, lab.calls()) == (0, [])
    assert lab.outcome() == before
    assert "report  " in printed


def commands_of(printed):
    """Words of the fake commands that a dry run prints."""
    lines = [shlex.split(line) for line in printed.splitlines() if line and not line.startswith("#")]
    return [words for words in lines if words[0] not in ("rm", "mkdir", "mv", "cp")]


def as_printed(call):
    name, words, variables = call
    settings = variables["nnUNet_collab_settings"]
    return [*([f"nnUNet_collab_settings={settings}"] if settings else []), name, *words]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A finished study with two folds, postprocessing and several students, and what a dry run said before."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        lab = Lab(tmp_path_factory.mktemp("everything"), monkeypatch)
        lab.study(EVERYTHING)
        printed = lab.printed(conduct.print_commands)
        assert not lab.folder.exists()
        assert lab.run()[0] == 0
        return SimpleNamespace(lab=lab, printed=printed, calls=lab.calls(), outcome=lab.outcome())


@pytest.mark.parametrize("text", [SMALL, VALIDATED], ids=["test", "validation"])
def test_a_dry_run_prints_what_runs(lab, text):
    lab.study(text)
    printed = lab.printed(conduct.print_commands)
    assert not lab.folder.exists()
    assert lab.run()[0] == 0
    assert commands_of(printed) == [as_printed(call) for call in lab.calls()]
    assert commands_of(lab.printed(conduct.print_commands)) == []


def test_a_dry_run_of_everything_prints_what_runs(everything):
    assert commands_of(everything.printed) == [as_printed(call) for call in everything.calls]


@pytest.mark.slow
def test_the_lines_of_a_dry_run_typed_by_hand_end_with_the_same_tables(lab, everything):
    lab.study(EVERYTHING)
    printed = lab.printed(conduct.print_commands)
    environment = {**os.environ, "PATH": f"{execution.PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-eu", "-c", printed], env=environment, check=True, timeout=300)
    assert len(lab.outcome()) > 15
    assert lab.outcome() == everything.outcome
    lab.forget()
    lab.run()
    assert lab.calls() == []


def test_models_rows_and_folds(everything):
    tables = sorted(path.stem for path in (everything.lab.folder / "predictions").glob("*.csv"))
    pair = [f"CrossTeachingTrainer_pair0{end}" for end in ("", "_CNN", "_Transformer")]
    models = [*pair, "SupervisedTrainer_labels0_CNN"]
    assert tables == sorted(f"{model}{end}" for model in models for end in ("", "_pp"))
    assert sorted(words[2] for name, words, _ in everything.calls if name == "nnUNetv2_train") == ["0", "0", "1", "1"]
    predicted = next(words for name, words, _ in everything.calls if name == "nnUNetv2_predict")
    assert predicted[predicted.index("-f") :][:3] == ["-f", "0", "1"]
    marked = everything.lab.folder / "predictions" / f"{models[0]}_pp" / "postprocessed_with.json"
    assert marked.is_file()


@pytest.mark.slow
def test_several_at_a_time_end_with_the_same_tables_on_threads_of_their_own(lab, everything):
    lab.study(EVERYTHING)
    assert lab.run(jobs=3)[0] == 0
    assert lab.outcome() == everything.outcome
    threads = {variables["OMP_NUM_THREADS"] for name, _, variables in lab.calls() if name == "nnUNetv2_train"}
    assert threads == {"1"}


def test_a_baseline_with_two_students_gets_a_report_each(lab):
    lab.study(VALIDATED.replace('baseline = "labels"', 'baseline = "pair"').replace("ensemble = true\n", ""))
    assert lab.run()[0] == 0
    for student in ("CNN", "Transformer"):
        page = (lab.folder / f"report_{student}" / "report.html").read_text()
        assert page.splitlines()[0] == f"CrossTeachingTrainer_pair0_{student}__nnUNetPlans__2d"
    # The mean of the students was not asked for, so it is neither validated nor reported.
    assert "CrossTeachingTrainer_pair0__" not in page


@pytest.mark.parametrize(
    ("jobs", "device", "gpus", "expected"),
    [
        (1, "cuda", ["0", "1"], [{}]),
        (2, "cuda", ["4", "GPU-a"], [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "GPU-a"}]),
        (3, "cuda", ["0", "1"], [{"CUDA_VISIBLE_DEVICES": name} for name in "010"]),
        (2, "cpu", ["0", "1"], [{"OMP_NUM_THREADS": "1"}] * 2),
    ],
)
def test_every_slot_has_a_gpu_or_a_thread(jobs, device, gpus, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert execution.slots_of(jobs, device, gpus) == expected


def test_threads_that_the_user_set_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert execution.slots_of(2, "cpu", []) == [{"OMP_NUM_THREADS": "4"}] * 2


def test_a_run_that_fails_keeps_no_other_from_going_on_and_shows_its_end(lab):
    script = execution.PROGRAMS / "nnUNetv2_train"
    text = script.read_text()
    script.write_text(
        text.replace(
            "def train():\n",
            'def train():\n    if value("-tr") == ["SupervisedTrainer"]: raise SystemExit("no memory")\n',
        )
    )
    status, printed = lab.run()
    assert status == 1
    assert "labels0: FAILED, training of fold 0: nnUNetv2_train failed with status 1; end of" in printed
    assert "no memory" in printed
    assert "nnUNetv2_predict" in names(lab.calls())  # of the other arm
    assert not (lab.folder / "report").exists()
    assert "labels0    SupervisedTrainer  0/6    FAILED" in (lab.folder / "status.txt").read_text()
    script.write_text(text)
    assert lab.run()[0] == 0
    assert (lab.folder / "report" / "report.html").exists()


def test_a_command_that_ends_well_without_its_result_is_a_failure(lab):
    (execution.PROGRAMS / "nnUNetv2_predict").write_text("#!/bin/sh\nexit 0\n")
    status, printed = lab.run()
    assert status == 1
    assert (
        "prediction with SupervisedTrainer_labels0_CNN: its commands ended, but some of its results are missing"
        in printed
    )


# ---------------------------------------------------------------- what is stale is made again


def touched(lab, change):
    """Names of the commands that a finished study runs again after a change."""
    assert lab.run()[0] == 0
    lab.forget()
    change()
    assert lab.run()[0] == 0
    return names(lab.calls())


def test_a_model_that_was_trained_again_is_predicted_again(lab):
    def train_again():
        folder = lab.results / "FixMatchTrainer_fixmatch0__nnUNetPlans__2d"
        subprocess.run(["rm", "-r", folder], check=True)  # the published model and its validation stay

    calls = touched(lab, train_again)
    assert calls == ["nnUNetv2_train", "nnUNetv2_predict", "nnunet_collab evaluate", "nnunet_collab report"]


def test_a_new_test_case_is_predicted(lab):
    def add():
        (lab.raw / "imagesTs" / "t2_0000.nii.gz").write_text("new")
        (lab.raw / "labelsTs" / "t2.nii.gz").write_text("new")

    one = ["nnUNetv2_predict", "nnunet_collab evaluate"]
    assert touched(lab, add) == [*one, *one, "nnunet_collab report"]
    assert "t2" in (lab.folder / "predictions" / "SupervisedTrainer_labels0_CNN.csv").read_text()


def test_labels_that_changed_are_evaluated_again(lab):
    calls = touched(lab, lambda: (lab.raw / "labelsTs" / "t0.nii.gz").write_text("corrected"))
    assert calls == ["nnunet_collab evaluate"] * 2 + ["nnunet_collab report"]


def test_a_new_arm_is_added_to_what_is_there(lab):
    calls = touched(lab, lambda: lab.study(SMALL + FIXMATCH.replace('"fixmatch"', '"strong"').replace("0.8", "0.9")))
    assert calls == ["nnUNetv2_train", "nnUNetv2_predict", "nnunet_collab evaluate", "nnunet_collab report"]
    assert "strong" in (lab.folder / "report" / "report.html").read_text()


def test_the_status_is_read_from_the_disk(lab):
    assert "labels0    SupervisedTrainer  0/6    not begun" in lab.printed(conduct.print_status)
    lab.run()
    (lab.results / "FixMatchTrainer_fixmatch0__nnUNetPlans__2d" / "fold_0" / "checkpoint_final.pth").unlink()
    (lab.results / "FixMatchTrainer_fixmatch0__nnUNetPlans__2d" / "fold_0" / "curves.json").write_text(
        '{"epochs": [0, 1]}'
    )
    (lab.folder / "predictions" / "SupervisedTrainer_labels0_CNN.csv").unlink()
    printed = lab.printed(conduct.print_status)
    assert "labels0    SupervisedTrainer  6/6    trained" in printed
    assert "fixmatch0  FixMatchTrainer    4/6    training" in printed
