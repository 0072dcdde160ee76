"""A patient has one role, and a continued training the cases it began with."""

from __future__ import annotations

import json

import pytest
from teaching import make_method

from nnunet_collab.core.errors import CollabError
from nnunet_collab.methods.supervised import SupervisedTrainer
from nnunet_collab.training.case_roles import CaseRoles, check_patients

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
    roles.note("train", ["b", "a"])
    roles.note("train", ["a", "b"])
    with pytest.raises(CollabError) as caught:
        roles.note("train", ["a", "c"])
    assert str(caught.value).startswith(
        "cases of role 'train': a training is continued and validated with the cases it began with; "
        "not there now: b; new: c. Restore splits_final.json"
    )
    roles.note("val", ["z"])
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
    with pytest.raises(CollabError, match=r"role 'train': .*not there now: b; new: c"):
        other.do_split()
