"""The phantom keeps its promises: anatomy, determinism, geometry, the four kinds of labels, a task worth learning."""

from __future__ import annotations

import json
import multiprocessing.dummy
from types import SimpleNamespace

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
ONE = {"n_train": 1, "n_test": 0, "seed": 0, **SMALL}
GRIDS = [
    (SHAPE, SPACING_MM),
    ((5, 32, 40), (12.0, 4.5, 4.0)),  # coarse
    ((3, 24, 24), (10.0, 2.0, 2.0)),  # a field of view of 48 mm
    ((10, 160, 150), (6.0, 2.0, 2.2)),  # the whole chest
    ((1, 64, 64), (8.0, 2.0, 2.0)),  # one slice
]


def cases(n, kind="plain", shape=SHAPE, spacing_mm=SPACING_MM, seed=0):
    rngs = [np.random.default_rng([seed, i]) for i in range(n)]
    return [make_case(rng, shape=shape, spacing_mm=spacing_mm, kind=kind) for rng in rngs]


def dice(got, want):
    return [2 * np.sum((got == c) & (want == c)) / np.sum((got == c).astype(int) + (want == c)) for c in (1, 2, 3)]


def voxels_of(folder):
    files = sorted(folder.rglob("*.nii.gz"))
    return {p.relative_to(folder).as_posix(): sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in files}


@pytest.mark.parametrize(("shape", "spacing_mm"), GRIDS)
def test_types_values_and_a_pool_that_touches_only_pool_and_wall(shape, spacing_mm):
    for image, labels in cases(8, shape=shape, spacing_mm=spacing_mm):
        assert (image.shape, image.dtype) == (shape, np.float32)
        assert (labels.shape, labels.dtype) == (shape, np.uint8)
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        walled = np.pad(labels, ((0, 0), (1, 1), (1, 1)))  # zeros: a pool at the border would be found too
        for z, y, x in np.argwhere(walled == 3):
            around = walled[z, y - 1, x], walled[z, y + 1, x], walled[z, y, x - 1], walled[z, y, x + 1]
            assert set(around) <= {2, 3}


def test_the_classes_are_there_whole_and_in_their_place():
    for _, labels in cases(25):
        for c in (1, 2, 3):
            assert np.sum(labels == c) > 200
            assert ndimage.label(labels == c)[1] == 1, "one connected part each"
        beside_right = ndimage.binary_dilation(labels == 1)
        assert (beside_right & (labels == 2)).sum() > 50, "the right ventricle lies on the ring"
        assert not (beside_right & (labels == 3)).any()
        for plane in labels:
            if (plane == 1).any():
                pool, right = (np.argwhere(plane == c).mean(axis=0) for c in (3, 1))
                assert np.hypot(*(pool - right)) * 1.5 > 15, "mm between the ventricles' centers"
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
    ratio = [np.median(image[labels == 1]) / np.median(image[labels == 2]) for image, labels in drawn]
    assert min(ratio) < 1.7 < 2 < max(ratio), "the right ventricle's contrast"
    centers = np.array([np.argwhere(labels == 3).mean(axis=0) for _, labels in drawn])
    assert (centers.std(axis=0) > (0.3, 1, 1)).all()
    for i, (_, a) in enumerate(drawn):
        assert all(np.mean(a[a > 0] == b[a > 0]) < 0.97 for _, b in drawn[i + 1 :])


def test_the_same_generator_gives_the_same_case_and_the_image_ignores_the_kind():
    plain = cases(3)
    for kind in ("plain", *LABELS_OF_KIND):
        for (image, labels), (again, of_kind) in zip(plain, cases(3, kind=kind), strict=True):
            assert image.tobytes() == again.tobytes()
            assert (of_kind[of_kind != 4] == labels[of_kind != 4]).all()
            assert (of_kind == 4).any() == ("ignore" in kind)
    assert cases(1, seed=1)[0][0].tobytes() != plain[0][0].tobytes()


@pytest.mark.parametrize("kind", ["ignore", "regions_ignore"])
def test_sparse_annotation_keeps_scribbles_and_whole_slices(kind):
    for _, labels in cases(12, kind=kind):
        ignored = np.array([np.mean(plane == 4) for plane in labels])
        assert np.sum(ignored > 0) == 5, "60 % of 8 slices"
        assert ((ignored[ignored > 0] > 0.6) & (ignored[ignored > 0] < 0.98)).all(), "most of a sparse slice, not all"
        assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    [(_, alone)] = cases(1, kind=kind, shape=(1, 64, 64), spacing_mm=(8.0, 2.0, 2.0))
    assert 0.6 < np.mean(alone == 4) < 1


def test_intensity_alone_fails_though_the_parts_of_the_heart_differ():
    """Classifiers that know each class's mean or its whole histogram, of z-scored images, and even this very data."""
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
    for image, labels in cases(16):
        assert np.median(image[labels == 3]) > 1.4 * np.median(image[labels == 2])


def test_waves_are_computed_along_the_axes_and_not_in_every_voxel(monkeypatch):
    """What makes a case quick to draw: 16 waves of a field are products of one exponential per axis."""
    exponentials, exp = [], np.exp

    def counted(x, *args, **kwargs):
        exponentials.append(np.size(x) if np.iscomplexobj(x) else 0)
        return exp(x, *args, **kwargs)

    monkeypatch.setattr(np, "exp", counted)
    cases(1)
    assert 0 < sum(exponentials) <= 3 * 16 * (1 + sum(SHAPE)), "of three fields; every voxel would be 3 500 000"


def test_wrong_arguments_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(CollabError, match=r"plain, regions, ignore, regions_ignore; got 'scribble'"):
        make_case(rng, shape=SHAPE, spacing_mm=SPACING_MM, kind="scribble")
    with pytest.raises(ValueError, match=r"shape must be >= \(1, 16, 16\).*got \(8, 8, 96\)"):
        make_case(rng, shape=(8, 8, 96), spacing_mm=SPACING_MM)
    with pytest.raises(ValueError, match=r"spacing_mm > 0; got .*\(8, 0, 1\)"):
        make_case(rng, shape=SHAPE, spacing_mm=(8, 0, 1))


@pytest.mark.parametrize("kind", sorted(LABELS_OF_KIND))
def test_nnunet_accepts_the_kind(kind, tmp_path, capfd, monkeypatch):
    folder = tmp_path / "Dataset900_Phantom"
    write_dataset(folder, n_train=2, n_test=1, seed=3, kind=kind, n_unlabeled=1, **SMALL)
    # Threads instead of nnU-Net's spawned processes: the same checks, without importing torch in each.
    monkeypatch.setattr(verify, "multiprocessing", SimpleNamespace(get_context=lambda _: multiprocessing.dummy))
    verify.verify_dataset_integrity(str(folder), num_processes=1)
    assert not {"Warning:", "Error:"} & set(capfd.readouterr().out.split())

    about = json.loads((folder / "dataset.json").read_text())
    manager = LabelManager(about["labels"], about.get("regions_class_order"))
    assert manager.has_regions == ("regions" in kind)
    assert manager.all_labels == [0, 1, 2, 3]
    assert manager.ignore_label == (4 if "ignore" in kind else None)
    volumes = voxels_of(folder)
    train = {int(c) for name, voxels in volumes.items() if name.startswith("labelsTr") for c in np.unique(voxels)}
    assert train == ({0, 1, 2, 3, 4} if "ignore" in kind else {0, 1, 2, 3})
    test = volumes["labelsTs/phantomTs000.nii.gz"]
    assert set(np.unique(test)) == {0, 1, 2, 3}, "test labels are complete"
    if "regions" in kind:
        # nnU-Net paints region after region in the order of dataset.json: the truth must survive there and back.
        assert manager.foreground_regions == [(1, 2, 3), (2, 3), 3]
        regions = np.stack([np.isin(test, region) for region in manager.foreground_regions]).astype(np.float32)
        assert (manager.convert_probabilities_to_segmentation(torch.from_numpy(regions)).numpy() == test).all()


def test_files_and_geometry(tmp_path):
    folder = tmp_path / "nnUNet_raw" / "Dataset900_Phantom"
    write_dataset(folder, n_train=2, n_test=2, seed=1, n_unlabeled=2, **SMALL)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    images = [f"images{role}/phantom{role}00{i}_0000.nii.gz" for role in ("Tr", "Ts", "Un") for i in (0, 1)]
    truths = [f"labels{role}/phantom{role}00{i}.nii.gz" for role in ("Tr", "Ts") for i in (0, 1)]
    assert sorted(names) == sorted(["dataset.json", *images, *truths]), "no label for imagesUn"
    geometries = []
    for name in images:
        image = sitk.ReadImage(str(folder / name))
        geometries.append((image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()))
        turn = np.array(image.GetDirection()).reshape(3, 3)
        assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-5)
        assert 0.001 < np.abs(turn - np.eye(3)).max() < 0.4, "a small turn"
        assert np.abs(image.GetOrigin()).max() > 1
        assert np.allclose(image.GetSpacing(), (3, 3, 14), rtol=0.041)
        assert (np.abs(np.subtract(image.GetSize(), (48, 48, 4))) <= (3, 3, 1)).all()
        if "Un" not in name:
            truth = sitk.ReadImage(str(folder / name.replace("images", "labels").replace("_0000", "")))
            assert (truth.GetSize(), truth.GetSpacing(), truth.GetOrigin(), truth.GetDirection()) == geometries[-1]
            assert truth.GetPixelID() == sitk.sitkUInt8
    assert len(set(geometries)) == 6, "each case has its own geometry"


def test_same_seed_same_voxels_and_more_cases_leave_the_others(tmp_path):
    first, again, more, other = (tmp_path / f"Dataset90{i}_Phantom" for i in range(4))
    write_dataset(first, n_train=2, n_test=1, seed=4, **SMALL)
    write_dataset(again, n_train=2, n_test=1, seed=4, **SMALL)
    write_dataset(more, n_train=3, n_test=1, seed=4, n_unlabeled=1, **SMALL)
    write_dataset(other, n_train=2, n_test=1, seed=5, **SMALL)
    in_first, in_again, in_more, in_other = (voxels_of(folder) for folder in (first, again, more, other))
    assert in_first.keys() == in_again.keys() == in_other.keys() < in_more.keys()
    for name, voxels in in_first.items():
        assert voxels.tobytes() == in_again[name].tobytes() == in_more[name].tobytes() != in_other[name].tobytes()
    images = {voxels.tobytes() for name, voxels in in_more.items() if "images" in name}
    assert len(images) == 5, "no case is another's copy"


@pytest.mark.parametrize("name", ["Phantom", "Dataset90_Phantom", "Dataset900", "Dataset901_There"])
def test_a_misnamed_or_existing_folder_is_refused(name, tmp_path):
    (tmp_path / "Dataset901_There").mkdir()
    with pytest.raises(CollabError, match=r"must be new .* DatasetXXX_Name.* got .*Choose a free name"):
        write_dataset(tmp_path / name, **ONE)
    assert [p.name for p in tmp_path.rglob("*")] == ["Dataset901_There"]


@pytest.mark.parametrize("wrong", [{"n_train": 0}, {"n_test": -1}, {"n_unlabeled": -1}, {"seed": -1}])
def test_too_small_numbers_are_refused(wrong, tmp_path):
    with pytest.raises(CollabError, match=r"n_train must be at least 1.*got .*(0|-1).*Increase"):
        write_dataset(tmp_path / "Dataset900_Phantom", **{**ONE, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind_and_earlier_remains_do_not_get_in(tmp_path, monkeypatch):
    folder = tmp_path / "Dataset900_Phantom"
    with pytest.raises(CollabError, match="kind must be one of"):
        write_dataset(folder, kind="no such kind", **ONE)
    monkeypatch.setattr(phantom, "generate_dataset_json", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dataset(folder, **ONE)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    remains = tmp_path / ".Dataset900_Phantom.partial" / "imagesTr" / "phantomTr007_0000.nii.gz"
    remains.parent.mkdir(parents=True)
    remains.write_bytes(b"half")
    write_dataset(folder, **ONE)
    assert list(tmp_path.iterdir()) == [folder]
    assert [p.name for p in folder.glob("imagesTr/*")] == ["phantomTr000_0000.nii.gz"]
