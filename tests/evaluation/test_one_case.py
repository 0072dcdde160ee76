"""One pair of files: values as the plain way gives them, to the last bit, and every fault that is refused."""

from __future__ import annotations

import json
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from plain_evaluation import plain_evaluation
from scipy.ndimage import gaussian_filter
from skimage import io

import nnunet_collab.evaluation.one_case as module
from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.folders import evaluate_folders
from nnunet_collab.evaluation.one_case import evaluate_case
from nnunet_collab.evaluation.pairing import plan_evaluation

SPACING = (0.7, 0.9, 3.3)  # x, y, z


def write(file, voxels, **geometry):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in (".png", ".bmp", ".tif"):
        return io.imsave(file, voxels, check_contrast=False)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING[: voxels.ndim])
    for what, value in geometry.items():
        getattr(image, f"Set{what}")(value)
    return sitk.WriteImage(image, str(file))


def pair(root, prediction, truth, labels=None, ending=".nii.gz", **geometry):
    """The plan of a folder with one case `c`; the geometry is that of the prediction."""
    labels = labels or {"background": 0, **{f"class {n}": n for n in range(1, 4)}}
    (root / "p").mkdir(parents=True, exist_ok=True)
    (root / "p" / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ending}))
    write(root / "p" / f"c{ending}", prediction, **geometry)
    write(root / "l" / f"c{ending}", truth)
    return plan_evaluation(root / "p", root / "l")


def blobs(shape, classes, seed, share=0.4):
    """Labels in lumps, some classes small or absent."""
    rng = np.random.default_rng(seed)
    lumps = gaussian_filter(rng.standard_normal((classes + 1, *shape)), (0, *[1.0] * len(shape)))
    lumps[0] += np.quantile(lumps, share) * -1
    return lumps.argmax(axis=0).astype(np.uint8)


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


@pytest.mark.parametrize("shape", [(9, 14, 11), (1, 14, 11), (7, 1, 11), (5, 6, 1), (1, 1, 9), (1, 1, 1), (13, 17)])
@pytest.mark.parametrize("labels", [None, REGIONS, {"background": 0, **{f"{n}": n for n in range(1, 31)}}])
def test_values_are_those_of_the_plain_way_to_the_last_bit(tmp_path, shape, labels):
    """Properties that may not matter: where a class lies, whether it is there, the image's borders, stray voxels."""
    classes = len(labels or "1234") - 1
    for seed in range(3):
        rng = np.random.default_rng(seed)
        truth, prediction = blobs(shape, classes, seed), blobs(shape, classes, seed + 50)
        prediction[rng.random(shape) < 0.7] = 0
        if labels is REGIONS:
            prediction[prediction == 4] = 0
        plan = pair(tmp_path / str(seed), prediction, truth, labels)
        (problems, rows) = evaluate_case(plan, "c")
        assert problems == []
        files = [folder / "c.nii.gz" for folder in (plan.predictions, plan.labels)]
        want = plain_evaluation(*files, SimpleITKIO, plan.classes, plan.ignore)
        for got, plain in zip(rows, want, strict=True):
            for name, value in plain.items():
                assert np.array_equal(got[name], value, equal_nan=True), (got["class"], name)


def test_single_voxels_lines_and_plates_are_measured_across_the_thick_axes(tmp_path):
    """A box must not make an axis of one voxel where the image has more."""
    voxels = np.zeros((6, 7, 8), np.uint8)
    voxels[2, 3, 4], voxels[5, 6, 1:7], voxels[0, :, :2], voxels[:, 1, 7] = 1, 2, 3, 3
    for shift in product((0, 1), repeat=3):
        plan = pair(tmp_path / str(shift), np.roll(voxels, shift, (0, 1, 2)), voxels)
        _, rows = evaluate_case(plan, "c")
        want = plain_evaluation(plan.predictions / "c.nii.gz", plan.labels / "c.nii.gz", SimpleITKIO, plan.classes)
        for got, plain in zip(rows, want, strict=True):
            assert {name: got[name] for name in plain} == plain


@pytest.mark.parametrize(
    ("ending", "reader"), [(".png", NaturalImage2DIO), (".bmp", NaturalImage2DIO), (".nrrd", SimpleITKIO)]
)
def test_other_formats_give_the_same(tmp_path, ending, reader):
    plan = pair(tmp_path, blobs((13, 17), 3, 0), blobs((13, 17), 3, 1), ending=ending)
    assert plan.reader is reader
    _, rows = evaluate_case(plan, "c")
    want = plain_evaluation(plan.predictions / f"c{ending}", plan.labels / f"c{ending}", reader, plan.classes)
    for got, plain in zip(rows, want, strict=True):
        assert all(got[name] == value for name, value in plain.items() if name in got)


@pytest.mark.parametrize("seed", range(4))
def test_spacings_of_double_precision_give_the_same_last_bits(tmp_path, seed):
    """NIfTI rounds a spacing to 24 bits, whose products with indices are exact; .nrrd keeps all 53."""
    spacing = np.random.default_rng(seed).uniform(0.3, 5, 3).tolist()
    plan = pair(tmp_path, blobs((11, 14, 12), 3, seed), blobs((11, 14, 12), 3, seed + 9), ending=".nrrd")
    for folder in (plan.predictions, plan.labels):
        image = sitk.ReadImage(str(folder / "c.nrrd"))
        image.SetSpacing(spacing)
        sitk.WriteImage(image, str(folder / "c.nrrd"))
    _, rows = evaluate_case(plan, "c")
    want = plain_evaluation(plan.predictions / "c.nrrd", plan.labels / "c.nrrd", SimpleITKIO, plan.classes)
    for got, plain in zip(rows, want, strict=True):
        assert {name: got[name] for name in plain} == plain


def test_every_file_is_read_once(tmp_path, monkeypatch):
    plan = pair(tmp_path, blobs((5, 6, 7), 3, 0), blobs((5, 6, 7), 3, 1))
    read, original = [], module.read_volume
    monkeypatch.setattr(module, "read_volume", lambda path, *a, **k: read.append(path) or original(path, *a, **k))
    evaluate_folders(plan.predictions, plan.labels, processes=1, progress=False)
    assert sorted(read) == [plan.labels / "c.nii.gz", plan.predictions / "c.nii.gz"]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("side", ["p", "l"], ids=["prediction", "label"])
@pytest.mark.parametrize("share", [0.99, 0.6, 0.2], ids=lambda share: f"{share:.0%}")
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif-2D", ".tif-3D"])
def test_truncated_file_is_refused_and_never_measured(tmp_path, ending, side, share):
    flat = ending in (".png", ".bmp", ".tif-2D")
    voxels = blobs((30, 40) if flat else (8, 30, 40), 3, 0)
    plan = pair(tmp_path, voxels, voxels, ending=ending.split("-")[0])
    assert plan.reader is (NaturalImage2DIO if flat else Tiff3DIO if "tif" in ending else SimpleITKIO)
    file = tmp_path / side / f"c{plan.ending}"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(
        CollabError, match=rf"{side}/c\..*: cannot be read completely \(.+\)\. Copy or download the file"
    ):
        evaluate_folders(tmp_path / "p", tmp_path / "l", processes=1, progress=False)


TURNED = {
    "mirrored": {"Direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)},
    "mirrored with a right header": {"Direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1), "Origin": (10 * 0.7, 0.0, 0.0)},
    "turned by a degree": {"Direction": (0.99985, -0.01745, 0, 0.01745, 0.99985, 0, 0, 0, 1)},
    "axes exchanged": {"Direction": (0, 1, 0, 1, 0, 0, 0, 0, 1)},
}


@pytest.mark.parametrize("geometry", TURNED.values(), ids=TURNED)
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_other_direction_is_refused(tmp_path, ending, geometry):
    voxels = blobs((9, 11, 11), 3, 0)
    plan = pair(tmp_path, voxels[:, :, ::-1], voxels, ending=ending, **geometry)
    problems, rows = evaluate_case(plan, "c")
    assert rows == []
    file = f"{tmp_path / 'p' / 'c'}{ending}"
    told = [problem for problem in problems if problem.startswith(f"{file}: the direction must be that of its label")]
    assert len(told) == 1
    assert told[0].endswith("(x, y, z). Predict the image on which this label was drawn.")


@pytest.mark.parametrize("reader", ["NibabelIO", "SimpleITKIO"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_other_direction_is_refused_by_every_reader_of_nifti(tmp_path, reader, ending):
    voxels = blobs((9, 11, 11), 3, 0)
    pair(tmp_path, voxels[:, :, ::-1], voxels, ending=ending, **TURNED["mirrored with a right header"])
    facts = json.loads((tmp_path / "p" / "dataset.json").read_text())
    (tmp_path / "p" / "dataset.json").write_text(json.dumps({**facts, "overwrite_image_reader_writer": reader}))
    problems, _ = evaluate_case(plan_evaluation(tmp_path / "p", tmp_path / "l"), "c")
    assert {problem.split(": the ")[1].split(" must")[0] for problem in problems} == {"origin", "direction"}


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_a_reader_that_turns_images_upright_measures_a_mirrored_file_right(tmp_path, reader):
    voxels = blobs((9, 11, 11), 3, 0)
    pair(tmp_path, voxels[:, :, ::-1], voxels, **TURNED["mirrored with a right header"])
    facts = json.loads((tmp_path / "p" / "dataset.json").read_text())
    (tmp_path / "p" / "dataset.json").write_text(json.dumps({**facts, "overwrite_image_reader_writer": reader}))
    problems, rows = evaluate_case(plan_evaluation(tmp_path / "p", tmp_path / "l"), "c")
    assert problems == []
    assert [row["dice"] for row in rows] == [1, 1, 1]


OTHER_GRIDS = {
    "origin": {"Origin": (0.0, 0.0, 0.02)},
    "spacing": {"Spacing": (0.7, 0.9, 3.31)},
}


@pytest.mark.parametrize(("what", "geometry"), OTHER_GRIDS.items(), ids=OTHER_GRIDS)
@pytest.mark.parametrize("axes", [2, 3])
def test_other_place_in_the_world_is_refused_and_rounding_is_not(tmp_path, what, geometry, axes):
    voxels = blobs((9, 11, 11)[3 - axes :], 3, 0)
    if axes == 2:
        geometry = {name: value[1:] if name == "Origin" else (0.7, 0.91) for name, value in geometry.items()}
    problems, rows = evaluate_case(pair(tmp_path / "far", voxels, voxels, **geometry), "c")
    assert len(problems) == 1
    assert f"the {what} must be that of its label" in problems[0]
    assert rows == []
    rounded = {"Origin": (1e-4, -1e-4, 6e-3)[:axes], "Spacing": [mm * 1.0005 for mm in SPACING][:axes]}
    problems, rows = evaluate_case(pair(tmp_path / "near", voxels, voxels, **rounded), "c")
    assert problems == []
    assert rows[0]["dice"] == 1


def test_two_and_three_axes_are_not_one_grid(tmp_path):
    plan = pair(tmp_path, blobs((1, 11, 12), 3, 0), blobs((11, 12), 3, 0))
    problems, _ = evaluate_case(plan, "c")
    assert "the size must be that of its label" in problems[0]
    assert "(12, 11); got (12, 11, 1)" in problems[0]


@pytest.mark.parametrize("side", ["p", "l"], ids=["prediction", "label"])
def test_labels_of_a_scaled_nifti_are_rounded_and_others_told_as_they_are(tmp_path, side):
    voxels = blobs((5, 6, 7), 3, 0)
    assert voxels.max() == 3
    plan = pair(tmp_path, voxels, voxels)
    file = tmp_path / side / "c.nii.gz"
    image = sitk.ReadImage(str(file))
    affine = nib.load(file).affine
    scaled = nib.Nifti1Image((voxels * 10).T.astype(np.int16), affine)
    scaled.header.set_slope_inter(0.1000000066, 0)
    nib.save(scaled, file)
    assert not np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), voxels)  # 3.0000002
    problems, rows = evaluate_case(plan, "c")
    assert problems == []
    assert [row["dice"] for row in rows] == [1, 1, 1]
    for value, told in ((3.0011, "3.0011"), (2.5, "2.5"), (np.nan, "nan"), (np.inf, "inf"), (-1, "-1"), (7, "7")):
        strange = voxels.astype(np.float32)
        strange[0, 0, 0] = value
        other = sitk.GetImageFromArray(strange)
        other.CopyInformation(image)
        nrrd = tmp_path / "n" / side
        write(nrrd / "p" / "c.nrrd", voxels)
        write(nrrd / "l" / "c.nrrd", voxels)
        sitk.WriteImage(other, str(nrrd / side / "c.nrrd"))  # ITK would turn NaN into 0 in NIfTI
        facts = {**json.loads((tmp_path / "p" / "dataset.json").read_text()), "file_ending": ".nrrd"}
        (nrrd / "p" / "dataset.json").write_text(json.dumps(facts))
        problems, rows = evaluate_case(plan_evaluation(nrrd / "p", nrrd / "l"), "c")
        assert len(problems) == 1
        assert (
            f"must hold only the values [0, 1, 2, 3] of {nrrd / 'p' / 'dataset.json'}; got {told}. Map" in problems[0]
        )
        assert rows == []
