"""Metrics against their equations in plain loops, MONAI, surface-distance, and cases that can be done by hand."""

from __future__ import annotations

import math
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

from nnunet_collab.evaluation.metrics import ALL_CLASSES, case_metrics, summarize
from nnunet_collab.evaluation.surface import directed_distances, surface_dice, surface_distances

SHAPES = [((9, 11), (0.7, 2.5)), ((6, 7, 5), (5.0, 0.8, 1.3))]


def random_pair(shape, seed, density=0.3):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < density, rng.random(shape) < density


def smooth_blob(shape, center, radii):
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return sum(((x - c) / r) ** 2 for x, c, r in zip(grid, center, radii, strict=True)) < 1


def boundary(mask, spacing):
    """Centers of the voxels with a face neighbor outside, in mm."""
    points = []
    for voxel in map(tuple, np.argwhere(mask)):
        for axis, step in product(range(mask.ndim), (-1, 1)):
            n = list(voxel)
            n[axis] += step
            if not 0 <= n[axis] < mask.shape[axis] or not mask[tuple(n)]:
                points.append([v * s for v, s in zip(voxel, spacing, strict=True)])
                break
    return points


def reference(prediction, truth, spacing):
    """HD, HD95 and ASD, one voxel and one pair at a time; shares no code with the package."""

    def percentile95(values):
        ordered = sorted(values)
        rank = 0.95 * (len(ordered) - 1)
        low = math.floor(rank)
        return ordered[low] + (rank - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])

    a, b = boundary(prediction, spacing), boundary(truth, spacing)
    there, back = [min(math.dist(p, q) for q in b) for p in a], [min(math.dist(p, q) for q in a) for p in b]
    return max(there + back), max(map(percentile95, (there, back))), sum(there + back) / len(there + back)


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
@pytest.mark.parametrize(("seed", "density"), [(0, 0.1), (1, 0.5), (2, 0.9)])
def test_surface_distances_equal_the_equations_and_monai(shape, spacing, seed, density):
    prediction, truth = random_pair(shape, seed, density)
    got = surface_distances(prediction, truth, spacing)
    assert got == pytest.approx(reference(prediction, truth, spacing), rel=1e-12)

    a, b = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
    options = {"include_background": True, "spacing": spacing}
    monai = [
        compute_hausdorff_distance(a, b, **options),
        compute_hausdorff_distance(a, b, percentile=95, **options),
        compute_average_surface_distance(a, b, symmetric=True, **options),
    ]
    assert got == pytest.approx([value.item() for value in monai], rel=1e-5)  # MONAI works in float32


def surface_dice_of_loops(prediction, truth, spacing, tolerance):
    """Share of surface voxels within the tolerance, one voxel and one pair at a time, in float64."""
    near, total = 0, 0
    for one, other in ((prediction, truth), (truth, prediction)):
        points, others = (boundary(mask, spacing) for mask in (one, other))
        near += sum(min(math.dist(p, q) for q in others) <= tolerance for p in points)
        total += len(points)
    return near / total


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
@pytest.mark.parametrize("tolerance", [0.75, 1.9, 2.7])
def test_the_surface_dice_equals_the_equation_and_monai(shape, spacing, tolerance):
    prediction, truth = random_pair(shape, 3, 0.2)
    got = case_metrics(prediction, truth, spacing, nsd_tolerance=tolerance)
    assert got["nsd"] == pytest.approx(surface_dice_of_loops(prediction, truth, spacing, tolerance), rel=1e-12)
    assert 0 < got["nsd"] < 1
    assert got["nsd_tolerance"] == tolerance
    a, b = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
    monai = compute_surface_dice(a, b, [tolerance], include_background=True, spacing=spacing)
    assert got["nsd"] == pytest.approx(monai.item(), rel=1e-6)
    in_voxels = case_metrics(prediction, truth, None, nsd_tolerance=1.0)
    assert in_voxels["nsd"] == pytest.approx(surface_dice_of_loops(prediction, truth, [1.0] * len(shape), 1.0))


def test_the_surface_dice_of_smooth_objects_is_that_of_surface_distance():
    """Which weighs by area: plates give the same share, smooth objects nearly the same, less so with thick slices."""
    import surface_distance

    def theirs(prediction, truth, spacing, tolerance):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
            return surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)

    for spacing, shape, apart in (((1.0, 1.0, 1.0), (40, 40, 44), 0.05), ((2.5, 0.8, 1.0), (20, 40, 44), 0.1)):
        center, radii = [s / 2 for s in shape], [s / 3 for s in shape]
        prediction = smooth_blob(shape, center, radii)
        for shift, scale in ((0, 1.0), (1, 0.95), (3, 0.8)):
            truth = smooth_blob(shape, [c - shift for c in center], [r * scale for r in radii])
            for tolerance in (2.5, 4.0, 8.0):
                (directed,) = directed_distances(prediction, truth, [spacing])
                want = theirs(prediction, truth, spacing, tolerance)
                assert surface_dice(directed, tolerance) == pytest.approx(want, abs=apart)
    plate, other = np.zeros((2, 12, 9, 9), dtype=bool)
    plate[2:4], other[7:9] = True, True  # between 3 and 5 slices of 2.5 mm apart
    for tolerance, want in ((7.4, 0.0), (12.6, 1.0)):
        (directed,) = directed_distances(plate, other, [spacing])
        assert surface_dice(directed, tolerance) == theirs(plate, other, spacing, tolerance) == want


def test_a_distance_that_is_the_tolerance_is_within_it_and_empty_masks_count_as_missed():
    a, b = np.zeros((2, 3, 4, 30), dtype=bool)
    a[1, 2, 3], b[1, 2, 6] = True, True
    assert case_metrics(a, b, (1, 1, 0.1), nsd_tolerance=0.3)["nsd"] == 1  # 3 * 0.1 is above 0.3 in floating point
    assert case_metrics(a, b, (1, 1, 0.1), nsd_tolerance=0.29)["nsd"] == 0
    none = np.zeros_like(a)
    assert [case_metrics(*pair, (1, 1, 1), nsd_tolerance=2)["nsd"] for pair in ((a, none), (none, a))] == [0, 0]
    assert math.isnan(case_metrics(none, none, (1, 1, 1), nsd_tolerance=2)["nsd"])
    assert "nsd" not in case_metrics(a, b, (1, 1, 1))
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="the tolerance must be a number of at least 0; got"):
            case_metrics(a, b, (1, 1, 1), nsd_tolerance=wrong)


def test_the_volume_error_has_a_sign():
    truth = np.zeros((4, 5), dtype=bool)
    truth[1, :4] = True
    for voxels, want in ((1, -0.75), (4, 0.0), (5, 0.25), (0, -1.0)):
        prediction = np.zeros_like(truth)
        prediction[2, :voxels] = True
        assert case_metrics(prediction, truth, (3, 7))["rve"] == pytest.approx(want, rel=1e-12)
    assert math.isnan(case_metrics(truth, np.zeros_like(truth), (1, 1))["rve"])


def surface_distance_package(prediction, truth, spacing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls names that scipy has deprecated
        import surface_distance

        distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
        robust = [surface_distance.compute_robust_hausdorff(distances, percent) for percent in (100, 95)]
        return [*robust, np.mean(surface_distance.compute_average_surface_distance(distances))]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_cubes_are_apart_by_the_shift_also_by_surface_distance(axis):
    spacing = (3.0, 0.5, 1.25)
    cube = np.zeros((14, 14, 14), dtype=bool)
    cube[3:8, 3:8, 3:8] = True
    got = surface_distances(np.roll(cube, 3, axis), cube, spacing)
    other = surface_distance_package(np.roll(cube, 3, axis), cube, spacing)
    assert got.hd_mm == got.hd95_mm == pytest.approx(3 * spacing[axis], rel=1e-12)
    assert other[:2] == pytest.approx([3 * spacing[axis]] * 2)
    assert 0 < got.asd_mm < 3 * spacing[axis]


def test_smooth_objects_agree_with_surface_distance_within_half_a_voxel_diagonal():
    """It puts points on voxel corners and weighs them by area, so it differs, but by less than the grid can resolve."""
    for shape, spacing in (((40, 44), (1.5, 0.8)), ((20, 40, 44), (2.5, 0.8, 1.0))):
        center, radii = [s / 2 for s in shape], [s / 3 for s in shape]
        prediction = smooth_blob(shape, center, radii)
        truth = smooth_blob(shape, [c - 2 for c in center], [r * 0.9 for r in radii])
        got = surface_distances(prediction, truth, spacing)
        assert got == pytest.approx(surface_distance_package(prediction, truth, spacing), abs=math.hypot(*spacing) / 2)


def test_single_voxels_and_parallel_plates_are_one_distance_apart():
    a, b = np.zeros((2, 6, 9, 9), dtype=bool)
    a[0, 1, 8] = b[5, 8, 0] = True  # at the border of the image, too
    assert surface_distances(a, b, (2.0, 1.0, 0.5)) == pytest.approx([math.sqrt(10**2 + 7**2 + 4**2)] * 3, rel=1e-12)
    plate, other = np.zeros((2, 9, 5, 5), dtype=bool)
    plate[1], other[7] = True, True
    assert surface_distances(plate, other, (2.5, 9.0, 9.0)) == pytest.approx([15.0] * 3, rel=1e-12)


def test_percentile_is_directed_and_average_is_pooled():
    truth = np.zeros((1, 12), dtype=bool)
    truth[0, 0] = True
    prediction = truth.copy()
    prediction[0, 10] = True  # distances there: 0 and 10; back: 0
    got = surface_distances(prediction, truth, (7.0, 1.0))
    assert got == pytest.approx((10.0, 9.5, 10 / 3), rel=1e-12)  # pooled percentile: 9; mean of the two means: 2.5


def test_identical_masks_are_exactly_zero_apart_and_empty_masks_have_no_distance():
    mask, _ = random_pair((6, 7, 5), 4)
    assert surface_distances(mask, mask, (0.1, 0.7, 3.3)) == (0, 0, 0)
    empty = np.zeros_like(mask)
    for pair in ((mask, empty), (empty, mask), (empty, empty)):
        assert all(math.isnan(value) for value in surface_distances(*pair, (1, 1, 1)))


def test_what_must_not_change_the_distances():
    spacing = (5.0, 0.8, 1.3)
    a, b = random_pair((6, 7, 5), 5)
    a[:, 0], b[-1] = True, True  # objects at the border: beyond the image is outside, so padding changes nothing
    want = surface_distances(a, b, spacing)
    assert surface_distances(b, a, spacing) == want
    assert surface_distances(np.pad(a, 2), np.pad(b, 2), spacing) == pytest.approx(want, rel=1e-12)
    assert surface_distances(a[::-1, :, ::-1], b[::-1, :, ::-1], spacing) == pytest.approx(want, rel=1e-12)
    assert surface_distances(a.T, b.T, spacing[::-1]) == pytest.approx(want, rel=1e-12)
    doubled = surface_distances(a, b, [2 * s for s in spacing])
    assert doubled == pytest.approx([2 * value for value in want], rel=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_measured_in_its_plane(axis):
    a, b = random_pair((9, 11), 6, density=0.6)
    spacing = [0.7, 2.5]
    spacing.insert(axis, 999.0)
    got = surface_distances(np.expand_dims(a, axis), np.expand_dims(b, axis), spacing)
    assert got == surface_distances(a, b, (0.7, 2.5))
    one = np.ones((1, 1, 1), dtype=bool)
    assert surface_distances(one, one, (1, 1, 1)) == (0, 0, 0)


def test_errors_of_the_arrays():
    mask = np.ones((4, 4), dtype=bool)
    with pytest.raises(TypeError, match=r"masks must be bool .*; `prediction` is int64\. Compare first"):
        surface_distances(mask.astype(np.int64), mask, (1, 1))
    with pytest.raises(ValueError, match=r"shapes must be equal; got prediction \(4, 4\), truth \(4, 3\)"):
        case_metrics(mask, mask[:, :3], (1, 1))
    with pytest.raises(ValueError, match=r"case_metrics: shapes must be equal; .*keep \(2, 4\)"):
        case_metrics(mask, mask, (1, 1), keep=mask[:2])
    for spacing in ((1, 1, 1), (1, 0), (1, math.nan)):
        with pytest.raises(ValueError, match=r"spacing_mm must be 2 positive numbers, one per axis; got \(1, "):
            surface_distances(mask, mask, spacing)


def test_overlap_equals_counting_sets():
    prediction, truth = random_pair((6, 7, 5), 7)
    p, t = ({tuple(v) for v in np.argwhere(mask)} for mask in (prediction, truth))
    got = case_metrics(prediction, truth, (1, 1, 1))
    assert got["dice"] == pytest.approx(2 * len(p & t) / (len(p) + len(t)), rel=1e-12)
    assert got["jaccard"] == pytest.approx(len(p & t) / len(p | t), rel=1e-12)
    assert got["mae"] == pytest.approx(np.abs(prediction.astype(float) - truth.astype(float)).mean(), rel=1e-12)
    assert (got["missed"], got["false_positive"], got["both_empty"]) == (0, 0, 0)
    got = case_metrics(prediction, truth, (2, 3, 4))
    for spacing, unit in (((2, 3, 4), "mm"), ((1, 1, 1), "voxel")):
        want = surface_distances(prediction, truth, spacing)
        assert (got[f"hd_{unit}"], got[f"hd95_{unit}"], got[f"asd_{unit}"]) == want
    unknown = case_metrics(prediction, truth, None)
    assert [name for name in got if name not in unknown] == ["hd_mm", "hd95_mm", "asd_mm"]
    assert unknown == {name: value for name, value in got.items() if not name.endswith("_mm")}


def test_rule_for_empty_masks():
    some, none = np.zeros((2, 4, 5), dtype=bool)
    some[1, 1:3] = True
    names = ("dice", "jaccard", "mae", "missed", "false_positive", "both_empty")
    nan = pytest.approx(math.nan, nan_ok=True)
    for pair, want in (
        ((none, some), (0, 0, 0.1, 1, 0, 0)),
        ((some, none), (0, 0, 0.1, 0, 1, 0)),
        ((none, none), (nan, nan, 0, 0, 0, 1)),
    ):
        got = case_metrics(*pair, (1, 1))
        assert tuple(got[name] for name in names) == want
        assert (got["hd_mm"], got["hd95_mm"], got["asd_mm"]) == (nan, nan, nan)


def test_ignored_voxels_change_nothing():
    rng = np.random.default_rng(8)
    prediction, truth = random_pair((8, 9), 8)
    keep = rng.random((8, 9)) < 0.7
    want = case_metrics(prediction & keep, truth & keep, (1, 2))
    want["mae"] = (prediction != truth)[keep].mean()
    assert case_metrics(prediction, truth, (1, 2), keep=keep) == pytest.approx(want, rel=1e-12)
    garbage = rng.random((8, 9)) < 0.5
    assert case_metrics(np.where(keep, prediction, garbage), truth, (1, 2), keep=keep) == pytest.approx(want, rel=1e-12)
    nothing = case_metrics(prediction, truth, (1, 2), keep=np.zeros_like(keep))
    assert nothing["both_empty"] == 1
    assert math.isnan(nothing["mae"])


def test_summary_by_hand():
    nan = math.nan
    columns = ["case", "class", "dice", "hd_mm", "mae", "missed", "false_positive", "both_empty"]
    rows = [
        ("a", "liver", 0.9, 4.0, 0.1, 0, 0, 0),
        ("b", "liver", 0.7, 8.0, 0.3, 0, 0, 0),
        ("c", "liver", 0.0, nan, 0.2, 1, 0, 0),
        ("a", "cyst", 0.5, 2.0, 0.0, 0, 0, 0),
        ("b", "cyst", nan, nan, 0.0, 0, 0, 1),
        ("c", "cyst", 0.0, nan, 0.6, 0, 1, 0),
        ("a", "stone", nan, nan, 0.0, 0, 0, 1),
    ]
    summary = summarize(pd.DataFrame(rows, columns=columns)).set_index(["class", "statistic"])
    assert list(summary.index.get_level_values("class").unique()) == ["liver", "cyst", "stone", ALL_CLASSES]
    assert summary.loc[("liver", "mean"), ["dice", "hd_mm", "mae"]].tolist() == pytest.approx([1.6 / 3, 6.0, 0.2])
    assert summary.loc[("liver", "std"), "hd_mm"] == pytest.approx(math.sqrt(8))  # (2^2 + 2^2) / (2 - 1)
    assert summary.loc[("liver", "count"), ["dice", "hd_mm", "mae", "missed"]].tolist() == [3, 2, 3, 1]
    assert summary.loc[("cyst", "count")].tolist() == [2, 1, 3, 0, 1, 1]
    assert summary.loc[("stone", "mean"), ["dice", "hd_mm"]].isna().all()
    overall = summary.loc[ALL_CLASSES]
    assert overall.loc["mean", "dice"] == pytest.approx((1.6 / 3 + 0.25) / 2)  # of class means; no stone anywhere
    assert overall.loc["std", "dice"] == pytest.approx(np.std([0.7, 0.7, 0.0], ddof=1))  # of the cases' means
    assert overall.loc["count", ["dice", "hd_mm", "missed", "false_positive", "both_empty"]].tolist() == [3, 2, 1, 1, 2]
