"""Every fault a source can have, planted, and the sentence that tells it."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from raw_source import RULES, pair, save

from nnunet_collab.conversion.source_check import Case, SourceRules, to_nnunet_label, verify_pairs
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.image_io import read_image


def faults(*images: Path, label: Path | None = None, rules: SourceRules = RULES) -> list[str]:
    return verify_pairs([Case("x", images, label)], rules)


def test_a_good_pair_has_none_and_no_cases_are_fine(tmp_path):
    assert verify_pairs([pair(tmp_path, "a_1")], RULES) == []
    assert verify_pairs([], RULES) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"Spacing": (0.5, 0.75, 3.1)}, "spacing must be that of a_1.nrrd, (0.5, 0.75, 3); it is (0.5, 0.75, 3.1)"),
        ({"Origin": (5.0, -4.0, 2.01)}, "origin must be that of a_1.nrrd, (5, -4, 2); it is (5, -4, 2.01)"),
        ({"Direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}, "direction must be that of a_1.nrrd, (0, 1, 0, 1"),
    ],
)
def test_other_grid(tmp_path, change, told):
    case = pair(tmp_path, "a_1")
    label = sitk.ReadImage(str(case.label))
    for what, value in change.items():
        getattr(label, f"Set{what}")(value)
    sitk.WriteImage(label, str(case.label))
    (fault,) = verify_pairs([case], RULES)
    assert fault.startswith(f"case a_1: {case.label}: the {told}")
    assert fault.endswith("Export it again on the image's grid, or leave this case out.")


def test_grids_that_differ_by_rounding_are_the_same(tmp_path):
    case = pair(tmp_path, "a_1")
    label = sitk.ReadImage(str(case.label))
    label.SetSpacing((0.50001, 0.75, 3.0))
    label.SetOrigin((5.0, -4.0, 2.0004))
    sitk.WriteImage(label, str(case.label))
    assert verify_pairs([case], RULES) == []


def test_several_faults_of_one_case(tmp_path):
    case = pair(tmp_path, "a_1")
    label = save(tmp_path / "other.nrrd", np.full((3, 4, 5), 7.5, np.float32))
    found = faults(*case.images, label=label)
    assert len(found) == 4  # values, spacing, origin, direction
    assert "label values must be 0, 255; found 7.5. Copy the label again" in found[0]


def test_label_values(tmp_path):
    voxels = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    label = save(tmp_path / "many.nrrd", voxels)
    assert "found 1, 2, 3, 4, 5, ..." in faults(label=label)[0]
    label = save(tmp_path / "nan.nrrd", np.where(voxels > 2, np.nan, 0).astype(np.float32))
    assert "found nan." in faults(label=label)[0]
    label = save(tmp_path / "nearly.nrrd", np.where(voxels > 2, 255.00002, 0).astype(np.float32))
    assert faults(label=label) == []
    ours = to_nnunet_label(read_image(label), read_image(label), RULES)
    assert np.array_equal(sitk.GetArrayFromImage(ours), voxels > 2)
    assert ours.GetPixelID() == sitk.sitkUInt8


def test_intensities_must_be_finite(tmp_path):
    voxels = np.zeros((3, 4, 5), np.float32)
    voxels[0, 0, :2] = np.nan, np.inf
    (fault,) = faults(save(tmp_path / "a.nrrd", voxels))
    assert "intensities must be finite; 2 voxels are NaN or infinite" in fault


def test_number_of_axes_and_of_values_per_pixel(tmp_path):
    flat = save(tmp_path / "a.png", np.zeros((4, 5), np.uint8))
    color = save(tmp_path / "b.png", np.zeros((4, 5, 3), np.uint8), color=True)
    assert "must have 3 axes; it has 2, size (5, 4). Copy the right file again." in faults(flat)[0]
    rules = replace(RULES, axes=2)
    assert faults(flat, rules=rules) == []
    assert "every pixel must have 1 value(s); it has 3. Copy the right" in faults(color, rules=rules)[0]
    assert "every pixel must have 3 value(s); it has 1" in faults(flat, rules=replace(rules, components=3))[0]
    series = tmp_path / "c.nii"
    nib.save(nib.Nifti1Image(np.zeros((5, 4, 3, 2), np.int16), np.eye(4)), series)
    assert "it has 4, size (5, 4, 3, 2). It may be a time series: replace" in faults(series)[0]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_nifti_that_was_cut_off(tmp_path, ending, endian):
    voxels = np.random.default_rng(0).integers(0, 999, (6, 5, 4)).astype(np.int16)
    path = tmp_path / f"a{ending}"
    image = nib.Nifti1Image(voxels, np.eye(4), nib.Nifti1Header(endianness=endian))
    image.set_data_dtype(np.int16)
    nib.save(image, path)
    assert np.array_equal(sitk.GetArrayFromImage(read_image(path)), voxels.T)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 2, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(CollabError, match=r"cannot be read completely \(.+\)\. Copy or download the file again"):
            read_image(path)


def test_nifti_that_was_compressed_after_being_cut_off_or_has_a_flipped_bit(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 999, (6, 5, 4)).astype(np.int16), np.eye(4)), path)
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(CollabError, match="it holds 591 bytes and needs 592"):
        read_image(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(CollabError, match="cannot be read completely"):
        read_image(path)


def test_no_image_at_all(tmp_path):
    for name in ("a.nii.gz", "a.nrrd", "a.png"):
        (tmp_path / name).write_text("<html>404</html>")
        assert f"{tmp_path / name}: cannot be read completely (" in faults(tmp_path / name)[0]
    assert "cannot be read completely" in faults(tmp_path / "missing.nrrd")[0]


def test_nifti_2_which_simpleitk_cannot_read(tmp_path):
    nib.save(nib.Nifti2Image(np.zeros((5, 4, 3), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    assert "Unable to determine ImageIO reader" in faults(tmp_path / "a.nii.gz")[0]


@pytest.mark.parametrize(
    ("value", "shown"), [(1000.002, "1000.002014"), (3.0100002, "3.010000229"), (254.99, "254.9900055"), (7, "7")]
)
def test_values_are_told_with_all_their_digits(tmp_path, value, shown):
    label = save(tmp_path / "scaled.nrrd", np.full((3, 4, 5), value, np.float32))
    assert f"found {shown}. Copy" in faults(label=label)[0]
