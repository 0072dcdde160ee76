"""An arm of a study that is a self-training: compared like any other, by the model with which its rounds end."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from self_training import SOURCE, add_images
from studying import HEAD, LABELS, TEST, Lab

from nnunet_collab.core.errors import CollabError
from nnunet_collab.study import conduct

ROUNDS = """
[[arms]]
name = "rounds"
trainer = "SupervisedTrainer"
differs = ["steps"]
self_train = {to = 30, rounds = 2, share = 0.5}
"""
FIRST = "Dataset030_Toy_rounds0_round1"
MODEL = "SupervisedTrainer_rounds0_CNN"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    add_images(lab)
    lab.study(HEAD + TEST + LABELS + ROUNDS)
    return lab


def dice(lab, *of_rounds):
    names = [SOURCE, *(f"Dataset{30 + n:03d}_Toy_rounds0_round{n + 1}" for n in range(len(of_rounds) - 1))]
    found = {f"{name} nnUNetPlans": value for name, value in zip(names, of_rounds, strict=True)}
    lab.monkeypatch.setenv("FAKE_DICE", json.dumps(found))


def predicted_with(lab):
    """Dataset of the model that predicted the test cases, of the arm with rounds."""
    found = []
    for name, words, _ in lab.calls():
        value = {flag: words[words.index(flag) + 1] for flag in ("-d", "-tr", "-i") if flag in words}
        if name == "nnUNetv2_predict" and value["-tr"] == MODEL and value["-i"].endswith("imagesTs"):
            found.append(value["-d"])
    return found


def test_the_arm_is_compared_by_the_best_round(lab):
    dice(lab, 0.5, 0.6, 0.55)
    status, printed = lab.run()
    assert status == 0, printed
    assert predicted_with(lab) == [FIRST]
    assert MODEL in (lab.folder / "report" / "report.html").read_text()
    # Three trainings of 6 steps, with the settings of the arm.
    assert "rounds0  SupervisedTrainer  18/18  done" in printed
    trained = [words[0] for name, words, _ in lab.calls() if name == "nnUNetv2_train"]
    assert trained == [SOURCE, SOURCE, FIRST, "Dataset031_Toy_rounds0_round2"]
    lab.forget()
    assert (lab.run()[0], lab.calls()) == (0, [])


def test_without_test_cases_the_validation_of_the_best_round_is_reported(lab):
    dice(lab, 0.5, 0.6, 0.55)
    lab.study(HEAD + LABELS + ROUNDS)
    assert lab.run()[0] == 0
    words = next(words for name, words, _ in lab.calls() if words[0] == "report")
    assert str(lab.results.parent / FIRST / f"{MODEL}__nnUNetPlans__2d") in words


def test_postprocessing_is_chosen_on_the_labels_of_that_dataset(lab):
    dice(lab, 0.5, 0.6, 0.55)
    lab.study("postprocessing = true\n" + HEAD + TEST + LABELS + ROUNDS)
    for name in (FIRST, "Dataset031_Toy_rounds0_round2"):
        (lab.root / "preprocessed" / name / "gt_segmentations").mkdir(parents=True)
    status, printed = lab.run()
    assert status == 0, printed
    chosen = [words for name, words, _ in lab.calls() if name == "nnUNetv2_determine_postprocessing"]
    assert [words[words.index("-ref") + 1].split("/")[-2] for words in chosen] == [SOURCE, FIRST]


def test_a_dry_run_lists_all_rounds(lab):
    printed = lab.printed(conduct.print_commands)
    assert "# A round starts only if the one before raised the validation Dice." in printed
    assert printed.count("nnunet_collab pseudo_label") == 2
    assert not lab.folder.exists()
    dice(lab, 0.5, 0.6, 0.7)
    lab.run()
    lines = [shlex.split(line) for line in printed.splitlines() if line and not line.startswith("#")]
    typed = [words[1] if "=" in words[0] else words[0] for words in lines]
    typed = [word for word in typed if word not in ("rm", "mkdir", "mv", "touch")]
    assert typed == [name for name, _, _ in lab.calls()]


def test_every_seed_has_datasets_of_its_own(lab):
    lab.study((HEAD + TEST + LABELS + ROUNDS).replace("seeds = [0]", "seeds = [0, 5]"))
    names = [f"Dataset{number:03d}" for number in (30, 31, 32, 33)]
    dry = lab.printed(conduct.print_commands)
    assert [name for name in names if f"--to {int(name[7:])} " in dry] == names
    assert "Toy_rounds5_round2" in dry


def test_predictions_of_another_round_are_not_kept(lab):
    dice(lab, 0.5, 0.6, 0.7)
    lab.run()
    assert predicted_with(lab) == ["Dataset031_Toy_rounds0_round2"]
    lab.forget()
    text = (HEAD + TEST + LABELS + ROUNDS).replace("share = 0.5", "share = 0.5, min_gain = 0.5")
    lab.study(text)
    lab.run()
    assert predicted_with(lab) == [SOURCE]


# ---------------------------------------------------------------- refused


def refusal(lab, text):
    lab.study(text)
    with pytest.raises(CollabError) as caught:
        lab.run()
    assert lab.calls() == []
    return str(caught.value)


def test_more_steps_are_named(lab):
    found = refusal(lab, HEAD + TEST + LABELS + ROUNDS.replace('differs = ["steps"]', ""))
    assert "arm 'rounds': must have the baseline's steps, 6, or name it in differs; got 18" in found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("to = 30, ", "", "self_train.to: required, but missing"),
        ("share", "shares", "self_train.shares: unknown key. Valid keys: to, rounds, share, threshold, members"),
        ("share = 0.5", "share = 2.0", "share"),
        ("share = 0.5", "share = 0.5, threshold = 0.9", "arm 'rounds', self_train: nothing was started"),
    ],
)
def test_wrong_options(lab, old, new, message):
    assert message in refusal(lab, HEAD + TEST + LABELS + ROUNDS.replace(old, new))


def test_two_arms_with_the_same_datasets(lab):
    other = ROUNDS.replace('"rounds"', '"other"').replace("to = 30", "to = 31")
    assert "'other' and 'rounds' would both write 31" in refusal(lab, HEAD + TEST + LABELS + ROUNDS + other)


def test_no_unlabeled_images(lab):
    shutil.rmtree(lab.raw / "imagesUn")
    found = refusal(lab, HEAD + TEST + LABELS + ROUNDS)
    assert "arm 'rounds', self_train: nothing was started, because of:\n- " in found
    assert "there are none" in found


def test_a_trainer_that_learns_from_unlabeled_images(lab):
    found = refusal(lab, HEAD + TEST + LABELS + ROUNDS.replace("SupervisedTrainer", "FixMatchTrainer"))
    assert "the trainer must learn from labels alone" in found
    assert "FixMatchTrainer learns from unlabeled images. Use SupervisedTrainer" in found


def test_two_students_need_a_mean(lab):
    pair = ROUNDS.replace("SupervisedTrainer", "CTRCLTrainer")
    assert "Let their mean do it: set ensemble of the arm" in refusal(lab, HEAD + TEST + LABELS + pair)
    dice(lab, 0.5, 0.6, 0.7)
    lab.study(HEAD + TEST + LABELS + pair + "ensemble = true\n")
    assert lab.run()[0] == 0
