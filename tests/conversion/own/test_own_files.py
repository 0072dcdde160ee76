"""Files that are not DICOM: every format, channels by suffix and folder, labels and their classes."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from converting import assert_nnunet_finds_no_fault, assert_volume, facts, names, splits
from own_source import AFFINE, image, label, nnunet, own, refused, write_volume, write_volumes  # noqa: F401
from PIL import Image

pytestmark = pytest.mark.usefixtures("nnunet")


def save(path, voxels, affine=AFFINE):
    """Write a volume with SimpleITK; voxels and affine in nibabel's order and directions."""
    picture = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    lps = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    picture.SetSpacing(spacing.tolist())
    picture.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    picture.SetOrigin(lps[:, 3].tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(picture, str(path))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_volumes_of_every_format(ending, tmp_path):
    for seed in range(2):
        save(tmp_path / "images" / f"a{seed}{ending}", image(seed))
        save(tmp_path / "labels" / f"a{seed}{ending}", label(seed))
    folder = own(tmp_path)
    for seed in range(2):
        assert_volume(folder / "imagesTr" / f"case_000{seed + 1}_0000.nii.gz", image(seed), AFFINE)
        assert_volume(folder / "labelsTr" / f"case_000{seed + 1}.nii.gz", label(seed), AFFINE)


def test_all_five_folders_and_other_names_of_them(tmp_path, capsys):
    write_volumes(tmp_path, "scans", "masks", seeds=range(3))
    write_volumes(tmp_path, "unlabeled", None, seeds=range(3, 5))
    write_volumes(tmp_path, "test_images", "truth", seeds=range(5, 7))
    (tmp_path / "scans" / "notes.txt").write_text("text")
    folder = own(tmp_path, "--images", "scans", "--labels", "masks", "--test_labels", "truth")
    assert names(folder / "imagesTr") == names(folder / "labelsTr") == [f"case_000{i}" for i in (1, 2, 3)]
    assert names(folder / "imagesUn") == ["case_0004", "case_0005"]
    assert names(folder / "imagesTs") == names(folder / "labelsTs") == ["case_0006", "case_0007"]
    assert_volume(folder / "imagesUn" / "case_0004_0000.nii.gz", image(3), AFFINE)
    assert_volume(folder / "labelsTs" / "case_0007.nii.gz", label(6), AFFINE)
    assert len(splits(folder)) == 3
    assert facts(folder)["numTraining"] == 3
    lines = capsys.readouterr().out.splitlines()
    assert "1 other files are not used: scans/notes.txt." in lines
    assert lines[-4:] == [
        "Next: nnUNetv2_plan_and_preprocess -d 27 --verify_dataset_integrity",
        "Then: nnunet_collab preprocess_unlabeled -d 27 -c CONFIGURATION",
        "Look at it: nnunet_collab doctor -d 27",
        "Train: nnUNetv2_train 27 3d_fullres 0 -tr CrossTeachingTrainer",
    ]


def test_only_images_are_unlabeled_ones_that_wait_for_labels(tmp_path, capsys):
    write_volumes(tmp_path, "images", None, seeds=range(2))
    folder = own(tmp_path)
    assert (names(folder / "imagesUn"), names(folder / "imagesTr")) == (["case_0001", "case_0002"], [])
    assert capsys.readouterr().out.splitlines()[-1].startswith("There is no label yet. Draw labels of some images")
    write_volume(tmp_path / "labels" / "anna0.nii.gz", label(0))
    write_volume(tmp_path / "labels" / "anna1.nii.gz", label(1))
    own(tmp_path, "--overwrite")  # replaces what the conversion wrote, imagesUn too
    assert names(folder / "imagesTr") == ["case_0001", "case_0002"]
    assert not (folder / "imagesUn").exists()


# ---------------------------------------------------------------- channels

CHANNELS = {
    "suffix": ("a{}_T1.nii.gz", "a{}-flair.nii.gz"),
    "folder-of-channel": ("T1/a{}.nii.gz", "FLAIR/a{}.nii.gz"),
    "folder-of-case": ("a{}/T1.nii.gz", "a{}/flair.nii.gz"),
}


@pytest.mark.parametrize("layout", CHANNELS)
def test_channels_are_named_by_suffix_or_folder(layout, tmp_path):
    for seed in range(2):
        for number, name in enumerate(CHANNELS[layout]):
            write_volume(tmp_path / "images" / name.format(seed), image(10 * number + seed))
        write_volume(tmp_path / "labels" / f"a{seed}_seg.nii.gz", label(seed))
    folder = own(tmp_path, "--channels", "T1,FLAIR")
    assert facts(folder)["channel_names"] == {"0": "T1", "1": "FLAIR"}
    for seed in range(2):
        for number in range(2):
            place = folder / "imagesTr" / f"case_000{seed + 1}_000{number}.nii.gz"
            assert_volume(place, image(10 * number + seed), AFFINE)
        assert_volume(folder / "labelsTr" / f"case_000{seed + 1}.nii.gz", label(seed), AFFINE)


def test_numbered_channels_need_no_names_also_for_one_unlabeled_case(tmp_path):
    for folder, seeds in (("images", range(2)), ("unlabeled", range(2, 3))):
        for seed in seeds:
            for number in range(2):
                write_volume(tmp_path / folder / f"a{seed}_000{number}.nii.gz", image(10 * number + seed))
            if folder == "images":
                write_volume(tmp_path / "labels" / f"a{seed}.nii.gz", label(seed))
    folder = own(tmp_path)
    assert facts(folder)["channel_names"] == {"0": "image0", "1": "image1"}
    assert_volume(folder / "imagesUn" / "case_0003_0001.nii.gz", image(12), AFFINE)


def test_numbers_of_cases_are_not_channels(tmp_path):
    for seed in range(3):
        write_volume(tmp_path / "images" / f"scan_000{seed}.nii.gz", image(seed))
        write_volume(tmp_path / "labels" / f"scan_000{seed}.nii.gz", label(seed))
    assert names(own(tmp_path) / "imagesTr") == ["case_0001", "case_0002", "case_0003"]


def test_a_folder_that_holds_one_file_names_its_case_too(tmp_path):
    for seed in range(2):
        write_volume(tmp_path / "images" / f"anna{seed}" / "scan.nii.gz", image(seed))
        write_volume(tmp_path / "labels" / f"anna{seed}" / "drawn.nii.gz", label(seed))
    table = tmp_path / "who.csv"
    table.write_text("case,patient\nanna0,a\nanna1/scan,b\n")
    folder = own(tmp_path, "--patients", str(table))
    for seed in range(2):
        assert_volume(folder / "imagesTr" / f"case_000{seed + 1}_0000.nii.gz", image(seed), AFFINE)
        assert_volume(folder / "labelsTr" / f"case_000{seed + 1}.nii.gz", label(seed), AFFINE)


def test_a_case_without_a_channel_or_with_a_strange_one_is_told(tmp_path):
    for name in ("a_T1", "a_FLAIR", "b_T1", "c_T2"):
        write_volume(tmp_path / "images" / f"{name}.nii.gz", image(0))
    text = refused(tmp_path, "--channels", "T1,FLAIR")
    assert "case b: every case must have 2 channels; FLAIR missing" in text
    assert "c_T2.nii.gz: its name or a folder around it must name one of the channels T1, FLAIR." in text
    assert "--channels: it must name the channels in order, each once; got 'T1,t1'" in refused(
        tmp_path, "--channels", "T1,t1"
    )


# ---------------------------------------------------------------- pictures


def picture(seed, shape=(20, 16)):
    """Smooth colors, which JPEG keeps nearly."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.stack([rows * 9, columns * 9, (rows + columns + seed) * 5], axis=-1).astype(np.uint8)


def mask(seed, shape=(20, 16)):
    found = np.zeros(shape, np.uint8)
    found[4:12, 3 : 9 + seed] = 255
    return found


def write_pictures(source, ending, mode="RGB", seeds=range(2)):
    for folder in ("images", "labels"):
        (source / folder).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        pixels = picture(seed) if mode == "RGB" else picture(seed)[..., 0]
        more = {"quality": 100, "subsampling": 0} if ending == ".jpg" else {}
        Image.fromarray(pixels).save(source / "images" / f"p{seed}{ending}", **more)
        Image.fromarray(mask(seed)).save(source / "labels" / f"p{seed}{ending}", **more)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("ending", [".png", ".tif", ".jpg", ".bmp"])
def test_pictures_of_every_format(ending, mode, tmp_path):
    write_pictures(tmp_path, ending, mode)
    folder = own(tmp_path)
    about = facts(folder)
    assert about["file_ending"] == ".png"
    assert about["labels"] == {"background": 0, "foreground": 1}
    assert list(about["channel_names"].values()) == (["R", "G", "B"] if mode == "RGB" else ["image"])
    for seed in range(2):
        want = picture(seed) if mode == "RGB" else picture(seed)[..., 0]
        found = np.asarray(Image.open(folder / "imagesTr" / f"case_000{seed + 1}_0000.png"))
        assert np.abs(found.astype(int) - want).max() <= (6 if ending == ".jpg" else 0)
        assert found.shape == want.shape
        labels = np.asarray(Image.open(folder / "labelsTr" / f"case_000{seed + 1}.png"))
        assert np.array_equal(labels, mask(seed) // 255)


def test_pictures_of_floats_become_nifti_with_all_their_digits(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for seed in range(2):
        sitk.WriteImage(
            sitk.GetImageFromArray(picture(seed)[..., 0] / np.float32(7)), str(tmp_path / "images" / f"p{seed}.tif")
        )
        Image.fromarray(mask(seed)).save(tmp_path / "labels" / f"p{seed}.png")
    folder = own(tmp_path)
    assert facts(folder)["file_ending"] == ".nii.gz"
    found = np.asarray(nib.load(folder / "imagesTr" / "case_0001_0000.nii.gz").dataobj)
    assert np.array_equal(np.squeeze(found).T, picture(0)[..., 0] / np.float32(7))


def test_a_label_with_a_palette_is_its_numbers_and_not_its_colors(tmp_path):
    write_pictures(tmp_path, ".png")
    for seed in range(2):
        indexed = Image.fromarray((mask(seed) // 255 * 2).astype(np.uint8), mode="P")
        indexed.putpalette([0, 0, 0, 1, 1, 1, 200, 30, 0])
        indexed.save(tmp_path / "labels" / f"p{seed}.png")
    folder = own(tmp_path, "--classes", "2=polyp")
    assert facts(folder)["labels"] == {"background": 0, "polyp": 1}
    assert np.array_equal(np.asarray(Image.open(folder / "labelsTr" / "case_0001.png")), mask(0) // 255)


def test_colored_and_gray_labels_are_refused(tmp_path):
    write_pictures(tmp_path, ".png", seeds=range(4))
    Image.fromarray(picture(0)).save(tmp_path / "labels" / "p0.png")
    (tmp_path / "labels" / "p1.png").unlink()
    Image.fromarray(picture(0)[..., 0]).save(tmp_path / "labels" / "p1.jpg")
    text = refused(tmp_path, "--classes", "255=polyp")
    assert "p0.png: a label must hold one number per pixel; this one has colors." in text
    assert "p1.jpg: JPEG changes the numbers of a label, so a JPEG label must be black and white" in text


def test_pictures_and_volumes_are_two_datasets(tmp_path):
    write_pictures(tmp_path, ".png")
    write_volumes(tmp_path, seeds=range(1))
    assert "a dataset must hold either pictures or volumes" in refused(tmp_path)


# ---------------------------------------------------------------- labels and classes


def test_classes_by_what_is_found_and_by_a_table(tmp_path):
    for seed in range(2):
        write_volume(tmp_path / "images" / f"a{seed}.nii.gz", image(seed))
        write_volume(tmp_path / "labels" / f"a{seed}.nii.gz", label(seed, (0, 3, 500)).astype(np.int16))
    # The smallest type that holds 500; a label of 8 bits would end at 255.
    for seed in range(2):
        values = np.random.default_rng(seed).choice([0, 3, 500], image(0).shape).astype(np.int16)
        write_volume(tmp_path / "labels" / f"a{seed}.nii.gz", values)
    folder = own(tmp_path)
    assert facts(folder)["labels"] == {"background": 0, "class_3": 1, "class_500": 2}
    assert facts(folder)["source_label_values"] == {"0": 0, "3": 1, "500": 2}
    values = np.random.default_rng(1).choice([0, 1, 2], image(0).shape)
    assert_volume(folder / "labelsTr" / "case_0002.nii.gz", values, AFFINE)
    table = tmp_path / "classes.csv"
    table.write_text("value;name\n0;background\n3;ignore\n500;tumor\n")
    own(tmp_path, "--classes", str(table), "--overwrite")
    assert facts(folder)["labels"] == {"background": 0, "tumor": 1, "ignore": 2}  # nnU-Net wants it to be the last
    assert_volume(folder / "labelsTr" / "case_0002.nii.gz", np.array([0, 2, 1])[values], AFFINE)


@pytest.mark.parametrize(
    "text", ["liver", "1=liver,1=tumor", "1=", "x=liver", "0=air", "1=liver,2=liver", "missing.csv"]
)
def test_a_table_of_classes_that_is_none_is_refused(text, tmp_path):
    write_volumes(tmp_path, seeds=range(2))
    assert refused(tmp_path, "--classes", text).startswith("--classes: ")


def test_labels_as_floats_and_on_a_rounded_grid_are_taken_and_others_refused(tmp_path):
    for seed in range(4):
        write_volume(tmp_path / "images" / f"a{seed}.nii.gz", image(seed))
    nearly = label(0).astype(np.float32) + np.float32(2e-4)
    near, far = AFFINE.copy(), AFFINE.copy()
    near[2, 3] += 0.004  # less than a hundredth of the finest spacing, 0.6 mm
    far[2, 3] += 0.02
    write_volume(tmp_path / "labels" / "a0.nii.gz", nearly, near)
    write_volume(tmp_path / "labels" / "a1.nii.gz", label(1).astype(np.float64))
    folder = own(tmp_path, "--rest_unlabeled")
    assert_volume(folder / "labelsTr" / "case_0001.nii.gz", label(0), AFFINE)
    assert_volume(folder / "labelsTr" / "case_0002.nii.gz", label(1), AFFINE)
    assert nib.load(folder / "labelsTr" / "case_0002.nii.gz").get_data_dtype() == np.uint8
    write_volume(tmp_path / "labels" / "a2.nii.gz", label(2), far)
    write_volume(tmp_path / "labels" / "a3.nii.gz", label(3) / np.float32(2))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the dataset is there already, so nothing else is checked
        own(tmp_path, "--overwrite")
    text = str(caught.value)
    assert "a2.nii.gz: the origin must be that of a2.nii.gz" in text
    assert "a3.nii.gz: label values must be 0, 1, 2; found 0.5" in text


def test_missing_labels_and_images_are_told_at_once(tmp_path):
    write_volumes(tmp_path, seeds=range(3))
    (tmp_path / "labels" / "anna0.nii.gz").unlink()
    (tmp_path / "images" / "anna1.nii.gz").unlink()
    write_volumes(tmp_path, "test_images", "test_labels", seeds=range(5, 7))
    (tmp_path / "test_labels" / "anna5.nii.gz").unlink()
    text = refused(tmp_path)
    assert "anna0.nii.gz: the label of this image is missing; none in" in text
    assert "say --rest_unlabeled" in text
    assert "labels/anna1.nii.gz: the image of this label is missing; none is named anna1." in text
    assert "all test images must have labels, or none; the label of anna5 is missing" in text


def test_an_image_as_a_label_and_a_time_series_are_refused(tmp_path):
    write_volumes(tmp_path, seeds=range(2))
    write_volume(tmp_path / "images" / "anna1.nii.gz", np.zeros((4, 4, 4, 3), np.int16))
    assert "the image must have 3 axes; it has 4" in refused(tmp_path)
    write_volume(tmp_path / "labels" / "anna0.nii.gz", np.arange(168).reshape(7, 6, 4).astype(np.int16) * 10)
    write_volume(tmp_path / "labels" / "anna1.nii.gz", np.arange(168).reshape(7, 6, 4).astype(np.int16) * 10 + 1)
    assert "a label must hold few values, one per class; more than 200 were found." in refused(tmp_path)


def test_a_source_without_the_folders_is_told_how_to_name_them(tmp_path):
    assert "SOURCE must hold the folder images, and perhaps labels" in refused(tmp_path)
    (tmp_path / "images").mkdir()
    assert "it must hold images (NIfTI, NRRD, MetaImage, DICOM, PNG, TIFF, JPEG or BMP); none was found" in refused(
        tmp_path
    )
    assert "it lacks --labels masks. Correct them." in refused(tmp_path, "--labels", "masks")
    assert "the folders must differ" in refused(tmp_path, "--labels", "images")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["volumes", "pictures", "floats"])
def test_nnunet_finds_no_fault(kind, tmp_path, monkeypatch, capsys):
    if kind == "volumes":
        write_volumes(tmp_path, seeds=range(2))
    elif kind == "pictures":
        write_pictures(tmp_path, ".bmp")
    else:
        test_pictures_of_floats_become_nifti_with_all_their_digits(tmp_path)
    folder = own(tmp_path, "--overwrite")
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 2
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)
