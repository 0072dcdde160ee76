"""Places of predicted foreground: what is stored, which models are refused, and where crops come to lie."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from tiny import finish_run, make_dataset_json, make_trainer
from tiny_data import EXTRA, SPLIT_UNLABELED, delete_labels, full_plans, save_case, write_data

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_json
from nnunet_collab.data import locating
from nnunet_collab.data.locations import (
    MOST_VOXELS,
    load_locations,
    located_cases,
    locations_folder,
    sample_locations,
    save_locations,
)
from nnunet_collab.data.two_streams import RandomCrops
from nnunet_collab.data.unlabeled_dataset import UnlabeledDataset
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer
from nnunet_collab.methods.supervised import SupervisedTrainer


@pytest.mark.parametrize("shape", [(5, 6), (3, 40, 50)])
def test_every_voxel_of_a_class_is_kept_or_a_sample_of_many(shape):
    labels = np.random.default_rng(0).integers(0, 3, (4, *shape) if len(shape) == 2 else (20, *shape[1:]))
    found = sample_locations(labels, [1, 2, 3], seed=1)
    assert set(found) == {1, 2}  # no voxel of class 3
    for label, voxels in found.items():
        assert (voxels[:, 0] == 0).all()
        assert (labels[tuple(voxels[:, 1:].T)] == label).all()
        assert len(np.unique(voxels, axis=0)) == len(voxels) == min(MOST_VOXELS, (labels == label).sum())
    again = sample_locations(labels, [1, 2, 3], seed=1)
    assert all(np.array_equal(found[k], again[k]) for k in found)


def test_a_file_is_whole_or_refused(tmp_path):
    save_locations(tmp_path, "a", {1: np.array([[0, 1, 2, 3]]), 7: np.array([[0, 4, 5, 6], [0, 0, 0, 0]])})
    found = load_locations(tmp_path, "a")
    assert {k: v.tolist() for k, v in found.items()} == {1: [[0, 1, 2, 3]], 7: [[0, 4, 5, 6], [0, 0, 0, 0]]}
    assert located_cases(tmp_path) == {"a"}
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CollabError, match="preprocess_unlabeled --locate again"):
        load_locations(tmp_path, "a")


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Draws many crops of two cases: of one, foreground was predicted in a corner."""
    folder = tmp_path_factory.mktemp("crops")
    save_case(folder, "p", 40, np.zeros((1, 6, 40, 40), np.int16))
    save_case(folder, "q", 41, np.zeros((1, 6, 40, 40), np.int16))
    image = np.zeros((1, 6, 40, 40), np.float32)
    image[:, 5, 36, 36] = 1

    def draw(share, located=("p",)):
        for case in located:
            save_locations(folder, case, {1: np.array([[0, 5, 36, 36]])})
        data = UnlabeledDataset({"p": folder, "q": folder}, located=dict.fromkeys(located, folder))
        load = data.load_case
        data.load_case = lambda case: (image, *load(case)[1:])
        labels = type("Labels", (), {"has_ignore_label": False, "all_labels": [0, 1, 2], "foreground_labels": [1, 2]})()
        loader = RandomCrops(data, 2, (2, 8, 8), (2, 8, 8), labels, centered_share=share)
        np.random.seed(0)  # noqa: NPY002
        batches = [loader.generate_train_batch() for _ in range(200)]
        return [(key, bool(crop.max() > 0)) for b in batches for key, crop in zip(b["keys"], b["data"], strict=True)]

    return draw


def share_of(crops, case):
    return np.mean([seen for key, seen in crops if key == case])


def test_a_share_of_the_crops_is_centered_on_predicted_foreground(crops):
    at_random, third, all_of_them = (crops(share) for share in (0.0, 1 / 3, 1.0))
    assert share_of(at_random, "p") < 0.05
    assert share_of(third, "p") == pytest.approx(1 / 3, abs=0.09)
    assert share_of(all_of_them, "p") == 1
    assert share_of(all_of_them, "q") < 0.05  # that has no predicted foreground: at random


# ---------------------------------------------------------------- models


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published model, the preprocessed dataset it was trained on, and plans and dataset.json of it."""
    plans, content = full_plans(), make_dataset_json()
    trainer = make_trainer(SupervisedTrainer, tmp_path, monkeypatch, changes={"students": {}}, plans=full_plans())
    (fold,) = publish_fold(finish_run(trainer))
    own = write_data(tmp_path, plans, content)
    delete_labels(own, SPLIT_UNLABELED)
    return fold.parent, own.parent, plans, content


def prepare(published, **changes):
    model, preprocessed, plans, content = published
    options = {"configurations": ["2d"], "plans": plans, "dataset_json": content, "device": "cpu", **changes}
    return locating.prepare(model, preprocessed=preprocessed, **options)


def test_cases_of_imagesun_and_of_the_split_are_located_without_any_label(published, monkeypatch, capsys):
    ready = prepare(published)
    segmentation = np.random.default_rng(0).integers(0, 3, (6, 40, 40))
    monkeypatch.setattr(ready.locator, "segment", lambda image: segmentation)
    ready.run(list(EXTRA), overwrite=False)
    folder = locations_folder(published[1], "nnUNetPlans_2d")
    assert located_cases(folder) == {*EXTRA, *SPLIT_UNLABELED}
    want = sample_locations(segmentation, [1, 2], zlib.crc32(b"u"))
    assert all(np.array_equal(load_locations(folder, "u")[k], want[k]) for k in (1, 2))
    assert "located 4 cases" in capsys.readouterr().out
    monkeypatch.setattr(ready.locator, "segment", None)  # nothing is predicted twice
    ready.run(list(EXTRA), overwrite=False)
    assert "located 0 cases" in capsys.readouterr().out


def test_another_model_starts_over(published, monkeypatch):
    ready = prepare(published)
    monkeypatch.setattr(ready.locator, "segment", lambda image: np.ones((6, 40, 40), int))
    ready.run(list(EXTRA), overwrite=False)
    other = ready._replace(model=published[0].with_name("Other__nnUNetPlans__2d"))
    monkeypatch.setattr(ready.locator, "segment", lambda image: np.full((6, 40, 40), 2))
    other.run(list(EXTRA), overwrite=False)
    folder = locations_folder(published[1], "nnUNetPlans_2d")
    assert {label for case in EXTRA for label in load_locations(folder, case)} == {2}


def test_a_model_predicts_in_the_space_of_the_preprocessed_image(published):
    locator = prepare(published).locator
    image = np.random.default_rng(0).normal(size=(1, 3, 40, 40)).astype(np.float32)
    found = locator.segment(image)
    assert found.shape == (3, 40, 40)
    network = locator.predictor.network.eval()
    with torch.no_grad():
        middle = network(torch.from_numpy(image[:, 1, 4:36, 4:36])[None])
    logits = middle[0] if isinstance(middle, (list, tuple)) else middle
    assert (logits[0].argmax(0).numpy() == found[1, 4:36, 4:36]).mean() > 0.6  # windows overlap


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"configurations": ["3d_fullres"]}, "the configuration of the model must be in -c (3d_fullres)"),
        (
            {"dataset_json": {**make_dataset_json(), "channel_names": {"0": "CT"}}},
            "must have the channels of the dataset",
        ),
        ({"dataset_json": {**make_dataset_json(), "labels": {"background": 0, "x": 1}}}, "must have the labels"),
        ({"plans": {**full_plans(), "transpose_forward": [1, 0, 2]}}, "must have the preprocessing of these plans"),
    ],
    ids=["configuration", "channels", "labels", "preprocessing"],
)
def test_a_model_that_does_not_fit_is_refused(published, changes, words):
    with pytest.raises(CollabError) as caught:
        prepare(published, **changes)
    assert words in str(caught.value)


def test_a_folder_without_a_model_is_refused(published, tmp_path):
    with pytest.raises(CollabError, match=r"plans\.json"):
        prepare((tmp_path, *published[1:]))
    (published[0] / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(CollabError, match=r"must hold fold_\*/checkpoint_final\.pth"):
        prepare(published)


# ---------------------------------------------------------------- the training


def test_a_training_uses_the_places_and_says_so(published, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folder = locations_folder(published[1], "nnUNetPlans_2d")
    folder.mkdir()
    save_locations(folder, "p", {1: np.array([[0, 2, 20, 20]])})
    write_json(folder / "model.json", {"model": "a model"})
    for share, want in ((0.25, {"p"}), (0.0, set())):
        changes = {"students": {}, "centered_share": share}
        trainer = make_trainer(MeanTeacherTrainer, tmp_path, monkeypatch, changes=changes, plans=full_plans())
        data, _ = trainer.get_tr_and_val_datasets()
        assert set(trainer.unlabeled_dataset(data).located) == want
        log = "".join(p.read_text() for p in sorted((tmp_path / "nnUNet_results").rglob("training_log*.txt")))
        assert "25% of the crops of 1 unlabeled cases are centered on the foreground that a model predicts" in log
    record = json.loads((folder / "model.json").read_text())
    assert record == {"model": "a model"}
