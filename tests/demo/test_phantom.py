"""The phantom keeps its promises: anatomy, determinism, geometry, nnU-Net's four kinds of labels, a task worth learning."""

from __future__ import annotations

import json
import multiprocessing.dummy
import time

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning import verify_dataset_integrity as verify
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import ndimage

from nnunet_collab.core.errors import CollabError
from nnunet_collab.demo import phantom
from nnunet_collab.demo.phantom import LABELS_OF_KIND, make_case, write_dataset

SHAPE, SPACING_MM = (8, 96, 96), (8.0, 1.5, 1.5)
SMALL = {"shape": (4, 48, 48), "spacing_mm": (14.0, 3.0, 3.0)}
GRIDS = [
    (SHAPE, SPACING_MM),
    ((5, 32, 40), (12.0, 4.5, 4.0)),  # coarse
    ((3, 24, 24), (10.0, 2.0, 2.0)),  # a field of view of 48 mm
    ((10, 160, 150), (6.0, 2.0, 2.2)),  # the whole chest
    ((1, 64, 64), (8.0, 2.0, 2.0)),  # one slice
]


def cases(n, kind="plain", shape=SHAPE, spacing_mm=SPACING_MM, seed=0):
    return [
        make_case(np.random.default_rng([seed, i]), shape=shape, spacing_mm=spacing_mm, kind=kind) for i in range(n)
    ]


def neighbours_in_plane(labels, z, y, x):
    rows, columns = labels.shape[1:]
    steps = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return [int(labels[z, r, c]) if 0 <= r < rows and 0 <= c < columns else None for r, c in steps]


def dice(got, want):
    return [2 * np.sum((got == c) & (want == c)) / np.sum((got == c).astype(int) + (want == c)) for c in (1, 2, 3)]


def voxels_of(folder):
    files = sorted(folder.rglob("*.nii.gz"))
    return {str(p.relative_to(folder)): sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in files}


@pytest.mark.parametrize(("shape", "spacing_mm"), GRIDS)
def test_types_shapes_and_values(shape, spacing_mm):
    for image, labels in cases(4, shape=shape, spacing_mm=spacing_mm):
        assert image.shape == labels.shape == shape
        assert image.dtype == np.float32
        assert labels.dtype == np.uint8
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert set(np.unique(labels)) <= {0, 1, 2, 3}


@pytest.mark.parametrize(("shape", "spacing_mm"), GRIDS)
def test_every_pool_voxel_touches_only_pool_and_wall(shape, spacing_mm):
    for _, labels in cases(6, shape=shape, spacing_mm=spacing_mm):
        for z, y, x in np.argwhere(labels == 3)[:: max(1, labels.size // 60000)]:
            assert set(neighbours_in_plane(labels, z, y, x)) <= {2, 3}


def test_the_classes_are_there_whole_and_in_their_place():
    for _, labels in cases(25):
        for c in (1, 2, 3):
            assert np.sum(labels == c) > 200
            assert ndimage.label(labels == c)[1] == 1, "one connected part each"
        touching = ndimage.binary_dilation(labels == 1) & (labels == 2)
        assert touching.sum() > 50, "the right ventricle lies on the ring"
        assert not (ndimage.binary_dilation(labels == 1) & (labels == 3)).any()
        middle = [z for z in range(len(labels)) if (labels[z] == 1).any()]
        for z in middle:
            pool, right = (np.argwhere(labels[z] == c).mean(axis=0) for c in (3, 1))
            assert np.hypot(*(pool - right)) * 1.5 > 15, "mm between the ventricles' centres"
            assert right[1] < pool[1], "the right ventricle is on the image's left"


def test_the_heart_tapers_and_some_slices_have_none():
    first, last, empty = [], [], 0
    for _, labels in cases(30):
        area = [(plane > 0).sum() for plane in labels]
        hearts = np.flatnonzero(area)
        assert (np.diff(hearts) == 1).all(), "the heart is without gaps"
        first.append(area[hearts[0]])
        last.append(area[hearts[-1]])
        empty += len(labels) - len(hearts)
    assert np.mean(last) < 0.3 * np.mean(first)
    assert 0.1 < empty / (30 * 8) < 0.4


def test_anatomy_and_contrast_differ_between_cases():
    drawn = cases(20)
    pool_ml = [np.sum(labels == 3) * 8 * 1.5 * 1.5 / 1000 for _, labels in drawn]
    assert max(pool_ml) > 2 * min(pool_ml)
    ratio = [np.median(i[la == 1]) / np.median(i[la == 2]) for i, la in drawn]
    assert min(ratio) < 1.6 < 2 < max(ratio), "the right ventricle's contrast"
    centres = np.array([np.argwhere(labels == 3).mean(axis=0) for _, labels in drawn])
    assert (centres.std(axis=0) > (0.3, 1, 1)).all()
    for i, (_, a) in enumerate(drawn):
        assert all(np.mean(a[a > 0] == b[a > 0]) < 0.97 for _, b in drawn[i + 1 :])


def test_the_same_generator_gives_the_same_case_and_the_image_ignores_the_kind():
    plain, again = cases(3), cases(3)
    for kind in LABELS_OF_KIND:
        for (image, labels), (same, same_labels), (other, kind_labels) in zip(
            plain, again, cases(3, kind=kind), strict=True
        ):
            assert image.tobytes() == same.tobytes() == other.tobytes()
            assert labels.tobytes() == same_labels.tobytes()
            assert (kind_labels[kind_labels != 4] == labels[kind_labels != 4]).all()
    assert cases(1, seed=1)[0][0].tobytes() != plain[0][0].tobytes()


@pytest.mark.parametrize("kind", ["ignore", "regions_ignore"])
def test_sparse_annotation_keeps_scribbles_and_whole_slices(kind):
    for _, labels in cases(12, kind=kind):
        ignored = np.array([np.mean(plane == 4) for plane in labels])
        sparse = ignored > 0
        assert sparse.sum() == 5, "60 % of 8 slices"
        assert (ignored[sparse] > 0.6).all(), "most of a sparse slice is ignored"
        assert (ignored[sparse] < 0.98).all(), "but not all"
        assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    (_, alone), *_ = cases(1, kind=kind, shape=(1, 64, 64), spacing_mm=(8.0, 2.0, 2.0))
    assert 0.6 < np.mean(alone == 4) < 1


def test_intensity_alone_fails():
    """The classifier that knows each class's mean, and the one that knows its whole histogram, of z-scored images."""
    drawn = [((image - image.mean()) / image.std(), labels) for image, labels in cases(16)]
    voxels, truth = (np.concatenate([pair[i].ravel() for pair in drawn]) for i in (0, 1))
    means = np.array([voxels[truth == c].mean() for c in range(4)])
    edges = np.linspace(-3, 6, 150)
    shares = np.array([np.histogram(voxels[truth == c], edges, density=True)[0] for c in range(4)])
    for image, labels in drawn:
        nearest = np.abs(image[..., None] - means).argmin(axis=-1)
        likeliest = shares.argmax(axis=0)[np.clip(np.digitize(image, edges) - 1, 0, len(edges) - 2)]
        assert np.mean(dice(nearest, labels)) < 0.6
        assert np.mean(dice(likeliest, labels)) < 0.6
        low, high = np.quantile(image[labels == 3], [0.05, 0.95])
        assert np.sum((image > low) & (image < high) & (labels == 0)) > 300, "blood-like distractors"


def test_myocardium_is_darker_than_the_pool_so_there_is_something_to_see():
    for image, labels in cases(20):
        assert np.median(image[labels == 3]) > 1.4 * np.median(image[labels == 2])


def test_a_case_is_drawn_fast():
    cases(1)
    durations = []
    for i in range(5):
        start = time.perf_counter()
        make_case(np.random.default_rng(i), shape=SHAPE, spacing_mm=SPACING_MM)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.15


def test_wrong_arguments_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(CollabError, match=r"plain, regions, ignore, regions_ignore; got 'scribble'"):
        make_case(rng, shape=SHAPE, spacing_mm=SPACING_MM, kind="scribble")
    with pytest.raises(ValueError, match=r"shape must be >= \(1, 16, 16\).*got \(8, 8, 96\)"):
        make_case(rng, shape=(8, 8, 96), spacing_mm=SPACING_MM)
    with pytest.raises(ValueError, match=r"spacing_mm > 0; got .*\(8, 0, 1\)"):
        make_case(rng, shape=SHAPE, spacing_mm=(8, 0, 1))


@pytest.mark.parametrize("kind", sorted(LABELS_OF_KIND))
def test_label_manager_understands_the_kind(kind, tmp_path):
    folder = tmp_path / "Dataset900_Phantom"
    write_dataset(folder, n_train=1, n_test=1, seed=0, kind=kind, **SMALL)
    about = json.loads((folder / "dataset.json").read_text())
    manager = LabelManager(about["labels"], about.get("regions_class_order"))
    assert manager.has_regions == ("regions" in kind)
    assert manager.has_ignore_label == ("ignore" in kind)
    assert manager.all_labels == [0, 1, 2, 3]
    assert manager.ignore_label == (4 if "ignore" in kind else None)
    if "regions" in kind:
        assert manager.foreground_regions == [(1, 2, 3), (2, 3), 3]
        # Regions are put together in the order of dataset.json: the truth must survive the way there and back.
        _, labels = cases(1)[0]
        regions = np.stack([np.isin(labels, region) for region in manager.foreground_regions]).astype(np.float32)
        back = manager.convert_probabilities_to_segmentation(torch.from_numpy(regions)).numpy()
        assert (back == labels).all()


@pytest.mark.parametrize("kind", sorted(LABELS_OF_KIND))
def test_nnunet_accepts_the_dataset(kind, tmp_path, capfd, monkeypatch):
    # Threads instead of nnU-Net's spawned processes: the same checks, without importing torch in each.
    monkeypatch.setattr(verify.multiprocessing, "get_context", lambda _: multiprocessing.dummy)
    folder = tmp_path / "Dataset900_Phantom"
    write_dataset(folder, n_train=2, n_test=1, seed=3, kind=kind, n_unlabeled=1, **SMALL)
    verify.verify_dataset_integrity(str(folder), num_processes=1)
    printed = capfd.readouterr().out
    assert "Warning" not in printed
    assert "Error" not in printed
    values = {name: set(np.unique(voxels)) for name, voxels in voxels_of(folder).items() if "labels" in name}
    train = set.union(*(found for name, found in values.items() if "Tr" in name))
    assert train == ({0, 1, 2, 3, 4} if "ignore" in kind else {0, 1, 2, 3})
    assert values["labelsTs/phantomTs000.nii.gz"] == {0, 1, 2, 3}, "test labels are complete"


def test_files_and_geometry(tmp_path):
    folder = tmp_path / "nnUNet_raw" / "Dataset900_Phantom"
    write_dataset(folder, n_train=3, n_test=2, seed=1, n_unlabeled=2, **SMALL)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == [
        "dataset.json",
        *(f"imagesTr/phantomTr00{i}_0000.nii.gz" for i in range(3)),
        *(f"imagesTs/phantomTs00{i}_0000.nii.gz" for i in range(2)),
        *(f"imagesUn/phantomUn00{i}_0000.nii.gz" for i in range(2)),
        *(f"labelsTr/phantomTr00{i}.nii.gz" for i in range(3)),
        *(f"labelsTs/phantomTs00{i}.nii.gz" for i in range(2)),
    ]
    geometries = set()
    for path in sorted(folder.glob("images*/*")):
        image = sitk.ReadImage(str(path))
        turn = np.array(image.GetDirection()).reshape(3, 3)
        assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-5)
        assert 0.001 < np.abs(turn - np.eye(3)).max() < 0.4, "a small turn"
        assert np.abs(image.GetOrigin()).max() > 1
        assert np.allclose(image.GetSpacing(), (3, 3, 14), rtol=0.041)
        assert all(
            abs(n - typical) <= spread
            for n, typical, spread in zip(image.GetSize(), (48, 48, 4), (3, 3, 1), strict=True)
        )
        geometries.add((image.GetSpacing(), image.GetOrigin(), image.GetDirection()))
        label = folder / f"labels{path.parent.name[-2:]}" / path.name.replace("_0000", "")
        if path.parent.name != "imagesUn":
            truth = sitk.ReadImage(str(label))
            for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                assert getattr(truth, get)() == getattr(image, get)()
            assert truth.GetPixelID() == sitk.sitkUInt8
    assert len(geometries) == 7, "each case has its own geometry"


def test_same_seed_same_voxels_and_more_cases_leave_the_others(tmp_path):
    a, b, more, other = (tmp_path / f"Dataset90{i}_Phantom" for i in range(4))
    write_dataset(a, n_train=2, n_test=1, seed=4, **SMALL)
    write_dataset(b, n_train=2, n_test=1, seed=4, **SMALL)
    write_dataset(more, n_train=3, n_test=1, seed=4, n_unlabeled=1, **SMALL)
    write_dataset(other, n_train=2, n_test=1, seed=5, **SMALL)
    first, second, third, fourth = (voxels_of(folder) for folder in (a, b, more, other))
    assert first.keys() == second.keys() == fourth.keys() < third.keys()
    for name, voxels in first.items():
        assert voxels.tobytes() == second[name].tobytes() == third[name].tobytes()
        assert voxels.tobytes() != fourth[name].tobytes()
    images = [voxels.tobytes() for name, voxels in third.items() if "images" in name]
    assert len(set(images)) == len(images) == 5, "no case is another's copy"


@pytest.mark.parametrize("name", ["Phantom", "Dataset90_Phantom", "Dataset900", "Dataset900_Ph/x"])
def test_a_folder_that_nnunet_would_not_find_is_refused(name, tmp_path):
    with pytest.raises(CollabError, match=r"named DatasetXXX_Name.*Choose a free name"):
        write_dataset(tmp_path / name, n_train=1, n_test=0, seed=0, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "Dataset900_Phantom"
    folder.mkdir()
    with pytest.raises(CollabError, match=r"must be new \(nothing is overwritten\)"):
        write_dataset(folder, n_train=1, n_test=0, seed=0, **SMALL)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"n_train": 0}, {"n_test": -1}, {"n_unlabeled": -1}, {"seed": -1}])
def test_too_small_numbers_are_refused(wrong, tmp_path):
    numbers = {"n_train": 1, "n_test": 0, "seed": 0} | wrong
    with pytest.raises(CollabError, match=r"n_train must be at least 1.*got .*(0|-1)"):
        write_dataset(tmp_path / "Dataset900_Phantom", **numbers, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = tmp_path / "Dataset900_Phantom"
    with pytest.raises(CollabError, match="kind is one of"):
        write_dataset(folder, n_train=1, n_test=0, seed=0, kind="no such kind", **SMALL)

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(phantom.sitk, "WriteImage", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_dataset(folder, n_train=1, n_test=0, seed=0, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_does_not_get_into_the_dataset(tmp_path):
    left = tmp_path / ".Dataset900_Phantom.partial" / "imagesTr"
    left.mkdir(parents=True)
    (left / "phantomTr007_0000.nii.gz").write_bytes(b"half")
    write_dataset(tmp_path / "Dataset900_Phantom", n_train=1, n_test=0, seed=0, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset900_Phantom"]
    assert [p.name for p in (tmp_path / "Dataset900_Phantom" / "imagesTr").iterdir()] == ["phantomTr000_0000.nii.gz"]
