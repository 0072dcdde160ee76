"""Agreement of segmentations against loops over voxels, and the choice of the stable ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.agreement import (
    Predictions,
    Stability,
    agreement,
    measure_case,
    most_stable,
    uncertain_voxels,
)

PLAIN = {"ring": (1,), "core": (2,)}
REGIONS = {"whole": (1, 2), "core": (2,)}
LABELS = arrays(np.int16, (2, 3, 4), elements=st.integers(0, 2))


def looped_agreement(ensemble, members, classes):
    """Mean Dice by counting voxel after voxel."""
    of_members = []
    for member in members:
        dice = []
        for values in classes.values():
            a = b = both = 0
            for index in np.ndindex(ensemble.shape):
                in_a, in_b = ensemble[index] in values, member[index] in values
                a, b, both = a + in_a, b + in_b, both + (in_a and in_b)
            if a + b:
                dice.append(2 * both / (a + b))
        if dice:
            of_members.append(sum(dice) / len(dice))
    return sum(of_members) / len(of_members) if of_members else math.nan


@pytest.mark.parametrize("classes", [PLAIN, REGIONS], ids=["plain", "regions"])
@settings(max_examples=40, deadline=None)
@given(ensemble=LABELS, members=st.lists(LABELS, min_size=1, max_size=3))
def test_agreement_equals_a_loop_over_voxels(classes, ensemble, members):
    expected = looped_agreement(ensemble, members, classes)
    assert agreement(ensemble, members, classes) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_agreement_by_hand():
    ensemble = np.array([1, 1, 2, 0], np.int16)
    member = np.array([1, 0, 2, 0], np.int16)  # ring: 2 * 1 / 3; core: 1
    assert agreement(ensemble, [member, ensemble], PLAIN) == pytest.approx(((2 / 3 + 1) / 2 + 1) / 2)


def test_a_class_in_neither_is_left_out_and_one_in_only_one_counts_as_0():
    ensemble, member = np.array([1, 0], np.int16), np.array([1, 2], np.int16)
    assert agreement(ensemble, [ensemble], PLAIN) == 1
    assert agreement(ensemble, [member], PLAIN) == 0.5
    assert math.isnan(agreement(0 * ensemble, [0 * ensemble], PLAIN))


@settings(max_examples=40, deadline=None)
@given(ensemble=LABELS, members=st.lists(LABELS, min_size=1, max_size=3))
def test_a_voxel_is_uncertain_if_any_member_disagrees(ensemble, members):
    mask = uncertain_voxels(ensemble, members)
    for index in np.ndindex(ensemble.shape):
        assert mask[index] == any(member[index] != ensemble[index] for member in members)


def stable(**agreements):
    return [Stability(case, value, 0.0, ()) for case, value in agreements.items()]


@pytest.mark.parametrize(
    ("share", "threshold", "kept"),
    [
        (0.5, None, ["c", "a"]),
        (0.3, None, ["c", "a"]),  # of four, rounded up
        (1.0, None, ["c", "a", "b"]),  # d is empty
        (0.25, None, ["c"]),
        (None, 0.8, ["c", "a", "b"]),
        (None, 0.81, ["c"]),
        (None, 0.99, []),
    ],
)
def test_the_most_stable_are_kept(share, threshold, kept):
    found = stable(a=0.8, b=0.8, c=0.9, d=math.nan)
    assert most_stable(found, share=share, threshold=threshold) == kept


def test_a_share_is_not_rounded_up_by_its_binary_form():
    found = stable(**{f"c{i:02d}": 0.5 for i in range(10)})
    assert len(most_stable(found, share=0.3, threshold=None)) == 3  # 0.3 * 10 is 3.0000000000000004 or less


# ---------------------------------------------------------------- files


def save(folder, array, spacing=(1.0, 2.0, 3.0)):
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(folder / "u.nii.gz"))


@pytest.fixture
def predictions(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("ensemble", "one", "two"):
        save(tmp_path / name, rng.integers(0, 3, (2, 3, 4)))
    members = (tmp_path / "one", tmp_path / "two")
    return Predictions(tmp_path / "ensemble", members, ".nii.gz", SimpleITKIO, PLAIN)


def read(folder):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "u.nii.gz"))).astype(np.int16)


def test_a_case_is_measured_from_its_files(predictions):
    ensemble, *members = map(read, (predictions.ensemble, *predictions.members))
    found = measure_case(predictions, "u")
    assert found.agreement == pytest.approx(looped_agreement(ensemble, members, PLAIN))
    unsure = [len({a[i] for a in (ensemble, *members)}) > 1 for i in np.ndindex(ensemble.shape)]
    any_class = [any(a[i] for a in (ensemble, *members)) for i in np.ndindex(ensemble.shape)]
    assert found.uncertain == pytest.approx(sum(unsure) / sum(any_class))
    sure = [ensemble[i] for i, unknown in zip(np.ndindex(ensemble.shape), unsure, strict=True) if not unknown]
    assert found.classes == tuple(name for name, (value,) in PLAIN.items() if value in sure)


def fault(predictions):
    found = measure_case(predictions, "u")
    assert isinstance(found, CollabError)
    return str(found)


def test_what_is_wrong_with_a_file_is_said(predictions):
    one = predictions.members[0]
    save(one, np.full((2, 3, 4), 7))
    assert "must hold the values [0, 1, 2]; got [7.0]" in fault(predictions)
    save(one, np.zeros((2, 3, 4)), spacing=(1.0, 2.0, 4.0))
    assert "the spacing must be that of" in fault(predictions)
    save(one, np.zeros((2, 3, 5)))
    assert "the size must be that of" in fault(predictions)
    (one / "u.nii.gz").write_bytes(b"no image")
    assert "cannot be read completely" in fault(predictions)
    (one / "u.nii.gz").unlink()
    assert "there is no such file" in fault(predictions)
