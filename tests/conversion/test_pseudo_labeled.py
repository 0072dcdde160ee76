"""Pseudo labels in every format that nnU-Net writes, and the value of the ignore label."""

from __future__ import annotations

import json

import numpy as np
import pytest
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_collab.conversion.pseudo_labeled import ignore_value, write_segmentation

SITK = {"spacing": (1.5, 1.0, 4.0), "origin": (1.0, 2.0, 3.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}
NIBABEL = {"original_affine": np.diag([1.5, 1.0, 4.0, 1.0])}


@pytest.mark.parametrize(
    ("reader", "ending", "shape", "properties"),
    [
        (SimpleITKIO, ".nii.gz", (3, 5, 6), {"sitk_stuff": SITK}),
        (SimpleITKIO, ".nrrd", (3, 5, 6), {"sitk_stuff": SITK}),
        (NibabelIO, ".nii.gz", (3, 5, 6), {"nibabel_stuff": NIBABEL}),
        (NaturalImage2DIO, ".png", (1, 5, 6), {"spacing": (999, 1, 1)}),
        (Tiff3DIO, ".tif", (3, 5, 6), {"spacing": (4.0, 1.0, 1.5)}),
    ],
    ids=["nifti", "nrrd", "nibabel", "png", "tiff"],
)
def test_a_segmentation_is_written_on_the_grid_of_another(tmp_path, reader, ending, shape, properties):
    like, place = tmp_path / f"u{ending}", tmp_path / "labelsTr" / f"u{ending}"
    reader().write_seg(np.zeros(shape, np.uint8), str(like), properties)
    labels = np.random.default_rng(0).integers(0, 4, shape).astype(np.int16)
    write_segmentation(labels, like, place, reader)
    read, found = reader().read_seg(str(place))
    _, expected = reader().read_seg(str(like))
    assert np.array_equal(read[0], labels)
    assert json.dumps(found, default=repr) == json.dumps(expected, default=repr)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_disk(tmp_path):
    like = tmp_path / "u.nrrd"
    SimpleITKIO().write_seg(np.zeros((3, 5, 6), np.uint8), str(like), {"sitk_stuff": SITK})
    (tmp_path / "v.nrrd").mkdir()  # a folder is in the way
    with pytest.raises(OSError, match=r"\w"):
        write_segmentation(np.zeros((3, 5, 6), np.int16), like, tmp_path / "v.nrrd", SimpleITKIO)


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        ({"background": 0, "a": 1, "b": 2}, 3),
        ({"background": 0, "a": 1, "ignore": 2}, 2),
        ({"background": 0, "whole": [1, 2, 3], "core": [3]}, 4),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, 3),
    ],
)
def test_the_ignore_label_is_the_next_value_unless_there_is_one(labels, value):
    assert ignore_value({"labels": labels}) == value
