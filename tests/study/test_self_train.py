"""Self-training with fake commands: the order of the rounds, where they end, and what the result is."""

from __future__ import annotations

import json
import zipfile
from types import SimpleNamespace

import pytest
from self_training import SOURCE, RoundsLab

from nnunet_collab.core.errors import CollabError
from nnunet_collab.study import step
from nnunet_collab.study.self_train import summary
from nnunet_collab.study.self_training import SelfTraining

FIRST, SECOND = "Dataset030_Toy_test_round1", "Dataset031_Toy_test_round2"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return RoundsLab(tmp_path, monkeypatch)


def brief(lab):
    """Each command in a few words."""
    lines = []
    for name, words, _ in lab.calls():
        after = {flag: words[words.index(flag) + 1] for flag in ("-d", "-f", "--to", "-tp") if flag in words}
        match name:
            case "nnUNetv2_train":
                plans = words[words.index("-p") + 1]
                start = " from weights" if "-pretrained_weights" in words else ""
                lines.append(f"train {words[0]} {plans} fold {words[2]}{start}")
            case "nnUNetv2_predict":
                folds = " ".join(words[words.index("-f") + 1 : words.index("-i")])
                checkpoint = f" {words[words.index('-chk') + 1]}" if "-chk" in words else ""
                lines.append(f"predict with {after['-d']} folds {folds}{checkpoint}")
            case "nnunet_collab":
                lines.append(f"{words[0]} to {after['--to']}")
            case "nnUNetv2_preprocess":
                lines.append(f"preprocess {after['-d']} {words[words.index('-plans_name') + 1]}")
            case _:
                lines.append(f"plans {after['-tp']}")
    return lines


def test_one_round_trains_predicts_labels_and_trains_again(lab):
    lab.dice(0.5, 0.6)
    status, printed = lab.run()
    assert status == 0, printed
    assert brief(lab) == [
        f"train {SOURCE} nnUNetPlans fold 0",
        f"train {SOURCE} nnUNetPlans fold 1",
        f"predict with {SOURCE} folds 0",
        f"predict with {SOURCE} folds 1",
        f"predict with {SOURCE} folds 0 1",
        "pseudo_label to 30",
        "preprocess 30 nnUNetPlans",
        f"train {FIRST} nnUNetPlans fold 0",
        f"train {FIRST} nnUNetPlans fold 1",
    ]
    folder = lab.results.parent / FIRST / "nnUNetTrainer__nnUNetPlans__2d"
    assert f"result   {folder} (round 1)" in printed
    assert "nnUNetv2_predict -i INPUT -o OUTPUT -d 30 -c 2d -p nnUNetPlans -tr nnUNetTrainer -f 0 1" in printed
    predicted = [words for name, words, _ in lab.calls() if name == "nnUNetv2_predict"]
    assert all(words[words.index("-i") + 1] == str(lab.raw / "imagesUn") for words in predicted)


def test_what_is_finished_is_skipped(lab):
    lab.run()
    before = lab.outcome()
    lab.forget()
    status, _ = lab.run()
    assert (status, lab.calls()) == (0, [])
    assert lab.outcome() == before


def test_predictions_may_be_removed_when_their_dataset_is_written(lab):
    lab.run()
    lab.forget()
    for path in (lab.folder / "self_training").rglob("*.nii.gz"):
        path.unlink()
    assert (lab.run()[0], lab.calls()) == (0, [])


@pytest.mark.parametrize(
    ("dice", "rounds", "trained", "result"),
    [
        ((0.5, 0.6, 0.7, 0.8), 3, 3, 3),
        ((0.5, 0.6, 0.55, 0.9), 3, 2, 1),  # the third is not started
        ((0.5, 0.4), 1, 1, 0),
        ((0.5, 0.5, 0.6), 2, 1, 0),  # equal is no gain
    ],
)
def test_rounds_end_when_the_validation_no_longer_gains(lab, dice, rounds, trained, result):
    lab.dice(*dice)
    lab.ask(folds=(0,), rounds=rounds)
    assert lab.run()[0] == 0
    assert sum(line.startswith("pseudo_label") for line in brief(lab)) == trained
    assert lab.check().result().number == result
    lines = summary(lab.check()).splitlines()
    assert [line.split()[0] for line in lines if line.endswith(" result")] == [str(result)]


def test_a_gain_below_the_least_gain_is_none(lab):
    lab.dice(0.5, 0.505, 0.7)
    lab.ask(folds=(0,), rounds=2, min_gain=0.01)
    lab.run()
    assert lab.check().result().number == 0
    assert "round 0: no round of pseudo labels raised the validation Dice" in summary(lab.check())


def test_each_round_learns_from_the_one_before_and_more_rounds_can_be_added(lab):
    lab.dice(0.5, 0.6, 0.7)
    lab.ask(folds=(0,))
    lab.run()
    lab.forget()
    lab.ask(rounds=2)
    lab.run()
    assert brief(lab) == [
        f"predict with {FIRST} folds 0 checkpoint_best.pth",
        f"predict with {FIRST} folds 0",
        "pseudo_label to 31",
        "preprocess 31 nnUNetPlans",
        f"train {SECOND} nnUNetPlans fold 0",
    ]


def test_a_share_per_round(lab):
    lab.dice(0.5, 0.6, 0.7, 0.8)
    lab.ask(folds=(0,), rounds=3, share=[0.5, 1.0])
    lab.run()
    words = [words for name, words, _ in lab.calls() if name == "nnunet_collab"]
    assert [one[one.index("--share") + 1] for one in words] == ["0.5", "1.0", "1.0"]


@pytest.mark.parametrize(("finish", "finished"), [(0.7, True), (0.6, True), (0.59, False)])
def test_the_best_round_is_trained_further_on_true_labels_alone(lab, finish, finished):
    lab.dice(0.5, 0.6, 0.55, finish=finish)
    lab.ask(folds=(0,), rounds=2, finish=True)
    _, printed = lab.run()
    plans = "nnUNetPlans_test_finish"
    assert brief(lab)[-3:] == [
        f"plans {plans}",
        f"preprocess 1 {plans}",
        f"train {SOURCE} {plans} fold 0 from weights",
    ]
    start = lab.calls()[-1][1][lab.calls()[-1][1].index("-pretrained_weights") + 1]
    assert start == str(lab.results.parent / FIRST / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0/checkpoint_final.pth")
    assert lab.check().result().finished == finished
    assert ("-d 1 -c 2d -p nnUNetPlans_test_finish" in printed) == finished


def test_nothing_is_finished_without_a_gain(lab):
    lab.dice(0.5, 0.4)
    lab.ask(folds=(0,), finish=True)
    lab.run()
    assert not any("finish" in line for line in brief(lab))


def test_one_labeled_case_means_fold_all_and_consecutive_checkpoints(lab):
    for case in ("b", "c"):
        (lab.raw / "imagesTr" / f"{case}_0000.nii.gz").unlink()
    with pytest.raises(CollabError, match=r"consecutive checkpoints of this one training agree; got folds 0, 1\."):
        lab.check()
    lab.ask(folds=("all",), rounds=2)
    status, printed = lab.run()
    assert status == 0
    assert "mean Dice of checkpoint_best.pth with checkpoint_final.pth of the same training" in printed
    assert "nothing tells when to stop" in printed
    assert f"predict with {SOURCE} folds all checkpoint_best.pth" in brief(lab)
    assert lab.check().result().number == 2


def commands_of(printed):
    lines = [line for line in printed.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if line.split()[0] not in ("rm", "mkdir", "mv", "touch")]


def test_a_dry_run_prints_what_runs_if_every_round_gains(lab):
    lab.dice(0.5, 0.6, 0.7, finish=0.8)
    lab.ask(folds=(0,), rounds=2, finish=True)
    printed = lab.dry()
    assert not lab.folder.exists()
    lab.run()
    assert commands_of(printed) == [" ".join([name, *words]) for name, words, _ in lab.calls()]
    assert commands_of(lab.dry()) == []


def test_a_class_that_no_pseudo_label_has_is_named_at_the_end(lab, monkeypatch):
    monkeypatch.setenv("FAKE_ABSENT", "core rim")
    lab.ask(folds=(0,))
    _, printed = lab.run()
    assert "Warning: no pseudo label of round 1 has core, rim;" in printed
    assert "identical" not in printed


def test_an_agreement_that_says_nothing_is_told_at_the_end(lab, monkeypatch):
    monkeypatch.setenv("FAKE_IDENTICAL", "1")
    lab.ask(folds=(0,))
    _, printed = lab.run()
    assert "Warning: the predictions that were compared in round 1 are identical" in printed


def test_the_status_says_what_is_missing(lab):
    assert "Not finished: start the same command again" in summary(lab.check())


# ---------------------------------------------------------------- interrupted


def options_of_everything(lab):
    lab.dice(0.5, 0.6, finish=0.7)
    lab.ask(folds=(0,), finish=True)


def ends_as_undisturbed(lab, monkeypatch, at, expected):
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_DIES_AT", str(at))
        status, printed = lab.run()
    assert status == 1, at
    assert "failed with status -9" in printed
    assert lab.run()[0] == 0, at
    assert lab.outcome() == expected, at
    lab.forget_all()


def stages(lab):
    """The outcome without an interruption, and for every command a moment at which it can die."""
    assert lab.run()[0] == 0
    expected = lab.outcome()
    begins = [variables["points"] for _, _, variables in lab.calls()]
    ends = [*begins[1:], (lab.root / "points").stat().st_size]
    lab.forget_all()
    return expected, [(b + 1 + e) // 2 for b, e in zip(begins, ends, strict=True)]


def test_interrupted_while_pseudo_labels_are_written(lab, monkeypatch):
    options_of_everything(lab)
    expected, moments = stages(lab)
    assert len(moments) == 9
    assert any("Dataset030" in name for name in expected)
    ends_as_undisturbed(lab, monkeypatch, moments[3], expected)


@pytest.mark.parametrize("name", ["checkpoint_latest.pth", "checkpoint_final.pth"])
@pytest.mark.parametrize("left", [0, 60])
def test_a_checkpoint_that_is_cut_off_is_not_continued_from(lab, name, left):
    fold = lab.results / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    fold.mkdir(parents=True)
    with zipfile.ZipFile(fold / name, "w") as archive:
        archive.writestr("data.pkl", b"weights")
    whole = (fold / name).read_bytes()
    assert len(whole) > 100
    (fold / name).write_bytes(whole[:left])
    lab.ask(folds=(0,))
    assert f"rm -f {fold / name}" in lab.dry()
    status, printed = lab.run()
    assert status == 0, printed


def test_the_finish_starts_from_the_round_again_if_its_only_checkpoint_is_cut_off(lab):
    lab.dice(0.5, 0.6, finish=0.7)
    lab.ask(folds=(0,), finish=True)
    fold = lab.results / "nnUNetTrainer__nnUNetPlans_test_finish__2d" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").write_bytes(b"PK\x03\x04 cut")
    assert lab.run()[0] == 0
    assert brief(lab)[-1].endswith("from weights")


def test_a_checkpoint_that_vanishes_is_none_that_is_cut_off(tmp_path):
    assert not step._is_cut(tmp_path / "checkpoint_latest.pth")


def test_whole_checkpoints_stay(lab):
    lab.ask(folds=(0,))
    lab.run()
    fold = lab.results / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    with zipfile.ZipFile(fold / "checkpoint_latest.pth", "w") as archive:
        archive.writestr("data.pkl", b"weights")
    (fold / "validation" / "summary.json").unlink()
    assert "rm -f " + str(fold) not in lab.dry()


@pytest.mark.slow
def test_interrupted_at_every_stage(lab, monkeypatch):
    options_of_everything(lab)
    expected, moments = stages(lab)
    for at in moments:
        ends_as_undisturbed(lab, monkeypatch, at, expected)


# ---------------------------------------------------------------- refused


def refusal(lab):
    with pytest.raises(CollabError) as caught:
        lab.run()
    assert lab.calls() == []
    assert not lab.results.parent.exists()
    return str(caught.value)


def test_without_unlabeled_images(lab):
    for path in (lab.raw / "imagesUn").iterdir():
        path.unlink()
    assert "imagesUn must hold unlabeled images, named CASE_0000.nii.gz; there are none" in refusal(lab)


@pytest.mark.parametrize("place", ["raw", "preprocessed", "results"])
def test_an_id_that_is_taken(lab, place):
    (lab.root / place / "Dataset031_Other").mkdir(parents=True)
    lab.ask(rounds=2)
    with pytest.raises(CollabError, match=r"id 31 of round 2 is taken by Dataset031_Other\. Set another `to`\."):
        lab.check()


def test_a_dataset_of_the_same_name_that_is_not_ours(lab):
    (lab.root / "raw" / FIRST).mkdir()
    assert f"id 30 of round 1 is taken by {FIRST}" in refusal(lab)


def test_a_disk_that_is_too_small(lab, monkeypatch):
    (lab.raw / "imagesUn" / "u_0000.nii.gz").write_bytes(b"x" * 4_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    # Two folds and their ensemble, 4 MB each.
    assert "predictions and preprocessed data need about 12.0 MB more; 10.0 MB are free" in refusal(lab)


def test_what_is_there_is_not_counted_again(lab, monkeypatch):
    (lab.raw / "imagesUn" / "u_0000.nii.gz").write_bytes(b"x" * 4_000_000)
    place = lab.folder / "self_training" / "test" / "round_1" / "ensemble"
    place.mkdir(parents=True)
    (place / "u.nii.gz").write_bytes(b"x" * 4_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    lab.check()


def test_preprocessed_data_are_estimated_from_labeled_cases(lab, monkeypatch):
    (lab.preprocessed / "data").mkdir()
    (lab.preprocessed / "data" / "a.b2nd").write_bytes(b"x" * 3_000_000)  # of three labeled cases
    plans = {"configurations": {"2d": {"data_identifier": "data"}}}
    (lab.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    lab.ask(rounds=2)
    assert "need about 10.0 MB more" in refusal(lab)  # 5 cases of 1 MB, twice


def test_every_problem_is_told_at_once(lab):
    (lab.raw / "imagesUn" / "a_0000.nii.gz").write_text("also labeled")
    lab.ask(folds=(0,), members="folds", share=0.5, threshold=0.9, checkpoints=["x.pth", "x.pth"])
    found = refusal(lab)
    for part in (
        "both are given. Remove one.",
        "members = folds needs at least 2 folds that can agree; there is 1",
        "checkpoints must be different; got x.pth, x.pth",
        "a case must be in imagesTr or in imagesUn; in both: a",
    ):
        assert part in found


def test_unlabeled_cases_of_the_split(lab):
    fold = {"train": ["a"], "val": ["b"], "unlabeled": ["c"]}
    (lab.preprocessed / "splits_final.json").write_text(json.dumps([fold, fold]))
    assert "this split has unlabeled cases. Move them with nnunet_collab split --labeled ... --to" in refusal(lab)


def test_an_unlabeled_image_whose_patient_is_not_known(lab):
    content = json.loads((lab.raw / "dataset.json").read_text())
    (lab.raw / "dataset.json").write_text(json.dumps({**content, "patient_pattern": "([abc]).*"}))
    assert "finds no patient in u, w" in refusal(lab)


def test_a_dataset_that_has_pseudo_labels_itself(lab):
    content = json.loads((lab.raw / "dataset.json").read_text())
    mark = {"of": "Dataset007_True", "cases": {"a": "0" * 64}}
    (lab.raw / "dataset.json").write_text(json.dumps({**content, "pseudo_labels": mark}))
    assert "Use the dataset from which it was made, Dataset007_True." in refusal(lab)


def test_two_students_without_a_mean(lab):
    lab.request = lab.request.__class__(**{**vars(lab.request), "trainer": "CTRCLTrainer"})
    assert "publishes CTRCLTrainer_CNN, CTRCLTrainer_Transformer. Let their mean do it" in refusal(lab)


def test_a_trainer_that_learns_from_unlabeled_images(lab):
    lab.request = lab.request.__class__(**{**vars(lab.request), "trainer": "FixMatchTrainer"})
    assert "-tr: the trainer must learn from labels alone" in refusal(lab)


def test_other_options_than_it_began_with(lab):
    lab.run()
    lab.ask(share=0.9)
    with pytest.raises(CollabError, match="continues with the options it began with; different: share"):
        lab.check()


def test_a_dataset_written_with_other_options_is_not_taken_for_this_one(lab):
    lab.run()
    (lab.folder / "self_train.json").unlink()
    lab.forget()
    lab.ask(threshold=0.9)
    status, printed = lab.run()
    assert status == 1
    assert "round 1: pseudo labels" in printed


def test_options_are_checked():
    with pytest.raises(ValueError, match="less than or equal to 1"):
        SelfTraining(to=1, share=1.5)
    with pytest.raises(ValueError, match="at least 2 items"):
        SelfTraining(to=1, checkpoints=["checkpoint_final.pth"])
