"""DICOM series become volumes: order, spacing, orientation, rescaling, choice of series, DICOM-SEG."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from converting import assert_volume, facts, names
from mini_dicom import SAGITTAL, SECONDARY, slice_file, voxels, write_segmentation, write_series
from own_source import nnunet, own, refused  # noqa: F401

from nnunet_collab.core.errors import CollabError

pytestmark = pytest.mark.usefixtures("nnunet")

# DICOM's x and y point to the left and to the back; nibabel's to the right and to the front.
AXIAL_AFFINE = np.array([[-0.5, 0, 0, 3.0], [0, -0.75, 0, -4.0], [0, 0, 2.0, 10.0], [0, 0, 0, 1]])


def labels_of(stored: np.ndarray) -> np.ndarray:
    """1 and 2 in the slices between the first and the last, `(Z, Y, X)`."""
    labels = (stored > 1000).astype(np.uint8) + (stored > 1800)
    labels[[0, -1]] = 0
    return labels


def write_source(source, cases=3, **tags):
    for i in range(cases):
        files = write_series(source / "images" / f"case{i}", voxels(i), patient=i, study=i, **tags)
        write_segmentation(
            source / "labels" / f"case{i}.dcm", files, labels_of(voxels(i)), {1: "liver", 2: "big tumor"}
        )
    return source


def test_voxels_geometry_and_segments_are_those_that_were_written(tmp_path, capsys):
    folder = own(write_source(tmp_path / "source"))
    for i in range(3):
        hounsfield = (voxels(i).astype(int) - 1024).transpose(2, 1, 0)
        assert_volume(folder / "imagesTr" / f"case_000{i + 1}_0000.nii.gz", hounsfield, AXIAL_AFFINE)
        labels = labels_of(voxels(i)).transpose(2, 1, 0)
        assert_volume(folder / "labelsTr" / f"case_000{i + 1}.nii.gz", labels, AXIAL_AFFINE)
    about = facts(folder)
    assert about["channel_names"] == {"0": "CT"}
    assert about["labels"] == {"background": 0, "liver": 1, "big tumor": 2}
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "Train: nnUNetv2_train 27 3d_fullres 0 -tr CTRCLTrainer"
    assert "Look at it: nnunet_collab doctor -d 27" in printed


def test_a_sagittal_series_lies_where_its_tags_say(tmp_path):
    """The affine from the tags, written down by hand: columns run backward, rows downward, slices to the right."""
    source = write_source(tmp_path / "source")
    shutil.rmtree(source / "images" / "case0")
    (source / "labels" / "case0.dcm").unlink()
    stored = voxels(7)
    files = [
        slice_file(
            source / "images" / "case0" / f"{9 - i}.dcm", stored[i], (50.0 - 3.0 * i, -20.0, 80.0),
            patient=0, study=0, ImageOrientationPatient=list(SAGITTAL), SliceThickness=3.0,
        )
        for i in range(4)
    ]  # fmt: skip
    write_segmentation(source / "labels" / "case0.dcm", files, labels_of(stored), {1: "liver", 2: "big tumor"})
    folder = own(source)
    affine = np.array([[0, 0, 3.0, -50.0], [-0.5, 0, 0, 20.0], [0, -0.75, 0, 80.0], [0, 0, 0, 1]])
    # The normal of a sagittal slice is (-1, 0, 0): the order of the slices is kept.
    assert_volume(folder / "imagesTr" / "case_0001_0000.nii.gz", (stored.astype(int) - 1024).transpose(2, 1, 0), affine)
    assert_volume(folder / "labelsTr" / "case_0001.nii.gz", labels_of(stored).transpose(2, 1, 0), affine)


def test_every_slice_of_pet_has_its_own_factor(tmp_path):
    source = write_source(tmp_path / "source")
    shutil.rmtree(source / "images" / "case0")
    stored = voxels(0)
    for i in range(4):
        slope = "1" if i == 0 else f"{0.25 * (i + 1)}"  # the type of the first slice must not be that of the others
        slice_file(
            source / "images" / "case0" / f"{i}.dcm", stored[i], (-3.0, 4.0, 10.0 + 2 * i),
            patient=0, study=0, RescaleSlope=slope, RescaleIntercept="0",
        )  # fmt: skip
    want = stored.astype(float) * np.array([1, 0.5, 0.75, 1.0]).reshape(-1, 1, 1)
    assert_volume(own(source) / "imagesTr" / "case_0001_0000.nii.gz", want.transpose(2, 1, 0), AXIAL_AFFINE)


def test_compressed_slices_are_decoded(tmp_path):
    import pydicom
    from pydicom.uid import RLELossless

    stored = np.random.default_rng(3).integers(0, 2000, (3, 16, 16)).astype(np.int16)
    for file in write_series(tmp_path / "source" / "unlabeled" / "a", stored):
        slice_ = pydicom.dcmread(file)
        slice_.compress(RLELossless, generate_instance_uid=False)
        slice_.save_as(file)
    want = (stored.astype(int) - 1024).transpose(2, 1, 0)
    assert_volume(own(tmp_path / "source") / "imagesUn" / "case_0001_0000.nii.gz", want, AXIAL_AFFINE)


def test_in_a_tree_the_series_with_the_most_slices_or_the_chosen_one(tmp_path, monkeypatch):
    source = tmp_path / "source"
    for i in range(2):
        tree = source / "images" / f"person{i}" / "study"
        tags = {"patient": i, "study": i}
        write_series(tree / "scout", voxels(50 + i, 6), series="scout", ImageType=["ORIGINAL", "LOCALIZER"], **tags)
        write_series(tree / "bone", voxels(20 + i, 3), series="bone", **tags)
        files = write_series(tree / "soft", voxels(i, 5), series="soft", **tags)
        (tree / "report.txt").write_text("text")
        write_segmentation(source / "labels" / f"{i}.dcm", files, labels_of(voxels(i, 5)), {1: "liver", 2: "tumor"})
    most = own(source)
    want = (voxels(0, 5).astype(int) - 1024).transpose(2, 1, 0)
    assert_volume(most / "imagesTr" / "case_0001_0000.nii.gz", want, AXIAL_AFFINE)
    text = refused_later(source, monkeypatch, tmp_path, "--series", "bone")
    assert "a segmentation must refer to the series of its image" not in text  # it is not found at all
    assert text.count("the image of this label is missing") == 2
    shutil.rmtree(source / "labels")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "bone"))
    folder = own(source, "--series", "bo.e")
    want = (voxels(20, 3).astype(int) - 1024).transpose(2, 1, 0)
    assert_volume(folder / "imagesUn" / "case_0001_0000.nii.gz", want, AXIAL_AFFINE)
    assert names(folder / "imagesTr") == []


def refused_later(source, monkeypatch, tmp_path, *more):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "other" / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "other" / "nnUNet_preprocessed"))
    return refused(source, *more)


def test_files_of_several_studies_in_one_folder_are_cases_and_segmentations_find_theirs(tmp_path):
    source = tmp_path / "source"
    for i in range(3):
        files = write_series(tmp_path / f"s{i}", voxels(i), patient=i, study=i)
        for file in files:
            (source / "images").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, source / "images" / f"{i}_{file.name}")
        write_segmentation(source / "labels" / f"any{i}.dcm", files, labels_of(voxels(i)), {1: "liver", 2: "tumor"})
    folder = own(source, "--key", str(tmp_path / "key.csv"))
    found = {(folder / "imagesTr" / f"case_000{i}_0000.nii.gz").read_bytes() for i in (1, 2, 3)}
    assert len(found) == 3
    import nibabel as nib

    for i in (1, 2, 3):
        pixels = np.asarray(nib.load(folder / "imagesTr" / f"case_000{i}_0000.nii.gz").dataobj) + 1024
        assert np.array_equal(
            np.asarray(nib.load(folder / "labelsTr" / f"case_000{i}.nii.gz").dataobj).transpose(2, 1, 0),
            labels_of(pixels.transpose(2, 1, 0)),
        )


def test_channels_are_folders_of_series(tmp_path):
    source = tmp_path / "source"
    for i in range(2):
        for number, channel in enumerate(("T1", "flair")):
            write_series(
                source / "images" / f"case{i}" / channel, voxels(10 * number + i), patient=i, study=i, series=channel
            )
    folder = own(source, "--channels", "T1,FLAIR")
    assert facts(folder)["channel_names"] == {"0": "T1", "1": "FLAIR"}
    for number in (0, 1):
        want = (voxels(10 * number + 1).astype(int) - 1024).transpose(2, 1, 0)
        assert_volume(folder / "imagesUn" / f"case_0002_000{number}.nii.gz", want, AXIAL_AFFINE)


def test_one_frame_and_segments_numbered_differently_mean_what_their_labels_say(tmp_path):
    source = write_source(tmp_path / "source", cases=2)
    files = write_series(source / "images" / "case2", voxels(2), patient=2, study=2)
    swapped = np.zeros((4, 6, 5), np.uint8)
    swapped[2, 1:3, 1:4] = 1  # one slice only
    write_segmentation(source / "labels" / "case2.dcm", files, swapped, {1: "big tumor"})
    folder = own(source)
    assert_volume(folder / "labelsTr" / "case_0003.nii.gz", 2 * swapped.transpose(2, 1, 0), AXIAL_AFFINE)


def test_labels_and_test_images_can_be_series_too(tmp_path):
    source = tmp_path / "source"
    for i, role in enumerate(("", "", "test_")):
        name = f"case{i}"
        write_series(source / f"{role}images" / name, voxels(i), patient=i, study=i)
        stored = (7 * labels_of(voxels(i))).astype(np.int16)
        tags = {"series": "label", "RescaleIntercept": "0", "SeriesDescription": "drawn", "Modality": "OT"}
        write_series(source / f"{role}labels" / name, stored, patient=i, study=i, **tags)
    folder = own(source, "--series", "SECRET s")  # of the images, not of the labels
    assert facts(folder)["labels"] == {"background": 0, "class_7": 1, "class_14": 2}
    assert facts(folder)["channel_names"] == {"0": "CT"}
    for case, place in (("case_0002", "labelsTr"), ("case_0003", "labelsTs")):
        want = labels_of(voxels(int(case[-1]) - 1)).transpose(2, 1, 0)
        assert_volume(folder / place / f"{case}.nii.gz", want, AXIAL_AFFINE)


def test_contours_and_multiframe_files_are_refused_and_reports_left_out(tmp_path):
    source = write_source(tmp_path / "source")
    case = source / "images" / "case1"
    add(case, name="report.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    own(source)
    add(case, name="contours.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3")
    shutil.rmtree(source / "images" / "case2")
    several = np.zeros((3, 6, 5), np.int16)
    add(source / "images" / "case2", several, name="film.dcm", Rows=6, Columns=5, NumberOfFrames=3, patient=2, study=2)
    with pytest.raises(CollabError) as caught:
        own(source, "--overwrite")
    assert "contours.dcm: it holds contours (RTSTRUCT), which are not converted." in str(caught.value)
    assert "these hold several frames (enhanced or a film): film.dcm" in str(caught.value)


def test_ct_and_mr_are_two_datasets(tmp_path):
    source = write_source(tmp_path / "source")
    for i in range(4):
        add(source / "unlabeled" / "m", voxels(1)[i], (-3.0, 4.0, 10.0 + 2 * i), f"{i}.dcm", Modality="MR", study=9)
    assert "all images must have the same modality; it is MR, and that of" in refused(source)


def test_images_of_both_scales_of_gray_are_not_mixed(tmp_path):
    source = write_source(tmp_path / "source")
    for i in range(4):
        place = (-3.0, 4.0, 10.0 + 2 * i)
        add(source / "unlabeled" / "m", voxels(1)[i], place, f"{i}.dcm", PhotometricInterpretation="MONOCHROME1")
    text = refused(source)
    assert f"{source / 'unlabeled' / 'm' / '0.dcm'}: in this image low values are bright (MONOCHROME1)" in text
    assert text.count("MONOCHROME1") == 1


def test_all_with_one_patient_id_are_told_to_name_the_patients(tmp_path):
    source = tmp_path / "source"
    for i in range(3):
        files = write_series(source / "images" / f"c{i}", voxels(i), patient="anon", study=i)
        write_segmentation(source / "labels" / f"c{i}.dcm", files, labels_of(voxels(i)), {1: "liver", 2: "tumor"})
    text = refused(source)
    assert "all DICOM files have the same PatientID, perhaps because names were removed. Say with --patients" in text
    (tmp_path / "who.csv").write_text("case,patient\nc0,a\nc1,b\nc2,b\n")
    assert facts(own(source, "--patients", str(tmp_path / "who.csv")))["numTraining"] == 3


# ---------------------------------------------------------------- refusals


def remove_slice(case):
    (case / "IM0003.dcm").unlink()  # the second one


def add(case, stored=None, position=(-3.0, 4.0, 18.0), name="extra.dcm", **tags):
    pixels = voxels(9)[0] if stored is None else stored
    slice_file(case / name, pixels, position, **{"patient": 1, "study": 1, **tags})


def series_again(case, **tags):
    for i in range(4):
        add(case, voxels(9)[i], (-3.0, 4.0, 10.0 + 2 * i), f"again{i}.dcm", **tags)


FAULTS = {
    "missing-slices": (remove_slice, "slices are missing, about 1: between IM0000.dcm and IM0002.dcm the distance is"),
    "two-series": (
        lambda case: series_again(case, series="other"),
        "a folder must hold one series; it holds 2: SECRET s (4 slices",
    ),
    "another-patient": (
        lambda case: add(case, patient=5, study=1),
        "a folder must hold one patient; IM0000.dcm and extra.dcm have different PatientIDs",
    ),
    "no-codec": (
        lambda case: add(case, syntax="1.2.840.10008.1.2.4.201"),
        "GDCM cannot decode (transfer syntax 1.2.840.10008.1.2.4.201). Decompress it first",
    ),
    "color": (
        lambda case: add(case, np.zeros((6, 5, 3), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="RGB",
                         PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7),
        "DICOM images must be gray; these are in color: extra.dcm",
    ),
    "four-dimensions": (series_again, "it is a 4D series: 5 or more slices lie at the same place as another"),
    "mixed-orientations": (
        lambda case: add(case, ImageOrientationPatient=list(SAGITTAL)),
        "all slices must have the same orientation; extra.dcm has (0, 1, 0, 0, 0, -1) and",
    ),
    "localizer": (
        lambda case: add(case, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "1 of its 5 files are localizers (scouts), which are not part of a volume: extra.dcm",
    ),
    "another-size": (lambda case: add(case, np.zeros((5, 6), np.int16)), "all slices must have the same size;"),
    "another-spacing": (lambda case: add(case, PixelSpacing=[0.75, 0.6]), "must have the same pixel spacing; "),
    "no-position": (
        lambda case: add(case, ImagePositionPatient=None, SOPClassUID=SECONDARY),
        "slices must say where they are; these do not: extra.dcm",
    ),
    "uneven": (lambda case: add(case, position=(-3.0, 4.0, 18.7)), "the distance of its slices varies from 2 to 2.7"),
    "damaged": (
        lambda case: (case / "IM0000.dcm").write_bytes((case / "IM0000.dcm").read_bytes()[:300]),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_series_that_is_no_volume_is_refused(fault, tmp_path):
    source = write_source(tmp_path / "source")
    make, found = FAULTS[fault]
    make(source / "images" / "case1")
    text = refused(source)
    assert found in text
    assert str(source / "images" / "case1") in text
    assert "SECRETID" not in text  # a message may end up in a log


def test_a_tilted_gantry_is_refused(tmp_path):
    source = tmp_path / "source"
    for i in range(4):
        slice_file(source / "images" / "a" / f"{i}.dcm", voxels(1)[i], (-3.0, 4.0 + 0.4 * i, 10.0 + 2 * i))
    assert "not stacked at a right angle, they shift by 1.2 mm (a tilted gantry)" in refused(source)


def test_all_faults_are_told_at_once(tmp_path):
    source = write_source(tmp_path / "source")
    remove_slice(source / "images" / "case0")
    add(source / "images" / "case2", ImageType=["LOCALIZER"], patient=2, study=2)
    (source / "images" / "case1" / "plan.dcm").write_bytes(b"no dicom")
    write_series(source / "images" / "case4", voxels(4), patient=4, study=4)
    (source / "unlabeled").mkdir()
    (source / "unlabeled" / "a.nii.gz").write_bytes(b"no image")  # faults of voxels, too
    (source / "labels" / "case4.dcm").write_bytes((source / "labels" / "case2.dcm").read_bytes()[:900])
    text = refused(source)
    assert "slices are missing" in text
    assert "a.nii.gz: cannot be read completely" in text
    assert text.count("case4.dcm: this DICOM segmentation cannot be read") == 1
    assert "localizers" in text
    assert "plan.dcm: this DICOM file cannot be read" in text


def test_a_segmentation_of_another_series_is_refused(tmp_path):
    source = write_source(tmp_path / "source")
    shutil.copy(source / "labels" / "case2.dcm", source / "labels" / "case1.dcm")
    (source / "labels" / "case2.dcm").unlink()
    shutil.rmtree(source / "images" / "case2")
    text = refused(source)
    assert "case1.dcm: a segmentation must refer to the series of its image" in text


def test_a_segmentation_beside_the_slices_of_its_image_is_refused(tmp_path):
    """The right series by its UID, but the image lies elsewhere: the frames' places decide."""
    source = write_source(tmp_path / "source")
    shutil.rmtree(source / "images" / "case1")
    for i in range(4):
        add(source / "images" / "case1", voxels(1)[i], (-3.0, 4.5, 10.0 + 2 * i), f"{i}.dcm")
    assert re.search(r"frame must lie on a slice of its image; frame 1 at \(-3, 4, 1[24]\) does not", refused(source))


def test_overlapping_segments_are_refused(tmp_path):
    source = write_source(tmp_path / "source")
    files = sorted((source / "images" / "case1").iterdir(), key=lambda path: path.name)
    import pydicom

    files.sort(key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    both = np.zeros((4, 6, 5, 2), np.uint8)
    both[1, 2, 2] = 1
    write_segmentation(source / "labels" / "case1.dcm", files, both, {1: "liver", 2: "big tumor"})
    assert "segments must not overlap; two hold the same voxels in slice 1" in refused(source)


def test_segments_and_numbers_together_need_a_table(tmp_path):
    from own_source import write_volume

    source = write_source(tmp_path / "source")
    (source / "labels" / "case1.dcm").unlink()
    label = labels_of(voxels(1)).transpose(2, 1, 0)
    write_volume(source / "labels" / "case1.nii.gz", np.where(label == 1, 7, label), AXIAL_AFFINE)
    assert "Say with --classes which number is which segment" in refused(source)
    assert "it lacks big tumor" in refused(source, "--classes", "7=liver")
    folder = own(source, "--classes", "7=liver,2=big tumor")
    assert facts(folder)["labels"] == {"background": 0, "big tumor": 1, "liver": 2}
    assert_volume(
        folder / "labelsTr" / "case_0001.nii.gz",
        np.array([0, 2, 1])[labels_of(voxels(0)).transpose(2, 1, 0)],
        AXIAL_AFFINE,
    )
    assert_volume(folder / "labelsTr" / "case_0002.nii.gz", np.array([0, 2, 1])[label], AXIAL_AFFINE)


def test_without_highdicom_the_message_says_what_to_install(tmp_path, monkeypatch):
    import sys

    source = write_source(tmp_path / "source")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    text = refused(source)
    assert "reading DICOM segmentations needs the package highdicom" in text
    assert "pip install 'nnunet-collab[dicom]'" in text
