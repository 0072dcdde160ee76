"""Unlabeled cases come out as nnU-Net's labeled ones do, without a label, and never half."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import blosc2
import numpy as np
import pytest
import tiny
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from unlabeled_images import contents, make_case, make_dataset, make_plans, preprocess, save_image

from nnunet_collab.cli import main
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import case_images
from nnunet_collab.data import unlabeled_preprocessing
from nnunet_collab.data.unlabeled_preprocessing import (
    complete_cases,
    preprocessing_fingerprint,
    unlabeled_cases,
    unlabeled_folder,
)
from nnunet_collab.demo.phantom import write_dataset

NAME = "Dataset007_Tiny"
DATASET_JSON = {**tiny.make_dataset_json(), "channel_names": {"0": "T1", "1": "T2"}}
SHAPE = (4, 12, 10)  # z, y, x
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path)


def test_values_and_form(dataset):
    raw, preprocessed = dataset
    voxels = make_case(raw / "imagesUn", "a", seed=0)
    folder = preprocess(raw, preprocessed)
    assert folder == preprocessed / "nnUNetPlans_2d_imagesUn"
    assert complete_cases(folder) == ["a", "b", "c"]
    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case("a")
    inside = voxels[:, :, 2:-2, 2:-2].astype(np.float64)  # cropped to what is not zero
    first = (inside[0] - inside[0].mean()) / inside[0].std()
    np.testing.assert_allclose(data[0], first, atol=1e-5)
    np.testing.assert_allclose(data[1], inside[1], rtol=1e-6)
    assert data.dtype == np.float32
    assert seg.dtype == np.int16
    assert set(np.unique(seg[:])) == {0}
    assert properties["class_locations"] == {}
    assert properties["shape_before_cropping"] == SHAPE


def test_outside_of_the_body_is_marked(dataset):
    raw, preprocessed = dataset
    voxels = make_case(raw / "imagesUn", "a", seed=0)
    voxels[:, :, 2:5, 2:5] = 0  # a corner of the body, so that it is no box
    for channel in range(2):
        save_image(raw / "imagesUn" / f"a_{channel:04d}.nii.gz", voxels[channel])
    _, seg, _, _ = nnUNetDatasetBlosc2(str(preprocess(raw, preprocessed))).load_case("a")
    assert (seg[:][0] == -1).sum() == SHAPE[0] * 9
    assert set(np.unique(seg[:])) == {-1, 0}


def test_the_same_files_as_nnunet_writes_for_a_labeled_case(dataset, tmp_path):
    raw, preprocessed = dataset
    make_case(raw / "imagesUn", "a", 0, spacing_mm=(0.8, 0.8, 1.5))  # must be resampled
    label = np.zeros(SHAPE, np.uint8)
    label[:, 4:6, 4:6] = 1
    save_image(raw / "labelsTr" / "a.nii.gz", label, (0.8, 0.8, 1.5))
    manager = PlansManager(make_plans())
    images = [str(path) for path in case_images(raw / "imagesUn", ".nii.gz")["a"]]
    stock = tmp_path / "stock"
    stock.mkdir()
    configuration = manager.get_configuration("3d_fullres")
    target = str(raw / "labelsTr" / "a.nii.gz")
    DefaultPreprocessor(verbose=False).run_case_save(
        str(stock / "a"), images, target, manager, configuration, DATASET_JSON
    )
    folder = preprocess(raw, preprocessed, configuration="3d_fullres")
    (want, _, _, theirs), (got, _, _, ours) = (nnUNetDatasetBlosc2(str(f)).load_case("a") for f in (stock, folder))
    assert want.shape == got.shape != (2, *SHAPE)
    assert (want[:] == got[:]).all()
    for ending in (".b2nd", "_seg.b2nd"):
        a, b = (blosc2.open(str(f / f"a{ending}")) for f in (stock, folder))
        assert (a.chunks, a.blocks, a.dtype) == (b.chunks, b.blocks, b.dtype)
    assert theirs.keys() == ours.keys()
    assert theirs["class_locations"] != {} == ours["class_locations"]


def test_no_label_is_given_even_if_there_is_one(dataset, monkeypatch):
    raw, preprocessed = dataset
    for folder in ("labelsUn", "labelsTr", "imagesUn"):
        save_image(raw / folder / "a.nii.gz", np.ones(SHAPE, np.uint8))
    given, run_case = [], DefaultPreprocessor.run_case
    read = []
    monkeypatch.setattr("nnunetv2.imageio.simpleitk_reader_writer.SimpleITKIO.read_seg", lambda *_: read.append(_))

    def recorded(self, images, label, *rest):
        given.append((len(images), label))
        return run_case(self, images, label, *rest)

    monkeypatch.setattr(DefaultPreprocessor, "run_case", recorded)
    preprocess(raw, preprocessed)
    assert given == [(2, None)] * 3
    assert read == []


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_an_interruption_leaves_whole_cases_and_a_second_run_goes_on(dataset, monkeypatch, ending):
    raw, preprocessed = dataset
    replace = unlabeled_preprocessing.os.replace

    def interrupted(source, target):
        if str(target).endswith(f"/b{ending}"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(unlabeled_preprocessing.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            preprocess(raw, preprocessed)
    folder = unlabeled_folder(preprocessed, "nnUNetPlans_2d")
    assert complete_cases(folder) == ["a"]
    assert not (folder / ".partial").exists()
    preprocess(raw, preprocessed, ["b", "c"])
    assert complete_cases(folder) == ["a", "b", "c"]
    fresh = preprocess(raw, preprocessed.parent / "fresh")
    assert contents(folder) == contents(fresh)


def test_redoing_a_case_never_pairs_old_properties_with_a_new_image(dataset, monkeypatch):
    raw, preprocessed = dataset
    folder = preprocess(raw, preprocessed)

    replace = unlabeled_preprocessing.os.replace

    def interrupted(source, target):
        if str(target).endswith("_seg.b2nd"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(unlabeled_preprocessing.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess(raw, preprocessed, ["b"])
    assert complete_cases(folder) == ["a", "c"]
    assert sorted(path.name for path in folder.glob("b*")) == ["b.b2nd", "b_seg.b2nd"]  # of two runs, and not whole


def test_what_a_killed_run_left_is_cleared(dataset):
    raw, preprocessed = dataset
    folder = unlabeled_folder(preprocessed, "nnUNetPlans_2d")
    (folder / ".partial").mkdir(parents=True)
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        (folder / ".partial" / f"a{ending}").write_bytes(b"half")
    (folder / "b.b2nd").write_bytes(b"half")
    assert complete_cases(folder) == []
    preprocess(raw, preprocessed)
    assert contents(folder) == contents(preprocess(raw, preprocessed.parent / "fresh"))


def test_a_failing_case_is_named_and_the_others_are_kept(dataset, monkeypatch):
    raw, preprocessed = dataset
    run_case = DefaultPreprocessor.run_case

    def failing(self, images, *rest):
        if "b_0000" in images[0]:
            raise MemoryError("no room\nat all")
        return run_case(self, images, *rest)

    monkeypatch.setattr(DefaultPreprocessor, "run_case", failing)
    with pytest.raises(CollabError, match=r"case b: it could not be preprocessed \(MemoryError: no room\)\..*-np"):
        preprocess(raw, preprocessed)
    assert complete_cases(unlabeled_folder(preprocessed, "nnUNetPlans_2d")) == ["a"]


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_report_failures(dataset):
    raw, preprocessed = dataset
    alone = preprocess(raw, preprocessed)
    together = preprocess(raw, preprocessed.parent / "together", processes=2)
    assert contents(alone) == contents(together)
    (raw / "imagesUn" / "b_0001.nii.gz").write_bytes(b"no image")
    with pytest.raises(CollabError, match="case b: it could not be preprocessed"):
        preprocess(raw, preprocessed.parent / "failing", processes=2)


# ---------------------------------------------------------------- the fingerprint


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("configurations", "3d_fullres", "spacing"), [1.0, 1.0, 1.1]),
        (("configurations", "3d_fullres", "normalization_schemes"), ["NoNormalization"] * 2),
        (("configurations", "3d_fullres", "use_mask_for_norm"), [True, False]),
        (("configurations", "3d_fullres", "preprocessor_name"), "Other"),
        (("configurations", "3d_fullres", "resampling_fn_data_kwargs"), {}),
        (("configurations", "3d_fullres", "resampling_fn_seg"), "other"),
        (("transpose_forward",), [1, 0, 2]),
        (("image_reader_writer",), "NibabelIO"),
        (("foreground_intensity_properties_per_channel", "0", "mean"), 1.5),
    ],
)
def test_the_fingerprint_sees_what_determines_preprocessing(place, value):
    plans = make_plans()
    before = preprocessing_fingerprint(plans, "3d_bs4", DATASET_JSON)
    assert len(before) == 64
    inner = plans
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert preprocessing_fingerprint(plans, "3d_bs4", DATASET_JSON) != before


@pytest.mark.parametrize("change", [{"channel_names": {"0": "T2", "1": "T1"}}, {"file_ending": ".nrrd"}])
def test_the_fingerprint_sees_the_dataset(change):
    before, after = (preprocessing_fingerprint(make_plans(), "2d", d) for d in (DATASET_JSON, DATASET_JSON | change))
    assert before != after


def test_the_fingerprint_ignores_what_concerns_training_and_the_order_of_entries():
    plans = make_plans()
    before = preprocessing_fingerprint(plans, "3d_fullres", DATASET_JSON)
    assert preprocessing_fingerprint(plans, "3d_bs4", DATASET_JSON) == before
    untouched = copy.deepcopy(plans)
    entry = plans["configurations"]["3d_fullres"]
    entry |= {"batch_size": 9, "patch_size": [8, 8, 8], "architecture": {}, "batch_dice": False}
    plans["configurations"]["3d_fullres"] = dict(reversed(entry.items()))
    labels = DATASET_JSON | {"labels": {"background": 0}, "numTraining": 99}
    assert preprocessing_fingerprint(plans, "3d_fullres", labels) == before
    assert preprocessing_fingerprint(plans, "2d", DATASET_JSON) != before
    assert untouched == make_plans()


# ---------------------------------------------------------------- what the trainer asks


def ask(raw, preprocessed, configuration="2d", plans=None):
    return unlabeled_cases(preprocessed, plans or make_plans(), configuration, DATASET_JSON, raw)


def test_cases_for_training(dataset, tmp_path):
    raw, preprocessed = dataset
    assert ask(None, preprocessed) == []
    preprocess(raw, preprocessed, ["c", "a"])
    assert ask(None, preprocessed) == ["a", "c"]
    assert ask(tmp_path / "gone", preprocessed) == ["a", "c"]
    with pytest.raises(CollabError) as caught:
        ask(raw, preprocessed)
    assert "2d: every case of imagesUn must be preprocessed; 1 of 3 are not in " in str(caught.value)
    assert "nnUNetPlans_2d_imagesUn: b. Run: nnunet_collab preprocess_unlabeled -d 7 -c 2d (or" in str(caught.value)
    preprocess(raw, preprocessed, ["b"])
    assert ask(raw, preprocessed) == ["a", "b", "c"]
    with pytest.raises(CollabError, match="3d_bs4: every case of imagesUn must be preprocessed; 3 of 3"):
        ask(raw, preprocessed, "3d_bs4")
    shutil.rmtree(raw / "imagesUn")
    assert ask(raw, preprocessed) == ["a", "b", "c"]
    assert ask(raw, preprocessed, "3d_fullres") == []


def test_cases_of_other_plans_are_refused(dataset):
    raw, preprocessed = dataset
    preprocess(raw, preprocessed)
    plans = make_plans() | {"plans_name": "mine"}
    plans["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    message = r"these were preprocessed with other plans\. Preprocess them again: nnunet_collab preprocess_unlabeled "
    with pytest.raises(CollabError, match=message + "-d 7 -c 2d -p mine --overwrite"):
        ask(raw, preprocessed, plans=plans)


@pytest.mark.parametrize("record", [None, "[]", "no json", "{}", '{"plans": null}'])
def test_cases_without_a_record_are_refused(dataset, record):
    raw, preprocessed = dataset
    folder = preprocess(raw, preprocessed)
    (folder / "unlabeled.json").unlink()
    if record is not None:
        (folder / "unlabeled.json").write_text(record)
    with pytest.raises(CollabError, match="other plans"):
        ask(raw, preprocessed)
    for path in folder.glob("*.pkl"):
        path.unlink()
    with pytest.raises(CollabError, match="3 of 3 are not in"):  # an empty folder is no fault
        ask(raw, preprocessed)


def test_the_record_is_the_fingerprint(dataset):
    folder = preprocess(*dataset)
    want = preprocessing_fingerprint(make_plans(), "2d", DATASET_JSON)
    assert json.loads((folder / "unlabeled.json").read_text()) == {"plans": want}
    assert pickle.loads((folder / "a.pkl").read_bytes())["class_locations"] == {}


def test_images_are_grouped_by_case_in_the_order_of_channels(tmp_path):
    names = ["b_0001.png", "b_0000.png", "a_1_0000.png", "a_0000.png.bak", "._b_0000.png", "c.png", "b_00001.png"]
    for name in names:
        (tmp_path / name).touch()
    found = {case: [path.name for path in paths] for case, paths in case_images(tmp_path, ".png").items()}
    assert found == {"a_1": ["a_1_0000.png"], "b": ["b_0000.png", "b_0001.png"]}
    assert case_images(tmp_path / "none", ".png") == {}


@pytest.mark.slow
def test_with_nnunet_s_own_planner_and_loader(tmp_path, monkeypatch):
    """From raw phantoms through nnU-Net's commands: its loader draws from the folder, and its split does not see it."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    raw, preprocessed = (tmp_path / root / "Dataset907_Tiny" for root in ("nnUNet_raw", "nnUNet_preprocessed"))
    write_dataset(raw, n_train=3, n_test=0, n_unlabeled=2, seed=0, shape=(4, 32, 32), spacing_mm=(8, 4, 4))
    plan_and_preprocess_api.extract_fingerprints([907], num_processes=1)
    plan_and_preprocess_api.plan_experiments([907])
    plan_and_preprocess_api.preprocess([907], configurations=["2d"], num_processes=[1])
    assert main(["preprocess_unlabeled", "-d", "907", "-c", "2d", "3d_fullres", "-np", "1"]) == 0
    plans, dataset_json = (json.loads((preprocessed / f).read_text()) for f in ("nnUNetPlans.json", "dataset.json"))
    names = ["phantomUn000", "phantomUn001"]
    for configuration in ("2d", "3d_fullres"):
        assert unlabeled_cases(preprocessed, plans, configuration, dataset_json, raw) == names
    labeled = nnUNetDatasetBlosc2(str(preprocessed / "nnUNetPlans_2d"))
    assert labeled.identifiers == [f"phantomTr{number:03d}" for number in range(3)]
    unlabeled = nnUNetDatasetBlosc2(str(preprocessed / "nnUNetPlans_2d_imagesUn"))
    assert unlabeled.identifiers == names
    manager = PlansManager(plans).get_label_manager(dataset_json)
    batch = nnUNetDataLoader(unlabeled, 4, [16, 16], [16, 16], manager, 0.33).generate_train_batch()
    assert batch["data"].shape == (4, 1, 16, 16)
    assert batch["target"].max() <= 0
