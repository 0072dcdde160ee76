"""Which split files are read, and what is said of each of the others."""

from __future__ import annotations

import json

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import read_split

GOOD = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a"], "unlabeled": ["b"]}]


def write(tmp_path, content):
    path = tmp_path / "splits_final.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize("split", [GOOD, [{**GOOD[0], "unlabeled": []}], [{"train": ["ß 1"], "val": ["a.b-c_d"]}]])
def test_a_split_is_read_as_it_is(tmp_path, split):
    assert read_split(write(tmp_path, split)) == split


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param([], "must be a list of at least one fold; it is []", id="split-without-folds"),
        pytest.param({}, "must be a list of at least one fold; it is {}", id="split-is-an-object"),
        pytest.param(None, "must be a list of at least one fold; it is null", id="split-is-null"),
        pytest.param(7, "must be a list of at least one fold; it is 7", id="split-is-a-number"),
        pytest.param({"0": GOOD[0]}, 'must be a list of at least one fold; it is {"0"', id="split-of-numbered-folds"),
        pytest.param([GOOD[0], None], 'fold 1: it must be an object with the lists "train"', id="fold-is-null"),
        pytest.param([["a"], ["b"]], 'fold 0: it must be an object with the lists "train"', id="fold-is-a-list"),
        pytest.param([{}], "there is no train and no val", id="fold-is-empty"),
        pytest.param([{"train": ["a"]}], "there is no val", id="fold-without-val"),
        pytest.param([{"val": ["a"]}], "there is no train", id="fold-without-train"),
        pytest.param(
            [GOOD[0], {"train": ["a"], "val": []}],
            "fold 1: val must name at least one case to validate on; it is empty",
            id="fold-with-empty-val",
        ),
        pytest.param(
            [{"train": [], "val": ["a"]}],
            "fold 0: train must name at least one case to train with; it is empty",
            id="fold-with-empty-train",
        ),
        pytest.param(
            [{**GOOD[0], "train": "abc"}], 'train must be a list of case names; it is "abc"', id="train-is-text"
        ),
        pytest.param(
            [{**GOOD[0], "val": {"a": 1}}], "val must be a list of case names; it is {", id="val-is-an-object"
        ),
        pytest.param(
            [{**GOOD[0], "unlabeled": None}], "unlabeled must be a list of case names", id="unlabeled-is-null"
        ),
        pytest.param(
            [{**GOOD[0], "val": [1]}], "val must hold case names; 1 is not one: it is not a text", id="case-number"
        ),
        pytest.param([{**GOOD[0], "val": [["a"]]}], 'val must hold case names; ["a"] is not one', id="case-is-a-list"),
        pytest.param([{**GOOD[0], "val": ["../x"]}], "it has a path separator", id="case-leads-outside"),
        pytest.param([{**GOOD[0], "unlabeled": ["/x"]}], "it has a path separator", id="case-is-absolute"),
        pytest.param(
            [{**GOOD[0], "train": ["a", "b", "a"]}],
            "train must name each case once; these occur more than once: a",
            id="case-twice",
        ),
        pytest.param([{**GOOD[0], "unlabelled": ["d"]}], "it has 'unlabelled'", id="unlabeled-misspelled"),
        pytest.param([{**GOOD[0], "Val": ["d"]}], "it has 'Val'", id="val-misspelled"),
        pytest.param(b"", "it must be JSON; it is empty", id="split-file-is-empty"),
        pytest.param(b" \n", "it must be JSON; it is empty", id="split-file-is-blank"),
        pytest.param(
            json.dumps(GOOD).encode()[:40], "a text is not closed, from line 1, column 40", id="split-truncated"
        ),
        pytest.param(b'[{"train": ["a"', "it ends too early", id="split-truncated-after-a-text"),
        pytest.param(b'[{"train": ["a",]}]', "a comma stands before a closing bracket", id="split-trailing-comma"),
        pytest.param(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "byte order mark (BOM)", id="split-with-bom"),
        pytest.param(b'[{"train": ["\xff"]}]', "byte 13 is not UTF-8", id="split-not-utf8"),
        pytest.param(b"[" * 100_000, "it is nested too deeply", id="split-nested"),
        pytest.param(
            b'[{"train": ["a"], "train": ["b"], "val": ["c"]}]', "the entry 'train' occurs twice", id="key-twice"
        ),
        pytest.param(b"{'train': ['a']}", "line 1, column 2", id="split-with-single-quotes"),
        pytest.param(b"[1" + b"1" * 5000 + b"]", "it must be JSON; it is not (", id="split-with-a-huge-number"),
    ],
)
def test_any_other_split_is_refused(tmp_path, content, found):
    path = write(tmp_path, content)
    with pytest.raises(CollabError) as caught:
        read_split(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert found in message
    assert "Correct the file" in message or "Save it as `UTF-8`" in message


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "splits_final.json"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(
        CollabError,
        match=r"splits_final\.json: (the file must exist|it must be a file that can be read).*Correct the file",
    ):
        read_split(path)
