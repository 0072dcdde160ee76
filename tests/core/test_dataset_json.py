"""Which dataset.json is read, what becomes of the form of version 1, and what is said of each of the others."""

from __future__ import annotations

import json

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import read_dataset_json

GOOD = {
    "channel_names": {"0": "T1", "1": "CT"},
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "file_ending": ".nii.gz",
    "numTraining": 2,
    "patient_pattern": r"(p\d)_.*",
    "dataset": {"p1_a": {"images": ["$HOME/x.nii.gz", "../y.nii.gz"], "label": "/z.nii.gz"}},
    "anything": [1, None],
}
OLD = {
    "modality": {"0": "T1", "1": "CT"},
    "labels": {"0": "Background", "1": "liver", "2": "tumor"},
    "numTraining": 1,
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "test": ["./imagesTs/b.nii.gz"],
}


def write(tmp_path, content):
    path = tmp_path / "dataset.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def without(content, *entries):
    return {key: value for key, value in content.items() if key not in entries}


def test_a_dataset_json_is_read_as_it_is(tmp_path):
    assert read_dataset_json(write(tmp_path, GOOD)) == GOOD


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, "regions_class_order": [1, 2]},
        {"file_ending": ".tif"},
        {"channel_names": {str(number): "R" for number in range(11)}},
    ],
)
def test_other_good_ones(tmp_path, changes):
    assert read_dataset_json(write(tmp_path, {**GOOD, **changes})) == {**GOOD, **changes}


def test_version_1_is_converted_where_it_is_unambiguous(tmp_path):
    path = write(tmp_path, OLD)
    before = path.read_bytes()
    assert read_dataset_json(path) == {
        "channel_names": {"0": "T1", "1": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    assert path.read_bytes() == before


def test_an_entry_that_a_command_does_not_need_may_be_missing(tmp_path):
    path = write(tmp_path, without(GOOD, "channel_names"))
    assert "labels" in read_dataset_json(path, needs=("labels", "file_ending"))


CONVERT = "nnUNetv2_convert_old_nnUNet_dataset"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param({}, "it must be a JSON object with entries; it is {}", id="dataset-json-empty-object"),
        pytest.param([], "it must be a JSON object with entries; it is []", id="dataset-json-is-a-list"),
        pytest.param(None, "it is null", id="dataset-json-is-null"),
        pytest.param(b"", "it must be JSON; it is empty", id="dataset-json-is-an-empty-file"),
        pytest.param(json.dumps(GOOD).encode()[:-1], "it ends too early", id="dataset-json-truncated"),
        pytest.param(b"\xef\xbb\xbf{}", "byte order mark", id="dataset-json-with-bom"),
        pytest.param("{}".encode("utf-16"), "is not UTF-8", id="dataset-json-utf-16"),
        pytest.param(b'{"labels": {"background": 0,},}', "a comma stands before a closing", id="dataset-json-comma"),
        pytest.param(b'{"labels": 1, "labels": 2}', "the entry 'labels' occurs twice", id="dataset-json-entry-twice"),
        pytest.param(without(GOOD, "file_ending"), 'Add "file_ending": ".nii.gz".', id="without-file-ending"),
        pytest.param(without(GOOD, "channel_names"), "it must say channel_names", id="without-channel-names"),
        pytest.param(without(GOOD, "labels"), "it must say labels", id="without-labels"),
        pytest.param({"name": "x"}, "it must say channel_names, labels, file_ending", id="without-all-three"),
        pytest.param(without(OLD, "training"), CONVERT, id="version-1-without-its-list"),
        pytest.param({**OLD, "training": []}, CONVERT, id="version-1-with-an-empty-list"),
        pytest.param({**OLD, "training": [{"image": "a.nrrd"}]}, CONVERT, id="version-1-with-other-images"),
        pytest.param({**OLD, "training": [7]}, CONVERT, id="version-1-with-an-odd-list"),
        pytest.param({**OLD, "labels": {"0": "a", "1": "x", "2": "x"}}, CONVERT, id="version-1-with-a-name-twice"),
        pytest.param({**OLD, "labels": {"1": "x"}}, '"background": 0', id="version-1-without-background"),
        pytest.param({**GOOD, "labels": {"0": "a", "x": 1}}, CONVERT, id="labels-half-version-1"),
        pytest.param({**GOOD, "labels": ["background"]}, "labels must be an object", id="labels-is-a-list"),
        pytest.param({**GOOD, "labels": {"x": 1}}, "its background is null", id="labels-without-background"),
        pytest.param({**GOOD, "labels": {"background": 1}}, "its background is 1", id="labels-background-not-0"),
        pytest.param(
            {**GOOD, "labels": {"background": False}}, "its background is false", id="labels-background-false"
        ),
        pytest.param({**GOOD, "labels": {"background": 0, "x": "1"}}, "'x' is \"1\"", id="labels-value-is-text"),
        pytest.param({**GOOD, "labels": {"background": 0, "x": 1.5}}, "'x' is 1.5", id="labels-value-is-a-fraction"),
        pytest.param({**GOOD, "labels": {"background": 0, "x": -3}}, "'x' is -3", id="labels-value-is-negative"),
        pytest.param({**GOOD, "labels": {"background": 0, "x": 2**70}}, "'x' is 118", id="labels-value-is-huge"),
        pytest.param({**GOOD, "labels": {"background": 0, "x": []}}, "'x' is []", id="labels-empty-region"),
        pytest.param({**GOOD, "labels": {"background": 0, "x": None}}, "'x' is null", id="labels-value-is-null"),
        pytest.param(
            {**GOOD, "labels": {"background": 0, "x": 1, "y": 1}}, "every class its own value", id="labels-value-twice"
        ),
        pytest.param({**GOOD, "channel_names": ["T1"]}, "channel_names must be an object", id="channels-is-a-list"),
        pytest.param({**GOOD, "channel_names": {}}, "channel_names must be an object", id="channels-empty"),
        pytest.param({**GOOD, "channel_names": {"1": "T1"}}, "its numbers are 1", id="channels-from-one"),
        pytest.param(
            {**GOOD, "channel_names": {"0": "T1", "2": "T2"}}, "its numbers are 0, 2", id="channels-with-a-gap"
        ),
        pytest.param({**GOOD, "channel_names": {"T1": "0"}}, "its numbers are T1", id="channels-turned-round"),
        pytest.param({**GOOD, "channel_names": {"0": 5}}, "5 is not a name", id="channels-name-is-a-number"),
        pytest.param({**GOOD, "file_ending": "nii.gz"}, 'it is "nii.gz"', id="ending-without-dot"),
        pytest.param({**GOOD, "file_ending": ""}, 'it is ""', id="ending-empty"),
        pytest.param(
            {**GOOD, "file_ending": ".nii.gz/../x"}, "file_ending must be the ending", id="ending-with-separator"
        ),
        pytest.param({**GOOD, "file_ending": [".nii.gz"]}, "file_ending must be the ending", id="ending-is-a-list"),
        pytest.param({**GOOD, "dataset": ["a"]}, 'it is ["a"]. Correct it, or remove it', id="cases-is-a-list"),
        pytest.param({**GOOD, "dataset": {}}, "with at least one case", id="cases-empty"),
        pytest.param({**GOOD, "dataset": {"a": "x.nii.gz"}}, 'a is "x.nii.gz"', id="cases-entry-is-text"),
        pytest.param({**GOOD, "dataset": {"a": {"images": [], "label": "x"}}}, "a is {", id="cases-without-images"),
        pytest.param({**GOOD, "dataset": {"a": {"images": ["x"]}}}, "a is {", id="cases-without-label"),
        pytest.param({**GOOD, "dataset": {"a": {"images": "x", "label": "x"}}}, "a is {", id="cases-images-is-text"),
        pytest.param({**GOOD, "numTraining": "2"}, 'it is "2"', id="number-of-cases-is-text"),
        pytest.param({**GOOD, "numTraining": -1}, "it is -1", id="number-of-cases-is-negative"),
        pytest.param({**GOOD, "patient_pattern": 5}, "it is 5", id="patient-pattern-is-a-number"),
    ],
)
def test_any_other_is_refused(tmp_path, content, found):
    path = write(tmp_path, content)
    with pytest.raises(CollabError) as caught:
        read_dataset_json(path)
    assert str(caught.value).startswith(str(path))
    assert found in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../../../x", "/x", "..", ".", ".x", "a/b", "a\\b", "C:x", "", " ", "a\n", "a\0b", "x" * 300, "a."],
)
def test_a_case_cannot_be_named_like_a_path(tmp_path, name):
    cases = {"dataset": {name: {"images": ["x.nii.gz"], "label": "y.nii.gz"}}}
    with pytest.raises(CollabError, match="cannot be a case name, because it becomes a path"):
        read_dataset_json(write(tmp_path, {**GOOD, **cases}))


def test_all_faults_are_told_at_once(tmp_path):
    with pytest.raises(CollabError) as caught:
        read_dataset_json(write(tmp_path, {"labels": {"x": 1}, "numTraining": None}))
    assert len(str(caught.value).splitlines()) == 3
