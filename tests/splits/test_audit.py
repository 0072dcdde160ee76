"""The same image in two roles is found, whatever it is called; different images and harmless copies are not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from unlabeled_images import contents, save_image

from nnunet_collab.cli import main
from nnunet_collab.core.errors import CollabError
from nnunet_collab.splits.audit import Entry, equal_images, voxel_digest

SPLIT = [
    {"train": ["a"], "val": ["b"], "unlabeled": ["c", "d"]},
    {"train": ["b"], "val": ["c"], "unlabeled": ["a", "d"]},
]


def voxels(seed):
    return np.random.default_rng(seed).integers(0, 999, (2, 3, 4)).astype(np.int16)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Cases a to d in imagesTr, u in imagesUn and t in imagesTs, of two channels each."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw = tmp_path / "nnUNet_raw" / "Dataset027_Tiny"
    for seed, (case, part) in enumerate({**dict.fromkeys("abcd", "Tr"), "u": "Un", "t": "Ts"}.items()):
        for channel in range(2):
            save_image(raw / f"images{part}" / f"{case}_{channel:04d}.nii.gz", voxels([seed, channel]))
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    return raw


def audit(raw, capsys, split=SPLIT):
    """Exit status and the lines about duplicates."""
    if split is not None:
        (raw / "splits_final.json").write_text(json.dumps(split))
    before = contents(raw)
    capsys.readouterr()
    status = main(["split", "-d", "27", "--audit"])
    assert contents(raw) == before
    lines = capsys.readouterr().out.splitlines()
    return status, [line for line in lines if "duplicate" in line.lower()]


def copy(raw, source, target):
    shutil.copy(raw / f"{source}.nii.gz", raw / f"{target}.nii.gz")


@pytest.mark.parametrize("split", [SPLIT, None])
def test_none(raw, capsys, split):
    want = "No duplicates among labeled, unlabeled, validation and test images (6 cases)."
    assert audit(raw, capsys, split) == (0, [want])


@pytest.mark.parametrize(
    ("source", "target", "line"),
    [
        ("Tr/a", "Un/u", "imagesTr/a and imagesUn/u hold the same image: labeled and unlabeled in fold 0"),
        ("Tr/b", "Un/u", "imagesTr/b and imagesUn/u hold the same image: "
         "validation and unlabeled in fold 0; labeled and unlabeled in fold 1"),
        ("Tr/d", "Ts/t", "imagesTr/d and imagesTs/t hold the same image: unlabeled and test"),
        ("Un/u", "Ts/t", "imagesUn/u and imagesTs/t hold the same image: unlabeled and test"),
        ("Tr/a", "Tr/b", "imagesTr/a and imagesTr/b hold the same image: "
         "labeled and validation in fold 0; unlabeled and labeled in fold 1"),
        ("Tr/c", "Tr/d", "imagesTr/c and imagesTr/d hold the same image: validation and unlabeled in fold 1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [(0, 0), (1, 1), (0, 1)])
def test_copies_in_two_roles(raw, capsys, source, target, line, channels):
    first, second = channels
    copy(raw, f"images{source}_000{first}", f"images{target}_000{second}")
    assert audit(raw, capsys) == (1, [f"duplicate: {line}"])


def test_two_equal_channels_are_one_line(raw, capsys):
    for channel in range(2):
        copy(raw, f"imagesTr/a_000{channel}", f"imagesTs/t_000{channel}")
    status, lines = audit(raw, capsys)
    assert (status, len(lines)) == (1, 1)


def test_three_copies_are_three_pairs(raw, capsys):
    copy(raw, "imagesTr/a_0000", "imagesTs/t_0000")
    copy(raw, "imagesTr/a_0000", "imagesUn/u_0000")
    assert len(audit(raw, capsys)[1]) == 3


def test_copies_in_one_role_do_no_harm(raw, capsys):
    copy(raw, "imagesUn/u_0000", "imagesUn/v_0000")
    copy(raw, "imagesUn/u_0000", "imagesUn/u_0001")
    copy(raw, "imagesTr/c_0000", "imagesTr/d_0000")
    status, lines = audit(raw, capsys, SPLIT[:1])
    assert (status, len(lines)) == (0, 1)


def test_without_a_split_copies_in_imagestr_are_named(raw, capsys):
    copy(raw, "imagesTr/a_0000", "imagesTr/c_0000")
    copy(raw, "imagesTr/b_0000", "imagesUn/u_0000")
    assert audit(raw, capsys, None) == (1, [
        "duplicate: imagesTr/a and imagesTr/c hold the same image: one may be a training case and the other one a "
        "validation case",
        "duplicate: imagesTr/b and imagesUn/u hold the same image: labeled and unlabeled",
    ])  # fmt: skip


def test_constant_channels_do_not_count(raw, capsys):
    for place in ("imagesTr/a_0001", "imagesTs/t_0001", "imagesUn/u_0001"):
        save_image(raw / f"{place}.nii.gz", np.zeros((2, 3, 4), np.int16))
    assert audit(raw, capsys)[0] == 0


def test_every_unreadable_image_is_named(raw, capsys):
    bad = [raw / "imagesTr" / "a_0000.nii.gz", raw / "imagesTs" / "t_0001.nii.gz"]
    for path in bad:
        path.write_bytes(b"no image")
    assert main(["split", "-d", "27", "--audit"]) == 2
    err = capsys.readouterr().err
    assert "split --audit: every image must be readable; these are not:\n- " in err
    assert all(f"{path}: cannot be read completely" in err for path in bad)
    with pytest.raises(CollabError, match="these are not"):
        equal_images({Entry("imagesTr", "a"): [bad[0]]})


def test_after_writing_a_split_its_roles_count(raw, capsys):
    copy(raw, "imagesTr/a_0000", "imagesTr/b_0000")
    assert main(["split", "-d", "27", "--labeled", "a", "--audit", "--folds", "3"]) == 1
    out = capsys.readouterr().out
    assert "imagesTr/a and imagesTr/b hold the same image: labeled and " in out
    assert "labeled and validation in fold" in out


def test_a_new_dataset_is_audited_itself(raw, capsys):
    for case in "abcd":
        save_image(raw / "labelsTr" / f"{case}.nii.gz", np.ones((2, 3, 4), np.uint8))
    copy(raw, "imagesTr/a_0000", "imagesTr/b_0000")
    assert main(["split", "-d", "27", "--labeled", "a", "c", "--to", "28", "--audit"]) == 1
    out = capsys.readouterr().out
    assert "imagesTr/a and imagesUn/b hold the same image" in out
    assert main(["split", "-d", "27", "--labeled", "a", "b", "--to", "29", "--audit", "--seed", "1"]) == 1
    assert "imagesTr/a and imagesTr/b hold the same image: labeled and validation" in (
        capsys.readouterr().out.replace("validation and labeled", "labeled and validation")
    )


def test_no_images():
    assert equal_images({}) == []


# ---------------------------------------------------------------- when images are the same


def digest(array, spacing_mm=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[: array.ndim])
    return voxel_digest(image)


def test_voxels_count_not_the_number_type_or_the_header():
    array = voxels(0)
    assert len(digest(array)) == 64
    assert digest(array) == digest(array.astype(np.float32)) == digest(array.astype(np.float64), (2.0, 1.0, 3.0))
    zeros = array.astype(np.float32) * (array > 500)
    assert digest(zeros) == digest(np.where(zeros == 0, -0.0, zeros).astype(np.float32))


def test_every_voxel_and_the_shape_count():
    array = voxels(0)
    for place in np.ndindex(array.shape):
        changed = array.copy()
        changed[place] += 1
        assert digest(changed) != digest(array)
    assert digest(array) != digest(array.reshape(4, 3, 2))
    assert digest(array[0]) is not None
    assert digest(array[0]) != digest(array[1])


def test_an_image_of_one_value_says_nothing():
    assert digest(np.full((2, 3, 4), 7, np.int16)) is None
