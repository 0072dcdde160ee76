"""Few labels: which patients keep theirs, that the others' are nowhere, and what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from converting import facts, names
from raw_source import INFO, RULES, pair, refusal

from nnunet_collab.conversion.labeled_protocol import Protocol, PublishedOrder, choose, parse_protocol
from nnunet_collab.conversion.raw_dataset import RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.source_check import Case
from nnunet_collab.core.errors import CollabError

PATIENTS = "abcdefgh"
CASES = [Case(f"{patient}_{i}", (Path("x"),), Path("y")) for patient in PATIENTS for i in (1, 2)]


def patient_of(name: str) -> str:
    return name[0]


def labeled(count: int, seed: int = 0, **more) -> set[str]:
    return {patient_of(case.name) for case in choose(CASES, patient_of, Protocol(count, seed), **more).labeled}


@pytest.fixture
def dataset(tmp_path) -> RawDataset:
    train = [pair(tmp_path / "source", f"{patient}_{i}") for patient in PATIENTS for i in (1, 2)]
    return RawDataset(INFO, RULES, train, [pair(tmp_path / "source", "z_1")])


@pytest.mark.parametrize(
    ("word", "protocol", "written"),
    [("7", Protocol(7), "7"), ("50%", Protocol(Fraction(1, 2)), "50%"), ("12.5 %", Protocol(Fraction(1, 8)), "12.5%")],
)
def test_parse(word, protocol, written):
    assert parse_protocol(word) == protocol
    assert str(protocol) == written


@pytest.mark.parametrize("word", ["seven", "patient001", "", "3.5"])
def test_what_is_no_protocol(word):
    with pytest.raises(CollabError, match=r"PROTOCOL must be a number of patients or a percentage of them; got"):
        parse_protocol(word)


def test_patients_are_whole_nested_and_depend_on_the_seed_alone():
    for seed in range(5):
        chosen = [labeled(count, seed) for count in range(1, 8)]
        assert [len(patients) for patients in chosen] == list(range(1, 8))
        assert all(small < large for small, large in pairwise(chosen))
    assert len({frozenset(labeled(3, seed)) for seed in range(8)}) > 1
    backwards = choose(CASES[::-1], patient_of, Protocol(3))
    assert {case.name[0] for case in backwards.labeled} == labeled(3)
    assert len(choose(CASES, patient_of, Protocol(Fraction(1, 2))).labeled) == 8


def test_published_order_applies_only_to_the_published_patients():
    order = PublishedOrder("hgf", "a list", whole=8)
    assert labeled(2, order=order) == {"h", "g"}
    assert choose(CASES, patient_of, Protocol(2), order=order).record["chosen"] == "the first 2 of a list"
    drawn = choose(CASES, patient_of, Protocol(2)).record["chosen"]
    assert "drawn at random by patient; no published list" in drawn
    for other in (replace(order, whole=9), replace(order, patients="xhg"), replace(order, patients="h")):
        assert labeled(2, order=other) == labeled(2)


def test_validation_patients_keep_their_labels_and_do_not_count():
    choice = choose(CASES, patient_of, Protocol(3), validation=["a", "b"])
    assert len(choice.labeled) == 10
    assert {"a", "b"} < {case.name[0] for case in choice.labeled}
    assert choice.record["validation_patients"] == ["a", "b"]
    assert not {"a", "b"} & set(choice.record["labeled_patients"])


def test_labels_of_the_others_are_nowhere_in_the_output(dataset, raw, capsys):
    folder = write_raw_dataset(dataset, Target(5, "LA", labeled="3"))
    kept, others = names(folder / "imagesTr"), names(folder / "imagesUn")
    assert (len(kept), len(others)) == (6, 10)
    assert names(folder / "labelsTr") == kept
    assert {path.name for path in folder.iterdir()} == {
        "dataset.json", "splits_final.json", "imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs",
    }  # fmt: skip
    record = facts(folder)["labeled_protocol"]
    assert record["unlabeled_cases"] == others
    assert record["labeled_patients"] == sorted({name[0] for name in kept})
    assert facts(folder)["numTraining"] == 6
    split = json.loads((folder / "splits_final.json").read_text())
    assert {name for fold in split for name in fold["train"] + fold["val"]} == set(kept)
    assert "3 patients, 10 cases without labels in imagesUn, 1 test cases" in capsys.readouterr().out

    # No file, by its voxels, is the label of an unlabeled case.
    whole = write_raw_dataset(dataset, Target(6, "Whole"))
    secret = {hashlib.sha256((whole / "labelsTr" / f"{name}.nii.gz").read_bytes()).digest() for name in others}
    written = {hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}
    assert len(secret) == 10
    assert not secret & written


def test_one_patient_has_no_split(dataset, raw, capsys):
    folder = write_raw_dataset(dataset, Target(5, "LA", labeled="1"))
    assert len(names(folder / "labelsTr")) == 2
    assert not list(raw.parent.rglob("splits_final.json"))
    assert "There is no split file, because fewer than 2 patients" in capsys.readouterr().out
    assert "Train fold all" in write_and_read(dataset, capsys)


def write_and_read(dataset: RawDataset, capsys) -> str:
    """Again, over a split that an earlier conversion has left: it goes."""
    write_raw_dataset(dataset, Target(5, "LA", overwrite=True))
    place = Path(write_raw_dataset(dataset, Target(5, "LA", overwrite=True, labeled="1")))
    assert not list(place.parents[1].rglob("splits_final.json"))
    return capsys.readouterr().out


def test_a_split_that_is_there_is_not_removed_without_overwrite(dataset, raw):
    split = raw.with_name("nnUNet_preprocessed") / "Dataset005_LA" / "splits_final.json"
    split.parent.mkdir(parents=True)
    split.write_text("[]x")
    assert "there is already a split" in refusal(dataset, Target(5, "LA", labeled="1"))
    assert split.exists()


def test_a_published_validation_set_is_the_only_fold(dataset, raw, capsys):
    folder = write_raw_dataset(replace(dataset, validation=["a", "b"]), Target(5, "LA", labeled="1"))
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert fold["val"] == ["a_1", "a_2", "b_1", "b_2"]
    assert {name[0] for name in fold["train"]} == set(facts(folder)["labeled_protocol"]["labeled_patients"])
    assert "Train fold 0 only" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["8", "9", "100%"])
def test_somebody_must_be_left_without_labels(dataset, raw, word):
    message = refusal(dataset, Target(5, "LA", labeled=word))
    assert f"at least one of the 8 training patients must be unlabeled; got {word}" in message
    assert not raw.exists()


def test_overwrite_takes_the_unlabeled_images_of_a_conversion_but_not_the_users(dataset, raw):
    folder = write_raw_dataset(dataset, Target(5, "LA", labeled="3"))
    write_raw_dataset(dataset, Target(5, "LA", labeled="2", overwrite=True))
    assert len(names(folder / "imagesTr")) == 4
    (folder / "imagesUn" / "mine_0000.nii.gz").touch()
    message = refusal(dataset, Target(5, "LA", overwrite=True))
    assert "the dataset also holds imagesUn. Move these away first" in message
    assert (folder / "imagesUn" / "mine_0000.nii.gz").exists()
