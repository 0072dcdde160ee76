"""The two-stream batch: composition, places that no label chooses, and the same batches from any number of workers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_data import LABELED, SHAPE, SPLIT_UNLABELED, delete_labels, make_labels, save_case

from nnunet_collab.data.loaders import in_background, seeded
from nnunet_collab.data.two_streams import LabeledCrops, RandomCrops, TwoStreams
from nnunet_collab.data.unlabeled_dataset import UnlabeledDataset
from nnunet_collab.data.views import WeakAndStrongViews

# batchgenerators' own thread may be waiting for a worker that is ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

PATCH = {"2d": (16, 16), "3d": (4, 16, 16)}
CROP = {"2d": (20, 20), "3d": (6, 20, 20)}


def manager(*, ignore):
    return SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=ignore)


def planned(dims):
    return nnUNetTrainer.get_training_transforms(np.array(PATCH[dims]), (-0.3, 0.3), None, (0, 1), False)


@pytest.fixture
def folder(tmp_path):
    for case, value in {**LABELED, **SPLIT_UNLABELED}.items():
        save_case(tmp_path, case, value, make_labels())
    delete_labels(tmp_path, SPLIT_UNLABELED)
    return tmp_path


def two_streams(folder, dims="2d", *, ignore=False, labeled=2, unlabeled=3, strong=1):
    cases = nnUNetDatasetBlosc2(str(folder), list(LABELED))
    loader = nnUNetDataLoader(
        cases, labeled, CROP[dims], PATCH[dims], manager(ignore=ignore), oversample_foreground_percent=1.0,
        transforms=planned(dims),
    )  # fmt: skip
    images = UnlabeledDataset(
        dict.fromkeys(SPLIT_UNLABELED, folder), partially_labeled=cases if ignore else None, ignore_label=3
    )
    views = WeakAndStrongViews(planned(dims), strong)
    crops = RandomCrops(images, unlabeled, CROP[dims], PATCH[dims], manager(ignore=ignore), transforms=views)
    return TwoStreams(loader, crops)


@pytest.mark.parametrize("dims", PATCH)
@pytest.mark.parametrize(("labeled", "unlabeled", "strong"), [(1, 1, 0), (2, 3, 2)])
def test_a_batch_holds_as_many_of_each_kind_as_asked_for(folder, dims, labeled, unlabeled, strong):
    with seeded((0,)):
        batch = two_streams(folder, dims, labeled=labeled, unlabeled=unlabeled, strong=strong).generate_train_batch()
    assert batch["data"].shape == (labeled, 1, *PATCH[dims])
    assert batch["target"].shape == (labeled, 1, *PATCH[dims])
    assert batch["views"].shape == (unlabeled, 1 + strong, *PATCH[dims])
    assert batch["learn_mask"].shape == (unlabeled, 1, *PATCH[dims])
    assert set(batch["keys"]) <= set(LABELED)
    assert set(batch["keys_unlabeled"]) <= set(SPLIT_UNLABELED)
    for key, view in zip(batch["keys_unlabeled"], batch["views"], strict=True):
        assert view[0].max() == pytest.approx(SPLIT_UNLABELED[key])


@pytest.mark.parametrize("dims", PATCH)
def test_padding_of_small_images_is_left_out(folder, dims):
    streams = two_streams(folder, dims)
    streams.unlabeled.patch_size = (1, 60, 60) if dims == "2d" else (10, 60, 60)
    streams.unlabeled.transforms = None
    with seeded((0,)):
        batch = streams.generate_train_batch()
    assert (batch["learn_mask"] == -1).any()
    assert torch.equal(batch["learn_mask"] == -1, batch["views"] == 0)


SMALL = (slice(None), slice(2, 3), slice(20, 22), slice(20, 22))


@pytest.fixture
def small_structure(tmp_path):
    """One case in which a random crop hardly ever meets the structure."""
    labels = np.zeros((1, *SHAPE), np.int16)
    labels[SMALL] = 1
    save_case(tmp_path, "a", 10, labels)
    return nnUNetDatasetBlosc2(str(tmp_path), ["a"])


@pytest.mark.parametrize(
    ("count", "share", "chosen", "first"),
    [
        (4, 0.33, False, [False, False, False, True]),  # the last third, as nnU-Net
        (2, 0.33, False, [False, True]),
        (1, 1.0, False, [True]),
        (1, 0.33, False, [False]),  # rounded, none
        (1, 0.0, False, [False]),
        (4, 0.33, True, None),
    ],
)
def test_labeled_crops_are_centered_on_foreground_as_often_as_nnunet_means_to(
    small_structure, count, share, chosen, first
):
    loader = LabeledCrops(
        small_structure, count, (8, 8), (8, 8), manager(ignore=False), oversample_foreground_percent=share,
        probabilistic_oversampling=chosen,
    )  # fmt: skip
    told, seen = [], []
    with seeded((3,)):
        for _ in range(240 // count):
            batch = loader.generate_train_batch()
            assert batch["centered"].dtype is torch.bool
            assert first is None or batch["centered"].tolist() == first
            told += batch["centered"].tolist()
            seen += (batch["target"] == 1).flatten(1).any(dim=1).tolist()
    assert all(s for s, t in zip(seen, told, strict=True) if t)
    assert np.mean([s for s, t in zip(seen, told, strict=True) if not t] or [0]) < 0.1
    if first is None:
        assert np.mean(told) == pytest.approx(share, abs=0.1)


class Poisoned(dict):
    """Places of classes that nobody may look at."""

    def __getitem__(self, key):
        raise AssertionError(f"places of {key} were looked up")

    def keys(self):
        raise AssertionError("classes were listed")


@pytest.mark.parametrize("ignore", [False, True])
def test_no_label_chooses_the_place_of_a_crop(folder, ignore, monkeypatch):
    streams = two_streams(folder, ignore=ignore, unlabeled=8)
    load = streams.unlabeled._data.load_case
    monkeypatch.setattr(
        streams.unlabeled._data, "load_case", lambda key: (*load(key)[:3], {"class_locations": Poisoned()})
    )
    drawn = []
    box = streams.unlabeled.get_bbox
    monkeypatch.setattr(streams.unlabeled, "get_bbox", lambda *a: drawn.append(box(*a)) or drawn[-1])
    with seeded((1,)):
        for _ in range(40):
            streams.unlabeled.generate_train_batch()
    starts = np.array([lower for lower, _ in drawn])
    assert set(starts[:, 0]) == set(range(SHAPE[0]))  # every slice, labeled or not
    # From half the extra margin before the image to as much behind it.
    assert (starts[:, 1:].min(), starts[:, 1:].max()) == (-2, SHAPE[1] + 2 - CROP["2d"][0])


@pytest.mark.parametrize("ignore", [False, True])
def test_what_the_labels_of_unlabeled_cases_say_changes_no_batch(folder, tmp_path_factory, ignore):
    other = tmp_path_factory.mktemp("other")
    for case, value in {**LABELED, **SPLIT_UNLABELED}.items():
        save_case(other, case, value, make_labels())
    for case in SPLIT_UNLABELED:
        (other / f"{case}_seg.b2nd").write_bytes(b"garbage")
        (other / f"{case}.pkl").write_bytes(b"garbage")
    batches = []
    for place in (folder, other):
        with seeded((2,)):
            batches.append(two_streams(place, ignore=ignore).generate_train_batch())
    assert_same(*batches)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else list(a[name]) == list(b[name])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_batches_come_whatever_the_number_of_workers(folder, workers):
    found = []
    for number in (0, workers):
        batches = in_background(two_streams(folder), (5, 0, 0), start=0, workers=number, pin_memory=False)
        try:
            found.append([next(batches) for _ in range(4)])
        finally:
            if number:
                batches._finish()
    for a, b in zip(*found, strict=True):
        assert_same(a, b)


def test_no_batch_of_any_worker_repeats_another(folder):
    batches = in_background(two_streams(folder), (5, 0, 0), start=0, workers=2, pin_memory=False)
    try:
        views = [next(batches)["views"] for _ in range(6)]
    finally:
        batches._finish()
    strong = [view for batch in views for view in batch[:, 1]]
    assert all(not torch.equal(a, b) for i, a in enumerate(strong) for b in strong[:i])
