"""Preprocessed files are read before a training: damaged ones, wrong labels and absent classes are named."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from tiny import make_dataset_json
from tiny_data import SHAPE, make_labels
from tiny_data import save_case as save_new_case

from nnunet_collab.core.errors import CollabError
from nnunet_collab.training.case_files import check_case_files, check_unlabeled_images

CASES = ("a", "b", "x")


def save_case(folder, case, value, labels):
    """In place of the one that is there; blosc2 does not overwrite."""
    for path in folder.glob(f"{case}*"):
        path.unlink()
    save_new_case(folder, case, value, labels)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact") / "nnUNetPlans_2d"
    for number, case in enumerate(CASES):
        save_case(folder, case, number, make_labels())
    return folder


@pytest.fixture
def folder(intact, tmp_path):
    truth = tmp_path / "gt_segmentations"
    truth.mkdir()
    (truth / "x.nii.gz").touch()
    return shutil.copytree(intact, tmp_path / intact.name)


def check(folder, kind="plain", dataset=nnUNetDatasetBlosc2, labels=(0, 1, 2), ignore=None):
    log = []
    train, val = (dataset(str(folder), cases) for cases in (["a", "b"], ["x"]))
    manager = SimpleNamespace(all_labels=list(labels), ignore_label=ignore)
    check_case_files(train, val, manager, make_dataset_json(kind), folder.parent / "gt_segmentations", log.append)
    return log


def test_intact_cases_pass_without_a_word(folder):
    assert check(folder) == []


@pytest.mark.parametrize("case", ["a", "x"])
@pytest.mark.parametrize("label", [7, -3, 3, -2, 127, 300])
def test_a_label_out_of_range_is_named_with_its_case(folder, case, label):
    labels = make_labels()
    labels[0, 3, 4, 4] = label
    save_case(folder, case, 0, labels)
    with pytest.raises(CollabError) as caught:
        check(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: every case of the fold must be readable and labeled 0 to 2, as dataset.json")
    assert f"wrong: {case} (label {label})." in message


def test_outside_of_the_image_and_the_ignore_label_are_no_wrong_labels(folder):
    labels = make_labels("ignore")
    labels[0, :, 0, :] = -1
    save_case(folder, "a", 0, labels)
    assert check(folder, "ignore", ignore=3) == []
    with pytest.raises(CollabError, match=r"a \(label 3\)"):
        check(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("not what it should be")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, empty, text, remove])
@pytest.mark.parametrize("file", ["a.b2nd", "a_seg.b2nd", "a.pkl", "x.b2nd"])
def test_a_damaged_file_is_named(folder, file, damage):
    damage(folder / file)
    with pytest.raises(CollabError) as caught:
        check(folder)
    assert f"wrong: {file[0]} (cannot be read: " in str(caught.value)
    assert "nnUNetv2_preprocess" in str(caught.value)


@pytest.mark.parametrize("damage", [cut, empty, text, remove])
def test_nnunets_other_format_is_read_too(folder, damage):
    for case in CASES:
        nnUNetDatasetNumpy.save_case(np.zeros((1, *SHAPE), np.float32), make_labels(), {}, str(folder / case))
    assert check(folder, dataset=nnUNetDatasetNumpy) == []
    damage(folder / "b.npz")
    with pytest.raises(CollabError, match=r"b \(cannot be read: "):
        check(folder, dataset=nnUNetDatasetNumpy)


def test_images_and_labels_of_other_sizes_are_named(folder):
    blosc2.asarray(make_labels()[:, 1:].copy(), urlpath=str(folder / "a_seg.b2nd"), mode="w")
    with pytest.raises(CollabError, match=r"a \(image \(6, 40, 40\), labels \(5, 40, 40\)\)"):
        check(folder)


def test_all_cases_at_fault_are_named_at_once(folder):
    empty(folder / "a.b2nd"), empty(folder / "x_seg.b2nd")
    save_case(folder, "b", 0, make_labels() * 9)
    with pytest.raises(CollabError) as caught:
        check(folder)
    assert all(f"{case} (" in str(caught.value) for case in CASES)


def test_original_labels_are_needed_before_the_training(folder):
    (folder.parent / "gt_segmentations" / "x.nii.gz").unlink()
    with pytest.raises(CollabError, match=r"gt_segmentations: must hold the original labels .*missing: x\.nii\.gz"):
        check(folder)


@pytest.mark.parametrize(
    ("present", "kind", "absent"),
    [
        ({1, 2}, "plain", ""),
        ({1}, "plain", "core"),
        ({2}, "plain", "ring"),
        (set(), "plain", "ring, core"),
        ({1}, "regions", "core"),
        ({2}, "regions", ""),  # the whole holds the core
        (set(), "regions_ignore", "whole, core"),
    ],
)
def test_a_class_that_no_training_case_has_is_told_once(folder, present, kind, absent):
    labels = make_labels()
    labels[~np.isin(labels, [0, *present])] = 0
    for case in ("a", "b"):  # the validation case has all of them, which teaches nobody
        save_case(folder, case, 0, labels)
    log = check(folder, kind, ignore=3 if "ignore" in kind else None)
    assert len(log) == bool(absent)
    assert all(f"WARNING: no labeled training case of this fold has {absent}. " in line for line in log)


@pytest.mark.parametrize("damage", [cut, empty, text, remove])
def test_damaged_unlabeled_images_are_named_and_labels_are_not_opened(folder, damage):
    for case in CASES:
        (folder / f"{case}_seg.b2nd").unlink()
        (folder / f"{case}.pkl").unlink()
    folders = dict.fromkeys(CASES, folder)
    check_unlabeled_images(folders)
    damage(folder / "b.b2nd")
    with pytest.raises(
        CollabError,
        match=r"(b\.b2nd: the preprocessed image of|no preprocessed image of) the unlabeled case 'b'",
    ):
        check_unlabeled_images(folders)
