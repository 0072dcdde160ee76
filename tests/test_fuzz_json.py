"""Whatever a user does to a JSON file ends in success or in our error, never in another exception."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unlabeled_images import DATASET_JSON, make_plans

from nnunet_collab.commands.preprocess_unlabeled import _key
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import read_dataset_json, read_plans, read_split
from nnunet_collab.core.presets import read
from nnunet_collab.core.settings import VARIABLE, change, to_json
from nnunet_collab.methods.crossmatch import CrossMatchTrainer
from nnunet_collab.methods.ctrcl import CTRCLTrainer

SPLIT = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a"], "unlabeled": ["b"]}]
OLD = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "x"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "test": [],
}
NEW = {
    **DATASET_JSON,
    "numTraining": 1,
    "patient_pattern": r"(p\d)_.*",
    "dataset": {"p1_a": {"images": ["x.nii.gz"], "label": "y.nii.gz"}},
}
SETTINGS = {"epochs": 3, "batch_size": 2, "students": {"CNN": {"lr": 0.1}}, "deep_supervision": True, "seed": 1}
TRAINERS = [CTRCLTrainer, CrossMatchTrainer]

ODD = [
    None,
    True,
    False,
    0,
    -1,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "..",
    "../x",
    "a\0",
    "\ud800",
    "x",
    [],
    {},
]
TEXT = st.text(st.sampled_from("a0./\\ é\n\x00_-"), max_size=4)
JSON = st.recursive(
    st.sampled_from(ODD) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def places(value, at=()):
    """The path of every value inside of a JSON value, itself included."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


@st.composite
def mutated(draw, document):
    """A document in which one to three values were replaced, removed, doubled or renamed."""
    root = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(1, 3))):
        *above, key = draw(st.sampled_from([at for at in places(root) if at]))
        parent = root
        for step in above:
            parent = parent[step]
        action = draw(st.sampled_from(["replace", "remove", "double", "rename"])) if above else "replace"
        if action == "replace":
            parent[key] = draw(JSON)
        elif action == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            name = draw(TEXT | st.sampled_from(["../x", "0", "train", "preset"]))
            parent[name] = copy.deepcopy(parent[key])
            if action == "rename" and name != key:
                del parent[key]
    return root[0]


@st.composite
def damaged(draw, document):
    """The bytes of a document after an accident: cut off, a byte changed, something put in."""
    raw = json.dumps(document, indent=draw(st.sampled_from([None, 1]))).encode()
    at = draw(st.integers(0, len(raw)))
    put = draw(
        st.binary(max_size=3) | st.sampled_from([b",", b"{", b"]", b'"', b"\xef\xbb\xbf", b"NaN", b"1e999", b"\\u"])
    )
    return draw(st.sampled_from([raw[:at], raw[:at] + put + raw[at:], raw[:at] + put + raw[at + 1 :], put + raw, put]))


def documents(*originals):
    whole = st.one_of(*map(mutated, originals)).map(lambda value: json.dumps(value).encode())
    return st.one_of(whole, *map(damaged, originals))


def plan(path):
    """As `preprocess_unlabeled` uses plans."""
    plans = read_plans(path, "")
    args = type("Arguments", (), {"plans": "nnUNetPlans"})
    for name in plans["configurations"]:
        assert isinstance(_key(args, plans, name, DATASET_JSON), tuple | str)


def survives(read_file, path, raw):
    path.write_bytes(raw)
    try:
        read_file(path)
    except CollabError as error:
        str(error).encode("utf-8", errors="strict")  # it can be printed


def survives_as_settings(trainer, text):
    with contextlib.suppress(CollabError):
        change(trainer.settings, read(text), VARIABLE)


FILES = {
    "split": (read_split, [SPLIT]),
    "dataset_json": (read_dataset_json, [NEW, OLD]),
    "plans": (plan, [make_plans()]),
}
QUIET = [*HealthCheck]
FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
MANY = settings(max_examples=1500, deadline=5000, database=None, suppress_health_check=QUIET)  # deadline in ms


@pytest.mark.parametrize("kind", FILES)
@FEW
@given(data=st.data())
def test_no_mutation_of_a_file_ends_in_another_exception(kind, tmp_path, data):
    read_file, originals = FILES[kind]
    survives(read_file, tmp_path / "file.json", data.draw(documents(*originals)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
@MANY
@given(data=st.data())
def test_no_mutation_of_a_file_ends_in_another_exception_in_many_examples(kind, tmp_path, data):
    read_file, originals = FILES[kind]
    survives(read_file, tmp_path / "file.json", data.draw(documents(*originals)))


@pytest.mark.parametrize("trainer", TRAINERS)
@FEW
@given(data=st.data())
def test_no_mutation_of_settings_ends_in_another_exception(trainer, data):
    survives_as_settings(trainer, json.dumps(data.draw(mutated(SETTINGS))))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
@MANY
@given(data=st.data())
def test_no_mutation_of_settings_ends_in_another_exception_in_many_examples(trainer, data):
    own = to_json(trainer.settings)
    text = data.draw(st.one_of(*(mutated(value).map(json.dumps) for value in (SETTINGS, own))))
    survives_as_settings(trainer, text)


@pytest.mark.parametrize("kind", FILES)
def test_the_originals_are_read(kind, tmp_path):
    read_file, originals = FILES[kind]
    for original in originals:
        (tmp_path / "file.json").write_text(json.dumps(original))
        read_file(tmp_path / "file.json")


def test_the_mutations_reach_what_is_refused_and_what_is_not(tmp_path):
    """A fuzz test that only ever writes nonsense, or only ever the original, would see nothing."""
    ends = set()

    @FEW
    @given(raw=documents(SPLIT))
    def sample(raw):
        (tmp_path / "file.json").write_bytes(raw)
        try:
            read_split(tmp_path / "file.json")
            ends.add("read")
        except CollabError as error:
            ends.add("no JSON" if "must be JSON" in str(error) else "refused")

    sample()
    assert ends == {"read", "no JSON", "refused"}
