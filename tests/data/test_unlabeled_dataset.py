"""Images in nnU-Net's formats, whose labels and property files are never opened."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from tiny_data import SHAPE, delete_labels, make_labels, save_case

from nnunet_collab.core.errors import CollabError
from nnunet_collab.data.unlabeled_dataset import ANNOTATED, UnlabeledDataset, open_image

WINDOW = (slice(None), slice(1, 3), slice(4, 9), slice(0, 7))


def image_of(form, folder):
    """Write one image and labels in the form; returns the image."""
    folder.mkdir(exist_ok=True)
    image = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    if form == "npz":
        np.savez_compressed(folder / "u.npz", data=image, seg=make_labels())
    elif form == "npy":
        np.save(folder / "u.npy", image)
        np.savez_compressed(folder / "u.npz", data=image * 0, seg=make_labels())  # unpacked: the npy counts
    else:
        save_case(folder, "u", 0, make_labels())
        shutil.move(folder / "u.b2nd", folder / "old.b2nd")
        import blosc2

        blosc2.asarray(image, urlpath=str(folder / "u.b2nd"))
    return image


@pytest.mark.parametrize("form", ["b2nd", "npy", "npz"])
def test_the_image_comes_in_each_of_nnunets_forms(form, tmp_path):
    want = image_of(form, tmp_path)
    image, where, previous, properties = UnlabeledDataset({"u": tmp_path}).load_case("u")
    assert image.shape == want.shape
    assert np.array_equal(image[WINDOW], want[WINDOW])
    assert (where.shape, where.ndim, where.dtype) == ((1, *SHAPE), 4, np.int16)
    part = where[WINDOW]
    assert part.shape == (1, 2, 5, 7)
    assert not part.any()
    part[:] = 1  # what it hands out is the caller's own
    assert not where[WINDOW].any()
    assert previous is None
    assert properties == {"class_locations": {}}


@pytest.mark.parametrize("damage", ["deleted", "garbage", "unreadable"])
def test_labels_and_properties_are_never_opened(damage, tmp_path, monkeypatch):
    save_case(tmp_path, "u", 7, make_labels())
    if damage == "deleted":
        delete_labels(tmp_path, ["u"])
    elif damage == "garbage":
        for name in ("u_seg.b2nd", "u.pkl"):
            (tmp_path / name).write_bytes(b"nothing that can be read")
    else:
        import blosc2

        opened = blosc2.open
        monkeypatch.setattr(blosc2, "open", lambda urlpath, **options: refuse(urlpath) or opened(urlpath, **options))
    image, *_ = UnlabeledDataset({"u": tmp_path}).load_case("u")
    assert (image[WINDOW] == 7).all()


def refuse(path):
    assert "_seg" not in str(path), f"{path} was opened"


def test_the_entry_of_the_label_in_an_archive_is_not_read(tmp_path, monkeypatch):
    image_of("npz", tmp_path)
    read = []
    getitem = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda self, key: read.append(key) or getitem(self, key))
    UnlabeledDataset({"u": tmp_path}).load_case("u")
    assert read == ["data"]


def test_a_missing_image_is_named_with_the_commands_that_make_it(tmp_path):
    with pytest.raises(CollabError) as caught:
        UnlabeledDataset({"u": tmp_path}).load_case("u")
    assert str(caught.value) == (
        f"{tmp_path}: holds no preprocessed image of the unlabeled case 'u'. Run nnunet_collab preprocess_unlabeled "
        f"for images in imagesUn, nnUNetv2_preprocess for cases of imagesTr."
    )
    with pytest.raises(CollabError, match="holds no preprocessed image"):
        open_image(tmp_path, "u")


class Labeled:
    """In place of nnU-Net's dataset of labeled cases."""

    identifiers = ("a", "b")

    def __init__(self, labels):
        self.labels = labels

    def load_case(self, identifier):
        return np.zeros((1, *SHAPE), np.float32), self.labels, None, {"class_locations": {1: "poison"}}


def test_voxels_of_the_ignore_label_are_unlabeled_data_and_no_other_label_shows(tmp_path):
    save_case(tmp_path, "u", 7, make_labels())
    labels = make_labels("ignore")
    labels[:, 0] = -1  # outside of a mask
    data = UnlabeledDataset({"u": tmp_path}, partially_labeled=Labeled(labels), ignore_label=3)
    assert data.identifiers == ["a", "b", "u"]
    _, where, _, properties = data.load_case("a")
    assert properties == {"class_locations": {}}
    whole = where[(slice(None),) * 4]
    assert whole.dtype == np.int16
    assert np.array_equal(whole == 0, labels == 3)
    assert np.array_equal(whole == -1, labels == -1)
    assert np.array_equal(whole == ANNOTATED, (labels >= 0) & (labels < 3))
    assert np.array_equal(where[WINDOW], whole[WINDOW])
    assert torch.from_numpy(where[WINDOW]).shape == (1, 2, 5, 7)
    assert np.array_equal(data.load_case("u")[1][(slice(None),) * 4], np.zeros((1, *SHAPE)))


def test_cases_can_be_left_out_but_for_those_that_are_partially_labeled(tmp_path):
    class Scribbles:
        identifiers = ("s",)

    data = UnlabeledDataset(
        {"u": tmp_path, "v": tmp_path}, partially_labeled=Scribbles(), ignore_label=3, located={"u": tmp_path}
    )
    left = data.without(["u", "s"])
    assert left.identifiers == ["s", "v"]
    assert left.located == {}
    assert (left.partially_labeled, left.ignore_label) == (data.partially_labeled, 3)
    assert data.identifiers == ["s", "u", "v"]
