"""A patient has one role, and a continued training the cases it began with."""

from __future__ import annotations

import json

import pytest
from teaching import make_method

from nnunet_collab.core.errors import CollabError
from nnunet_collab.methods.supervised import SupervisedTrainer
from nnunet_collab.training.case_roles import CaseRoles, check_patients, deal_by_patient

PATTERN = {"patient_pattern": r"(p\d)_.*"}


@pytest.mark.parametrize(
    ("roles", "what"),
    [
        ({"train": ["p1_a"], "val": ["p1_a"], "unlabeled": []}, "case p1_a is in train and in val"),
        ({"train": ["p1_a"], "val": ["p2_a"], "unlabeled": ["p1_a"]}, "case p1_a is in train and in unlabeled"),
        ({"train": ["p1_a"], "val": ["p1_b"], "unlabeled": []}, "patient p1 is in train and in val"),
        ({"train": ["p1_a"], "val": ["p2_a"], "unlabeled": ["p2_b"]}, "patient p2 is in val and in unlabeled"),
        ({"train": ["p1_a"], "val": ["p2_a"], "unlabeled": ["p1_b"]}, "patient p1 is in train and in unlabeled"),
    ],
)
def test_two_roles_are_refused(roles, what):
    with pytest.raises(CollabError, match=f"^here: a (case|patient) must have one role; {what}. Write the split"):
        check_patients("here", roles, PATTERN)


def test_without_a_pattern_every_case_is_a_patient():
    check_patients("here", {"train": ["p1_a"], "val": ["p1_b"]}, {})
    with pytest.raises(CollabError, match="case p1_a"):
        check_patients("here", {"train": ["p1_a"], "val": ["p1_a"]}, {})


def test_the_same_cases_in_any_order_pass_again_and_others_do_not():
    roles = CaseRoles()
    roles.require_same_cases("train", ["b", "a"])
    roles.require_same_cases("train", ["a", "b"])
    with pytest.raises(CollabError) as caught:
        roles.require_same_cases("train", ["a", "c"])
    assert str(caught.value).startswith(
        "cases of role 'train': a training must continue and be validated with the cases it started with; "
        "missing now: b; new: c. Restore splits_final.json"
    )
    roles.require_same_cases("val", ["z"])
    assert roles.cases == {"train": ["a", "b"], "val": ["z"]}


def write_split(folder, **roles):
    (folder / "splits_final.json").write_text(json.dumps([roles]))


def test_a_run_is_neither_continued_nor_validated_with_another_split(tmp_path, monkeypatch):
    def make():
        trainer = make_method(SupervisedTrainer, tmp_path, monkeypatch)
        trainer.preprocessed_dataset_folder_base = str(tmp_path)
        folder = tmp_path / "preprocessed"
        trainer.preprocessed_dataset_folder = str(folder)
        folder.mkdir(exist_ok=True)
        for case in "abc":
            for end in (".pkl", ".b2nd", "_seg.b2nd"):
                (folder / f"{case}{end}").touch()
        return trainer

    write_split(tmp_path, train=["a", "b"], val=["c"])
    first = make()
    first.do_split()
    path = tmp_path / "checkpoint.pth"
    first.save_checkpoint(str(path))

    same = make()
    same.load_checkpoint(str(path))
    assert same.do_split() == (["a", "b"], ["c"])
    write_split(tmp_path, train=["a", "c"], val=["b"])  # b was learned from, c is new
    other = make()
    other.load_checkpoint(str(path))
    with pytest.raises(CollabError, match=r"role 'train': .*missing now: b; new: c"):
        other.do_split()


@pytest.mark.parametrize("pattern", [None, r"(p\d)_."])
def test_without_a_split_folds_are_dealt_by_patient_if_the_dataset_tells_them_apart(tmp_path, pattern):
    folder, splits = tmp_path / "cases", tmp_path / "splits_final.json"
    folder.mkdir()
    for patient in range(5):
        for case in "ab":
            (folder / f"p{patient}_{case}.pkl").touch()
    dataset_json = {"patient_pattern": pattern} if pattern else {}
    assert deal_by_patient(splits, folder, dataset_json) == splits.is_file() == bool(pattern)
    if pattern:
        folds = json.loads(splits.read_text())
        assert sorted(case for fold in folds for case in fold["val"]) == sorted(p.stem for p in folder.iterdir())
        for fold in folds:
            assert {case[:2] for case in fold["train"]}.isdisjoint(case[:2] for case in fold["val"])
        splits.write_text("[]")
        assert not deal_by_patient(splits, folder, dataset_json)  # never in place of one that is there
        assert splits.read_text() == "[]"


def test_a_training_deals_by_patient_itself(tmp_path, monkeypatch):
    trainer = make_method(SupervisedTrainer, tmp_path, monkeypatch)
    trainer.dataset_json |= PATTERN
    trainer.preprocessed_dataset_folder_base = str(tmp_path)
    trainer.preprocessed_dataset_folder = str(tmp_path / "cases")
    (tmp_path / "cases").mkdir()
    for case in ("p1_a", "p1_b", "p2_a", "p2_b", "p3_a", "p3_b"):
        for ending in (".pkl", ".b2nd", "_seg.b2nd"):
            (tmp_path / "cases" / f"{case}{ending}").touch()
    train, val = trainer.do_split()
    assert len(train) == 4
    assert {case[:2] for case in train}.isdisjoint(case[:2] for case in val)
