"""Writing a raw dataset from sources of several formats, read back and compared with the source."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from raw_source import INFO, LA, RULES, make_dataset, refusal, save

from nnunet_collab.conversion import voxel_values
from nnunet_collab.conversion.raw_dataset import RawDataset, write_raw_dataset
from nnunet_collab.conversion.raw_target import Target
from nnunet_collab.conversion.source_check import Case, SourceRules
from nnunet_collab.core.image_io import read_image


@pytest.fixture
def dataset(tmp_path) -> RawDataset:
    return make_dataset(tmp_path / "source")


def test_other_format_and_label_values(dataset, raw):
    folder = write_raw_dataset(dataset, Target(5, "LA"))
    for case, role in [*((case, "Tr") for case in dataset.train), (dataset.test[0], "Ts")]:
        was, was_label = sitk.ReadImage(str(case.images[0])), sitk.ReadImage(str(case.label))
        image = sitk.ReadImage(str(folder / f"images{role}" / f"{case.name}_0000.nii.gz"))
        label = sitk.ReadImage(str(folder / f"labels{role}" / f"{case.name}.nii.gz"))
        assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(was))
        assert np.array_equal(sitk.GetArrayFromImage(label), sitk.GetArrayFromImage(was_label) // 255)
        assert image.GetPixelID() == was.GetPixelID()
        assert label.GetPixelID() == sitk.sitkUInt8
        for what in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(image, what)(), getattr(was, what)(), atol=1e-6)
            assert np.allclose(getattr(label, what)(), getattr(was, what)(), atol=1e-6)


def test_channels_whose_grids_differ_by_rounding_come_out_on_one(tmp_path, raw):
    cases = []
    for name in ("a_1", "b_1"):
        shape = (3, 4, 5)
        channels = [
            save(tmp_path / f"{name}_{c}.nii.gz", np.full(shape, c, np.int16), Origin=(1.0 + c / 1e4, 0.0, 0.0))
            for c in range(2)
        ]
        label = save(tmp_path / f"{name}_l.nii.gz", np.zeros(shape, np.uint8), Origin=(1.0, 0.0, 1e-4))
        cases.append(Case(name, tuple(channels), label))
    info = replace(INFO, channel_names={"0": "T1", "1": "T2"}, extra={"regions_class_order": [1]})
    folder = write_raw_dataset(RawDataset(info, RULES, cases), Target(5, "LA"))
    first, second = (folder / "imagesTr" / f"a_1_000{c}.nii.gz" for c in range(2))
    assert first.read_bytes() == cases[0].images[0].read_bytes()
    origins = {sitk.ReadImage(str(p)).GetOrigin() for p in (first, second, folder / "labelsTr" / "a_1.nii.gz")}
    assert origins == {(1.0, 0.0, 0.0)}
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(second))) == 1).all()
    assert json.loads((folder / "dataset.json").read_text())["regions_class_order"] == [1]


@pytest.mark.parametrize(
    "geometry",
    [
        {"Spacing": (0.50001, 0.75, 3.0)},
        {"Spacing": (0.5, 0.7499, 3.001)},
        {"Origin": (5.0005, -4.0, 2.0)},
        {"Direction": (0, 1, 0, 1, 0, 0, 0, 0.0001, -1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_a_mask_on_a_grid_that_differs_by_rounding_gets_the_images(tmp_path, raw, geometry, ending):
    on_image = {"Spacing": (0.5, 0.75, 3.0), "Origin": (5.0, -4.0, 2.0), "Direction": (0, 1, 0, 1, 0, 0, 0, 0, -1)}
    cases = []
    for name in ("a_1", "b_1"):
        image = save(tmp_path / f"{name}{ending}", np.ones((3, 4, 5), np.int16), **on_image)
        label = save(tmp_path / f"{name}_l{ending}", np.zeros((3, 4, 5), np.uint8), **{**on_image, **geometry})
        cases.append(Case(name, (image,), label))
    folder = write_raw_dataset(RawDataset(INFO, RULES, cases), Target(5, "LA"))
    written = [sitk.ReadImage(str(folder / name)) for name in ("imagesTr/a_1_0000.nii.gz", "labelsTr/a_1.nii.gz")]
    for what in on_image:
        image, label = (getattr(volume, f"Get{what}")() for volume in written)
        assert image == label
        assert np.allclose(image, on_image[what], atol=1e-6)


def test_color_pictures_with_a_reader_that_mends_the_labels(tmp_path, raw):
    def read_mask(path: Path) -> sitk.Image:
        return read_image(path) > 127  # JPEG smears the two values of a mask

    rng = np.random.default_rng(0)
    cases, masks = [], {}
    for name in ("a_1", "b_1"):
        picture = save(tmp_path / f"{name}.jpg", rng.integers(0, 255, (8, 8, 3)).astype(np.uint8), color=True)
        masks[name] = np.kron(rng.integers(0, 2, (1, 1)), np.ones((8, 8))).astype(np.uint8)
        cases.append(Case(name, (picture,), save(tmp_path / f"{name}_mask.jpg", masks[name] * 250 + 2)))
    rules = SourceRules({0: 0, 1: 1}, axes=2, components=3, read_label=read_mask)
    info = replace(INFO, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})
    folder = write_raw_dataset(RawDataset(info, rules, cases), Target(5, "Polyps"))
    for case in cases:
        picture = sitk.ReadImage(str(folder / "imagesTr" / f"{case.name}_0000.png"))
        assert np.array_equal(
            sitk.GetArrayFromImage(picture), sitk.GetArrayFromImage(sitk.ReadImage(str(case.images[0])))
        )
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{case.name}.png")))
        assert np.array_equal(label, masks[case.name])


def test_one_name_twice_and_one_patient_in_two_roles(dataset, raw):
    twice = replace(dataset, train=[*dataset.train, dataset.train[0]], test=[dataset.train[2]], problems=["mine: so."])
    message = refusal(twice)
    assert "the source has 3 faults" in message
    assert "\n- mine: so.\n" in message
    assert "case a_1: every name must occur once; found" in message
    assert "patient b: a patient must be either in training or in testing; found in" in message
    assert not raw.exists()


def test_a_name_that_the_pattern_does_not_match_is_the_converters_mistake(dataset, raw):
    odd = replace(dataset, train=[*dataset.train, replace(dataset.train[0], name="odd")])
    with pytest.raises(ValueError, match=r"patient_of: case 'odd' does not match the pattern '\(\\\\w"):
        write_raw_dataset(odd, Target(5, "LA"))
    assert not raw.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"Spacing": (0.5004, 0.75, 3.0)},
        {"Spacing": (0.5, 0.7494, 2.998)},
        {"Origin": (5.004, -4.004, 2.0)},
        {"Direction": (0.0005, 1, 0, 1, 0, 0, 0, 0, -1)},
    ],
    ids=["spacing", "spacing-of-two-axes", "origin", "direction"],
)
def test_a_mask_whose_grid_differs_within_tolerance_gets_the_image_s_geometry(tmp_path, raw, change):
    """nnU-Net compares them and refuses a mask of another spacing, or resamples it by a voxel."""
    dataset = make_dataset(tmp_path / "source")
    for case in (*dataset.train, *dataset.test):
        label = sitk.ReadImage(str(case.label))
        for what, value in change.items():
            getattr(label, f"Set{what}")(value)
        sitk.WriteImage(label, str(case.label))
    folder = write_raw_dataset(dataset, LA)
    for role, cases in (("Tr", dataset.train), ("Ts", dataset.test)):
        for case in cases:
            label = sitk.ReadImage(str(folder / f"labels{role}" / f"{case.name}.nii.gz"))
            image = sitk.ReadImage(str(folder / f"images{role}" / f"{case.name}_0000.nii.gz"))
            assert label.GetSize() == image.GetSize()
            assert label.GetSpacing() == image.GetSpacing() == pytest.approx((0.5, 0.75, 3.0), rel=1e-6)
            assert label.GetOrigin() == image.GetOrigin() == pytest.approx((5.0, -4.0, 2.0), rel=1e-6)
            assert label.GetDirection() == image.GetDirection()


def test_a_full_disk_while_an_image_is_written_is_one_message(tmp_path, raw, monkeypatch):
    def full(*_args, **_more):
        raise RuntimeError("sitk::ERROR: a line of source code\nitk::ERROR: File cannot be written")

    dataset = make_dataset(tmp_path / "source")
    monkeypatch.setattr(voxel_values.sitk, "WriteImage", full)
    assert "could not be written (itk::ERROR: File cannot be written). Free some disk space" in refusal(dataset)
