"""Every image format, whole and damaged, read with SimpleITK and with nnU-Net's own readers."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

import nnunet_collab
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.grid import Grid, GridTolerance, grid_differences
from nnunet_collab.core.image_io import read_image, read_volume, whole_numbers


def itk(path, voxels, **options):
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), **options)


def nifti2(path, voxels):
    nib.save(nib.Nifti2Image(voxels.T, np.eye(4)), path)


def stack(path, voxels):
    tifffile.imwrite(path, voxels, compression="zlib", metadata=None)


def gray(path, voxels):
    io.imsave(path, voxels, check_contrast=False)  # ITK writes a palette, which is read as colors


def compressed(path, voxels):
    itk(path, voxels, useCompression=True)


# name of the file, how it is written, axes, nnU-Net's readers of it, whether SimpleITK reads it
FORMATS = [
    ("nii", itk, 3, (NibabelIO,), True),
    ("nii", itk, 2, (), True),
    ("nii.gz", itk, 3, (SimpleITKIO, NibabelIO), True),
    ("nii.gz", itk, 2, (SimpleITKIO,), True),
    ("nii", nifti2, 3, (NibabelIO,), False),
    ("nii.gz", nifti2, 3, (NibabelIO,), False),
    ("nrrd", itk, 3, (SimpleITKIO,), True),
    ("nrrd", itk, 2, (SimpleITKIO,), True),
    ("nrrd", compressed, 3, (SimpleITKIO,), True),
    ("mha", itk, 3, (SimpleITKIO,), True),
    ("mha", compressed, 3, (SimpleITKIO,), True),
    ("mha", compressed, 2, (SimpleITKIO,), True),
    ("gipl", itk, 3, (SimpleITKIO,), True),
    ("png", itk, 2, (NaturalImage2DIO,), True),
    ("bmp", gray, 2, (NaturalImage2DIO,), False),
    ("tif", itk, 2, (NaturalImage2DIO,), True),
    ("tif", itk, 3, (Tiff3DIO,), True),
    ("tiff", stack, 3, (Tiff3DIO,), True),
    ("tif", tifffile.imwrite, 3, (Tiff3DIO,), True),
]
NAMES = [f"{write.__name__}-{axes}D.{ending}" for ending, write, axes, *_ in FORMATS]
DTYPES = {
    "png": "uint8 uint16",
    "bmp": "uint8",
    "tif": "uint8 uint16 float32",
    "tiff": "uint8 int16 float32",
    "gipl": "uint8 int16 float32",
}


def readings(path, readers, with_itk):
    """Reading functions, each of which returns the voxels as `(Z, Y, X)`."""
    if with_itk:
        yield lambda: np.atleast_3d(sitk.GetArrayFromImage(read_image(path)).T).T
    for reader in readers:
        for label in (False, True):
            yield lambda reader=reader, label=label: read_volume(path, reader, label=label).voxels[0]


def random_voxels(axes, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 200, (7, 21, 18)[3 - axes :]).astype(dtype)


@pytest.mark.parametrize(("ending", "write", "axes", "readers", "with_itk"), FORMATS, ids=NAMES)
def test_whole_file_is_read_in_every_number_type(tmp_path, ending, write, axes, readers, with_itk):
    for dtype in DTYPES.get(ending, "uint8 int16 uint16 int32 float32 float64").split():
        path = tmp_path / f"{dtype}.{ending}"
        voxels = random_voxels(axes, dtype)
        write(path, voxels)
        for read in readings(path, readers, with_itk):
            assert np.array_equal(np.squeeze(read()), voxels)


@pytest.mark.parametrize(("ending", "write", "axes", "readers", "with_itk"), FORMATS, ids=NAMES)
def test_truncated_file_is_refused(tmp_path, ending, write, axes, readers, with_itk):
    path = tmp_path / f"cut.{ending}"
    write(path, random_voxels(axes))
    whole = path.read_bytes()
    for share in (0.9, 0.6, 0.3, 0.05, 0):
        path.write_bytes(whole[: int(len(whole) * share)])
        for read in readings(path, readers, with_itk):
            with pytest.raises(
                CollabError, match=r"cut\..+: cannot be read completely \(.+\)\. Copy or download the file"
            ):
                read()


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha", "png"])
def test_flipped_bit_under_a_checksum_is_refused_or_changes_nothing(tmp_path, ending):
    axes, readers = (2, (NaturalImage2DIO,)) if ending == "png" else (3, (SimpleITKIO,))
    path, voxels = tmp_path / f"flipped.{ending}", random_voxels(axes)
    itk(path, voxels, useCompression=True)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    for place in rng.integers(len(whole) // 3, len(whole), 40):  # behind the header, whose text has no checksum
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        for read in readings(path, readers, with_itk=True):
            try:
                assert np.array_equal(np.squeeze(read()), voxels)
            except CollabError:
                refused += 1
    assert refused > 60  # of 120


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha", "gipl", "png", "bmp", "tif", "jpg"])
def test_no_image_at_all_is_refused(tmp_path, ending):
    for content in (b"", b"<html>404</html>" * 40):
        path = tmp_path / f"page.{ending}"
        path.write_bytes(content)
        with pytest.raises(CollabError, match="cannot be read completely"):
            read_image(path)
    with pytest.raises(CollabError, match="cannot be read completely"):
        read_image(tmp_path / f"missing.{ending}")


def test_compressed_after_being_cut_off_is_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    itk(path, random_voxels(3))
    voxels = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(voxels[:-1]))
    for read in readings(path, (SimpleITKIO, NibabelIO), with_itk=True):
        with pytest.raises(CollabError, match=f"it holds {len(voxels) - 1} bytes and needs {len(voxels)}"):
            read()


def test_every_reader_states_the_same_grid(tmp_path):
    image = sitk.GetImageFromArray(random_voxels(3))
    image.SetSpacing((0.5, 2.0, 5.0))
    image.SetOrigin((-7.0, 11.0, 13.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(image, str(path))
    want = Grid.of_image(image)
    volume = read_volume(path, SimpleITKIO, label=True)
    assert volume.voxels.shape == (1, 7, 21, 18)
    assert volume.spacing.tolist() == pytest.approx([5.0, 2.0, 0.5])
    assert [*grid_differences(want, volume.grid)] == []
    # nibabel's axes point right, anterior, superior where ITK's point left, posterior, superior.
    flip = np.array([-1, -1, 1])
    nibabels = read_volume(path, NibabelIO, label=True).grid
    assert np.multiply(nibabels.origin, flip) == pytest.approx(want.origin)
    assert (np.reshape(nibabels.direction, (3, 3)) * flip[:, None]).ravel() == pytest.approx(want.direction)
    assert (nibabels.size, nibabels.spacing) == (want.size, pytest.approx(want.spacing))
    upright = read_volume(path, NibabelIOWithReorient, label=True).grid
    assert upright.direction == pytest.approx(np.eye(3).ravel(), abs=1e-6)
    itk(tmp_path / "a.png", random_voxels(2))
    assert read_volume(tmp_path / "a.png", NaturalImage2DIO, label=True).grid.origin == (0, 0, 0)


def test_grids_are_told_apart_beyond_rounding():
    grid = Grid((5, 4), (1.0, 2.0), (1234.56, 0.0), (1.0, 0.0, 0.0, 1.0))

    def told(tolerance=None, **change):
        return [what for what, _, _ in grid_differences(grid, Grid(**{**vars(grid), **change}), tolerance)]

    assert (
        told() == told(spacing=(1.0009, 2.0)) == told(origin=(1234.569, 0.0)) == told(direction=(1, 9e-4, 0, 1)) == []
    )
    assert told(size=(4, 5), spacing=(9.0, 9.0)) == ["size"]
    assert told(size=(5, 4, 1)) == ["size"]
    assert told(spacing=(1.0, 2.003)) == ["spacing"]
    assert told(origin=(1234.58, 0.0)) == ["origin"]
    assert told(direction=(-1.0, 0.0, 0.0, 1.0)) == ["direction"]
    assert told(origin=(float("nan"), 0.0)) == ["origin"]
    assert told(GridTolerance(origin=5.0), origin=(1234.58, 0.0)) == []
    ((_, wanted, found),) = grid_differences(grid, Grid(**{**vars(grid), "origin": (1234.58, 0.0)}))
    assert (wanted, found) == ("(1234.56, 0)", "(1234.58, 0)")


def test_labels_are_rounded_where_a_scale_factor_made_them_uneven():
    rounded, uneven = whole_numbers(np.array([0, 1, 2.0000002, 2.9995], np.float32))
    assert (rounded.tolist(), uneven.tolist()) == ([0, 1, 2, 3], [])
    bad = whole_numbers(np.array([0.5, 1.002, np.inf, np.nan, 0.5, 3], np.float32))[1]
    assert bad.tolist() == pytest.approx([0.5, 1.002, np.inf, np.nan], nan_ok=True)


def test_help_does_not_wait_for_image_libraries():
    code = (
        "import sys; from nnunet_collab import cli; import nnunet_collab.core.image_io\n"
        "try: cli.main(['evaluate', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'SimpleITK', 'nibabel', 'PIL', 'tifffile', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_no_module_reads_an_image_by_itself():
    """What does not go through `read_whole` measures what is left of a truncated file."""
    package = Path(nnunet_collab.__file__).parent
    modules = [*package.rglob("*.py"), *(package.parent / "dataset_conversion").glob("*.py")]
    # pancreas.py: a DICOM series, a folder of files; the last two read headers alone
    allowed = {"image_io.py", "whole_files.py", "pancreas.py", "dicom_tags.py", "planned.py"}
    words = ("ReadImage", "read_images(", "read_seg(", "nib.load", "imread", "ImageFileReader")
    found = {path.name for path in modules if any(word in path.read_text(encoding="utf-8") for word in words)}
    assert found - allowed == set()
