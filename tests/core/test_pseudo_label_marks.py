"""Which labels are pseudo labels: by the names beside labels, by checksums elsewhere."""

from __future__ import annotations

import hashlib
import json

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.pseudo_labels import (
    file_digest,
    pseudo_labeled,
    pseudo_labels_in,
    refuse_pseudo_labels,
    source_of,
)

ENDING = ".nii.gz"


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def marked(**cases):
    return {"pseudo_labels": {"of": "Dataset001_True", "cases": cases}}


@pytest.fixture
def labels(tmp_path):
    """A folder of labels of three cases in a dataset of which `u` has a pseudo label."""
    folder = tmp_path / "Dataset002_Pseudo" / "labelsTr"
    folder.mkdir(parents=True)
    for case in "abu":
        (folder / f"{case}{ENDING}").write_text(f"label {case}")
    (folder.parent / "dataset.json").write_text(json.dumps(marked(u=digest("label u"))))
    return folder


def test_an_ordinary_dataset_has_none():
    assert pseudo_labeled({"labels": {}}) == {}
    assert source_of({}) is None


def test_the_dataset_json_above_labels_names_them(labels):
    assert pseudo_labels_in(labels, ENDING, "abu") == {"u"}
    assert pseudo_labels_in(labels, ENDING, "ab") == set()


def test_a_changed_pseudo_label_is_still_one(labels):
    (labels / f"u{ENDING}").write_text("edited")
    assert pseudo_labels_in(labels, ENDING, "u") == {"u"}


def test_a_link_to_the_folder_does_not_hide_them(labels, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(labels)
    assert pseudo_labels_in(tmp_path / "elsewhere" / "link", ENDING, "abu") == {"u"}


def test_a_copy_is_recognized_by_the_dataset_json_of_predictions(labels, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in labels.iterdir():
        (copy / path.name).write_text(path.read_text())
    assert pseudo_labels_in(copy, ENDING, "abu") == set()
    assert pseudo_labels_in(copy, ENDING, "abu", [labels.parent / "dataset.json"]) == {"u"}
    # The true label of the same case is none.
    (copy / f"u{ENDING}").write_text("true label of u")
    assert pseudo_labels_in(copy, ENDING, "abu", [labels.parent / "dataset.json"]) == set()


@pytest.mark.parametrize("mark", [True, [], {}, {"cases": ["u"]}, {"cases": {"u": 1}}])
def test_a_damaged_mark_is_refused(mark):
    with pytest.raises(CollabError, match=r"^here: pseudo_labels must name the cases"):
        pseudo_labeled({"pseudo_labels": mark}, "here")


def test_a_refusal_names_the_dataset_of_true_labels():
    with pytest.raises(CollabError, match=r"a split needs true labels; 1 .* \(u\)\. Use .*, Dataset001_True\."):
        refuse_pseudo_labels(marked(u=digest("x")), "-d 2", "a split")
    refuse_pseudo_labels({}, "-d 2", "a split")


def test_the_checksum_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * (3 << 20))
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"x" * (3 << 20)).hexdigest()
